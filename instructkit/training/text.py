"""Language modelling: documents of a file, each told token by token.

The file has a JSON object a line with the key `text` and, where only some of it is to be told, `told`: ranges of its
characters, `[[first, end], ...]`, from one space or end of the text to another. The rest is read, and no loss comes of
it: much of a text follows from nothing, and hides what does. With `stage`, a number, documents of a lower stage are
read before those of a higher one. Other keys are left alone.

A document is read with the LLM's start token in front and its end token, which is told, behind. One that is longer than
`data.text_tokens` is read in pieces, each of which begins with the last token of the one before, so that every token is
told once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from instructkit.config.settings import RunConfig
from instructkit.data.mixture import Integers, Mixture
from instructkit.errors import UserError
from instructkit.models.batches import padded
from instructkit.models.instruct_blip import IGNORED, AnswerLoss
from instructkit.models.plain_text import PlainText
from instructkit.runs.run import Run
from instructkit.training.data import Batch, MixedData, groups_of
from instructkit.training.model import refuse
from instructkit.training.objectives import Loss, LossSum, Work

NAME = "text"
"""The documents' name in the mixture and the log."""
WRITE = "python -m instructkit.world.text --out {}"
"""What makes such a file."""


class TextDocument(msgspec.Struct):
    """What the LLM reads.

    Attributes:
        text: the text.
        told: ranges of its characters that the LLM is told; None for all.
        stage: documents of a lower one are read before it.
    """

    text: str
    told: list[tuple[int, int]] | None = None
    stage: int = 0

    @property
    def parts(self) -> list[tuple[str, bool]]:
        """The text in parts, without the spaces between them, and whether each is told."""
        if self.told is None:
            return [(self.text, True)]
        cuts = sorted({0, len(self.text), *(edge for span in self.told for edge in span)})
        told = {start for start, _ in self.told}
        parts = [(self.text[start:end].strip(" "), start in told) for start, end in pairwise(cuts)]
        return [(part, is_told) for part, is_told in parts if part]


_read_line = msgspec.json.Decoder(TextDocument).decode


def read_documents(path: Path) -> list[TextDocument]:
    """The documents of a file.

    Raises:
        UserError: there is no such file, it is empty, a line holds no text, or what it says to be told is not there;
            the message names it.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise UserError(f"data.text={path}: no such file; {WRITE.format(path)} writes the mini-world's text") from None
    except OSError as error:
        raise UserError(f"data.text={path}: cannot be read ({error.strerror})") from error
    documents = []
    for number, line in enumerate(lines, start=1):
        try:
            documents.append(_read_line(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UserError(
                f'{path}, line {number}: no document, which is written as {{"text": "..."}} ({error})'
            ) from error
        if not documents[-1].text.strip():
            raise UserError(f"{path}, line {number}: its text is empty; take the line out")
        told = documents[-1].told or []
        edges = [0, *(edge for span in told for edge in span), len(documents[-1].text)]
        if edges != sorted(edges) or not all(first < end for first, end in told):
            raise UserError(
                f"{path}, line {number}: told={told} are no ranges of its {len(documents[-1].text):,} "
                "characters one behind the other; write [[first, end], ...]"
            )
    if not documents:
        raise UserError(f"data.text={path}: the file is empty; {WRITE.format(path)} writes the mini-world's text")
    return documents


def check_text(config: RunConfig) -> None:
    """Refuse settings that have no meaning for a language model; no model is needed.

    Raises:
        UserError: one has none, or no text is named or there.
    """
    if config.data.text is None:
        raise UserError(
            f"data.text: name the file that the LLM reads; {WRITE.format('FILE')} writes the mini-world's text"
        )
    if not Path(config.data.text).is_file():
        read_documents(Path(config.data.text))
    refuse(config, "a language model", dict.fromkeys(_NO_TEXT, "is trained on data.text alone"))
    if config.towers.llm != "full":
        raise UserError(f"towers.llm={config.towers.llm}: a language model is trained whole; set towers.llm=full")
    if config.training.zero_stage == 3:
        raise UserError("training.zero_stage=3: a language model is trained under ZeRO 0 to 2; set zero_stage=2")


_NO_TEXT = (
    "model.name",
    "model.vision",
    "model.vision_layer",
    "model.qformer",
    "model.llm_bits",
    "model.queries",
    "model.image_size",
    "model.instruction_aware",
    "towers.vision",
    "towers.qformer",
    "data.train",
    "data.raw",
    "data.world",
    "data.weights",
    "data.group_size",
    "data.augment",
    "data.prompt",
    "data.prefix",
    "data.instructions",
    "data.instruction_tokens",
    "data.answer_tokens",
    "data.caption_tokens",
    "training.rates",
    "training.layer_decay",
    "throughput.share_images",
    "throughput.share_keys",
    "throughput.answers_only",
    "throughput.feature_cache",
    "evaluation.benchmarks",
    "evaluation.every",
)
"""Settings of a run that have no meaning here."""


def text_mixture(config: RunConfig) -> Mixture:
    """The mixture of a run: its documents, one a group."""
    assert config.data.text is not None
    return _mixture(len(read_documents(Path(config.data.text))), config.seed)


def _mixture(documents: int, seed: int) -> Mixture:
    return Mixture({NAME: np.arange(documents)}, None, 1, seed)


class TextData(MixedData):
    """Batches of documents.

    Args:
        documents: their texts.
        tokenizer: of the LLM.
        tokens: longest row.
        groups: documents a micro-batch and rank.
        seed: of the run.
        rank: of this process.
        world: number of processes.
    """

    def __init__(
        self,
        documents: Sequence[TextDocument],
        tokenizer: PreTrainedTokenizerBase,
        tokens: int,
        *,
        groups: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__([], _mixture(len(documents), seed), groups=groups, seed=seed, rank=rank, world=world)
        plain, self.tokens = PlainText(tokenizer), tokens
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        rows = list(_rows(plain, documents, tokenizer.eos_token_id))
        self._ends = np.cumsum([len(ids) for ids, _ in rows])
        self._ids = np.concatenate([np.asarray(ids, dtype=np.int32) for ids, _ in rows])
        self._stages = np.asarray([document.stage for document in documents])
        self._staged = len(set(self._stages.tolist())) > 1
        self._order: tuple[int, Integers] = (-1, np.empty(0, np.int64))
        self._told = np.concatenate([np.asarray(told, dtype=bool) for _, told in rows])

    @classmethod
    def for_run(
        cls, run: Run[RunConfig], documents: Sequence[TextDocument], tokenizer: PreTrainedTokenizerBase
    ) -> TextData:
        """The batches that a run trains on; the log says how many tokens there are, and how many are told.

        Raises:
            UserError: a batch cannot be split over the ranks.
        """
        config = run.config
        data = cls(
            documents,
            tokenizer,
            config.data.text_tokens,
            groups=groups_of(config.training, run.world),
            seed=config.seed,
            rank=run.rank,
            world=run.world,
        )
        lengths = np.diff(data._ends, prepend=0)
        pieces = int((lengths > data.tokens).sum())
        cut = f"; {pieces:,} documents are read in pieces of {data.tokens:,}" if pieces else ""
        partly = any(document.told is not None for document in documents)
        told = f", {int(data._told.sum()):,} of them told" if partly else ""
        run.say(f"text      {len(data._ids):,} tokens{told}, {lengths.max():,} in the longest document{cut}")
        return data

    def length(self, number: int) -> int:
        """Tokens of a document."""
        return int(self._ends[number] - (self._ends[number - 1] if number else 0))

    def positions(self, index: int) -> Sequence[int]:
        """This rank's positions of the mixture; long documents are dealt out evenly, so that no rank waits."""
        first = index * self.groups * self.world
        together = range(first, first + self.groups * self.world)
        longest_first = sorted(together, key=lambda position: -self.length(self._number(position)))
        return sorted(longest_first[self.rank :: self.world])

    def batch(self, positions: Sequence[int]) -> Batch:
        """The batch of some positions of the mixture."""
        rows: list[list[int]] = []
        labels: list[list[int]] = []
        examples: list[str] = []
        for position in positions:
            number = self._number(position)
            pieces = self.pieces(number)
            for ids, told in pieces:
                rows.append(ids)
                labels.append([IGNORED, *told[1:]])
            examples += [f"{NAME}/{number + 1}"] * len(pieces)
        inputs = {
            "input_ids": padded(rows, self.pad),
            "attention_mask": padded([[1] * len(row) for row in rows], 0),
            "labels": padded(labels, IGNORED),
        }
        return Batch(inputs, examples, [NAME] * len(rows))

    def pieces(self, number: int) -> list[tuple[list[int], list[int]]]:
        """The rows of a document, each of two tokens or more: its tokens, and its labels."""
        end = int(self._ends[number])
        own = slice(end - self.length(number), end)
        ids, labels = self._ids[own].tolist(), np.where(self._told[own], self._ids[own], IGNORED).tolist()
        pieces = [slice(start, start + self.tokens) for start in range(0, len(ids) - 1, self.tokens - 1)]
        return [(ids[piece], labels[piece]) for piece in pieces]

    def _number(self, position: int) -> int:
        """The document at a position: those of an epoch in the mixture's order, stage by stage."""
        if not self._staged:
            return int(self.mixture[position].rows[0])
        epoch, place = divmod(position, len(self._stages))
        if self._order[0] != epoch:
            first = epoch * len(self._stages)
            drawn = np.asarray([self.mixture[first + place].rows[0] for place in range(len(self._stages))])
            self._order = epoch, drawn[np.argsort(self._stages[drawn], kind="stable")]
        return int(self._order[1][place])


def _rows(plain: PlainText, documents: Sequence[TextDocument], end: int) -> Iterator[tuple[list[int], list[bool]]]:
    """Tokens of documents, and which are told; parts are read as instructions and answers are."""
    parts = [
        [(plain.space * (place > 0) + text, told) for place, (text, told) in enumerate(document.parts)]
        for document in documents
    ]
    texts = list(dict.fromkeys(text for own in parts for text, _ in own))  # questions and answers come again and again
    read = dict(zip(texts, plain.ids(texts), strict=True))
    for own in parts:
        ids = [*plain.before, *(token for text, _ in own for token in read[text]), end]
        yield ids, [*[False] * len(plain.before), *(told for text, told in own for _ in read[text]), True]


class TextObjective:
    """Language modelling: the negative log-likelihood of every told token but the first of a row."""

    losses: Mapping[str, Loss] = {"nll": Loss()}
    contrastive = False

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Told tokens of each row."""
        return {"nll": (batch.inputs["labels"] != IGNORED).sum(1)}

    def work(self, model: Any) -> Callable[[Batch], Work] | None:
        """Nothing counts it."""
        return None

    def __call__(self, model: Callable[..., Any], batch: Batch) -> dict[str, LossSum]:
        """The documents' loss."""
        found: AnswerLoss = model(**batch.inputs)
        return {"nll": LossSum(found.total, found.tokens, found.rows)}
