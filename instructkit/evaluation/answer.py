"""A model that answers a batch of examples; one that cannot be asked becomes an error with its id."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from instructkit.data.examples import Example
from instructkit.errors import UserError
from instructkit.evaluation.generate import generate_texts
from instructkit.evaluation.questions import Question
from instructkit.evaluation.rank import score_candidates
from instructkit.evaluation.responses import Response
from instructkit.evaluation.trie import CandidateTrie
from instructkit.models.batches import Encoded, Limits, Picture, Texts, decode, pictures, share_images
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.positions import positions_of
from instructkit.prompts.protocols import VOCABULARY, Protocol, merge_scores
from instructkit.prompts.protocols import Texts as Candidate
from instructkit.prompts.templates import Prompt

RANKED = 100
"""Candidates of an example that are written down."""


class Row(NamedTuple):
    """One example, ready for the model.

    Attributes:
        example: what is asked about.
        prompt: the question.
        looks: its pictures.
        reference: what the metric compares with.
        candidates: answers to rank; a blank one of an example is behind all others.
        room: positions that the LLM has left for the prompt; None for as many as it takes.
    """

    example: Example
    prompt: Prompt
    looks: list[Picture]
    reference: Any
    candidates: list[Candidate]
    room: int | None

    @property
    def asked(self) -> list[int]:
        """Which of the candidates the LLM is asked for: those that are not blank."""
        return [index for index, texts in enumerate(self.candidates) if any(map(str.strip, texts))]

    @property
    def rankable(self) -> tuple[Candidate, ...]:
        """The candidates that are not blank."""
        return tuple(self.candidates[index] for index in self.asked)


class Batch(NamedTuple):
    """What a forward pass reads, made without the model.

    Attributes:
        rows: the examples that can be asked.
        pixels: their distinct pictures, `[pictures, 3, size, size]`; None without rows.
        failed: responses that say why an example could not be asked.
        order: ids of all examples, in the order given.
    """

    rows: list[Row]
    pixels: Tensor | None
    failed: list[Response]
    order: list[str]


class Answerer(ABC):
    """What answers the examples of a benchmark, or questions; each family of models has its own.

    Attributes:
        image_size: pixels of a side of the pictures that it looks at.
        limits: lengths that prompts are cut to.
    """

    image_size: int
    limits: Limits

    def prepare(
        self,
        question: Question,
        examples: Sequence[Example],
        root: Path,
        vocabulary: Sequence[str] | None = None,
        hidden: bool = False,
    ) -> Batch:
        """Put examples into words and decode their pictures; needs no model, so it may run beside it.

        Args:
            question: how the benchmark asks.
            examples: of its split.
            root: folder that media paths start from.
            vocabulary: candidates, for protocols that take them from other splits.
            hidden: the split has no answers to compare with.
        """
        rows, failed = [], []
        for example in examples:
            try:
                row = self.seen(_row(question, example, root, vocabulary, hidden), root)
                rows.append(row._replace(room=self._room(question.protocol, row)))
            except UserError as error:
                failed.append(Response(example=example.id, images=_media(example), error=str(error)))
        rows, pixels, broken = self._decode(rows)
        return Batch(rows, pixels, failed + broken, [example.id for example in examples])

    def seen(self, row: Row, root: Path) -> Row:
        """A row as the model sees it, here with its pictures; `root` is the folder that media paths start from."""
        return row

    def _decode(self, rows: list[Row]) -> tuple[list[Row], Tensor | None, list[Response]]:
        """Decode the distinct pictures; if one is broken, find out whose it is and leave them out."""
        try:
            distinct, _ = share_images([row.looks for row in rows])
            return rows, decode(distinct, self.image_size) if rows else None, []
        except UserError:
            whole, broken = [], []
            for row in rows:
                try:
                    decode(row.looks, self.image_size)
                    whole.append(row)
                except UserError as error:
                    media = _media(row.example)
                    broken.append(
                        Response(example=row.example.id, images=media, prompt=row.prompt.instruction, error=str(error))
                    )
            return (*self._decode(whole)[:2], broken)

    def answer(
        self,
        question: Question,
        batch: Batch,
        shared: CandidateTrie | None = None,
        stream: Callable[[str], object] | None = None,
    ) -> list[Response]:
        """Responses to a batch, in its order, from one forward pass of the image encoder and the Q-Former.

        Args:
            question: how the benchmark asks.
            batch: from `prepare`.
            shared: the trie of candidates that all examples have in common.
            stream: takes the text of a single example piece by piece as it is generated, greedily.
        """
        responses = {failure.example: failure for failure in batch.failed}
        if batch.pixels is not None:
            made = self._answered(question.protocol, batch.rows, batch.pixels, shared, stream)
            responses |= {response.example: response for response in made}
        return [responses[name] for name in batch.order]

    @abstractmethod
    def shared_trie(self, protocol: Protocol, vocabulary: Sequence[str] | None) -> CandidateTrie | None:
        """The trie of candidates that all examples share, built once; None where each has its own or none."""

    @abstractmethod
    def _room(self, protocol: Protocol, row: Row) -> int | None:
        """Tokens that are left for the prompt; None where nothing bounds it.

        Raises:
            UserError: the row cannot be answered.
        """

    @abstractmethod
    def _answered(
        self,
        protocol: Protocol,
        rows: Sequence[Row],
        pixels: Tensor,
        shared: CandidateTrie | None,
        stream: Callable[[str], object] | None,
    ) -> list[Response]:
        """Responses to the rows of a batch (`answer`), whose distinct pictures are `pixels`."""


class Evaluator(Answerer):
    """An InstructBLIP or a BLIP-2, its tokenisers and the device it is on.

    Args:
        model: put into evaluation mode.
        texts: its tokenisers.
        ranked: how many candidates a response keeps with their scores, the best; None for all.
    """

    def __init__(self, model: InstructBlip, texts: Texts, ranked: int | None = RANKED) -> None:
        self.model = model.eval()
        self.language_model: Any = model.language_model
        self.texts = texts
        self.ranked = ranked
        self.image_size = model.config.vision_config.image_size
        self.limits = texts.limits
        self.positions = positions_of(model.language_model)
        self._tokenised: tuple[tuple[Candidate, ...], list[list[int]]] = ((), [])

    def _room(self, protocol: Protocol, row: Row) -> int | None:
        """Positions that pictures and the longest answer leave for a prompt; None where nothing bounds it.

        Raises:
            UserError: none are left.
        """
        if self.positions.read is None:
            return None
        soft, answer = self.texts.queries * len(row.looks), 0
        if self.texts.decoder_only:
            answer = protocol.decoding.most_new_tokens(decoder_only=True)
            if protocol.mode == "rank":
                answer = 1 + max(map(len, self._candidate_ids(row.rankable)))
        room = self.positions.read - soft - answer
        if room <= len(self.texts.before) + len(self.texts.behind):
            raise UserError(
                f"{protocol.benchmark}: example {row.example.id}: {soft} soft prompts of {len(row.looks)} pictures and "
                f"{answer} tokens of an answer leave no room for a prompt in the LLM's {self.positions.read} positions"
            )
        return room

    def _candidate_ids(self, candidates: tuple[Candidate, ...]) -> list[list[int]]:
        """Tokens of candidates; the last ones are kept, since a benchmark often has the same for all examples."""
        known, ids = self._tokenised
        if known != candidates:
            ids = self.texts.encode_answers([text for candidate in candidates for text in candidate])
            self._tokenised = candidates, ids
        return ids

    def prefixes(
        self, encoded: Sequence[Encoded], looks: Sequence[list[Picture]], pixels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the LLM reads before it answers: embeddings `[rows, length, width]` and mask `[rows, length]`."""
        _, sharing = share_images(looks)
        rows = self.texts.prefixes(encoded, [len(look) for look in looks])
        device = self.model.query_tokens.device
        mask = rows.pop("attention_mask").to(device)
        inputs = {"pixel_values": pixels.to(self.model.query_tokens.dtype), **sharing, **rows}
        with torch.no_grad():
            embeds = self.model.prefix(**{name: tensor.to(device) for name, tensor in inputs.items()})
        return embeds, mask

    def _answered(
        self,
        protocol: Protocol,
        rows: Sequence[Row],
        pixels: Tensor,
        shared: CandidateTrie | None,
        stream: Callable[[str], object] | None,
    ) -> list[Response]:
        encoded = self.texts.encode([row.prompt for row in rows], [row.room for row in rows])
        embeds, mask = self.prefixes(encoded, [row.looks for row in rows], pixels)
        if protocol.mode == "generate":
            made = self._generate(protocol, rows, embeds, mask, stream)
        else:
            made = self._rank(protocol, rows, embeds, mask, shared)
        for response, texts in zip(made, encoded, strict=True):
            response.cut = list(texts.cut)
        return made

    def trie(self, candidates: Sequence[Candidate], protocol: Protocol) -> CandidateTrie:
        """The candidates of a question or a benchmark, tokenised, with an end token where the protocol scores one."""
        scored = protocol.end_token if protocol.end_token is not None else not self.texts.decoder_only
        end = self.texts.end if scored else None
        return CandidateTrie.build(self._candidate_ids(tuple(candidates)), end_token=end)

    def shared_trie(self, protocol: Protocol, vocabulary: Sequence[str] | None) -> CandidateTrie | None:
        """As of `Answerer`."""
        options = shared_options(protocol, vocabulary)
        return None if options is None else self.trie(options, protocol)

    def _generate(
        self,
        protocol: Protocol,
        rows: Sequence[Row],
        embeds: Tensor,
        mask: Tensor,
        stream: Callable[[str], object] | None,
    ) -> list[Response]:
        texts = generate_texts(
            self.language_model, self.texts.llm, embeds, mask, protocol.decoding, stream, self.texts.end
        )
        return [response_of(protocol, row, text, text) for row, text in zip(rows, texts, strict=True)]

    def _rank(
        self, protocol: Protocol, rows: Sequence[Row], embeds: Tensor, mask: Tensor, shared: CandidateTrie | None
    ) -> list[Response]:
        tries = shared or [self.trie(row.rankable, protocol) for row in rows]
        with torch.no_grad():
            scores = score_candidates(self.language_model, embeds, mask, tries, rule=protocol.score)
        return [
            ranked_response(protocol, row, each.tolist(), self.ranked) for row, each in zip(rows, scores, strict=True)
        ]


def shared_options(protocol: Protocol, vocabulary: Sequence[str] | None) -> list[Candidate] | None:
    """The candidates that all examples of a benchmark have in common; None where each has its own or none."""
    if protocol.mode == "rank" and (protocol.candidates == VOCABULARY or isinstance(protocol.candidates, list)):
        return protocol.options(Example(id=protocol.benchmark), vocabulary)
    return None


def _row(question: Question, example: Example, root: Path, vocabulary: Sequence[str] | None, hidden: bool) -> Row:
    protocol = question.protocol
    prompt = question.prompt(example)
    candidates = protocol.options(example, vocabulary) if protocol.mode == "rank" else []
    if candidates and not any(text.strip() for candidate in candidates for text in candidate):
        raise UserError(f"{protocol.benchmark}: all candidates of example {example.id} are blank")
    looks = pictures(prompt, root, protocol.frames)
    return Row(example, prompt, looks, None if hidden else protocol.reference(example), candidates, None)


def _media(example: Example) -> list[str]:
    return [example.video] if example.video is not None else example.images


def ranked_response(protocol: Protocol, row: Row, text_scores: Sequence[float], kept: int | None) -> Response:
    """The response to a row of which candidates are ranked.

    Args:
        protocol: of the benchmark.
        row: the example.
        text_scores: of all texts of `row.rankable`, one after the other.
        kept: candidates that are written down; None for all.
    """
    if not all(map(math.isfinite, text_scores)):
        problem = "the model gives a candidate a score that is not a finite number"
        return Response(
            example=row.example.id, images=_media(row.example), prompt=row.prompt.instruction, error=problem
        )
    asked = row.asked
    merged = merge_scores(row.rankable, text_scores)
    # A blank candidate is never chosen; metrics over all candidates see it behind the last of the others.
    scores = [min(merged) - 1] * len(row.candidates)
    for index, score in zip(asked, merged, strict=True):
        scores[index] = score
    order = sorted(asked, key=lambda index: -scores[index])
    best = row.candidates[order[0]][0]
    prediction: Any = best
    if protocol.metric == "visdial":
        prediction = list(scores)
    elif protocol.positive is not None:
        prediction = scores[protocol.positive] - scores[1 - protocol.positive]
    response = response_of(protocol, row, best, prediction)
    response.ranked = [(row.candidates[index][0], scores[index]) for index in order[:kept]]
    response.confidence = 1 / sum(math.exp(score - scores[order[0]]) for score in merged)
    return response


def response_of(protocol: Protocol, row: Row, text: str, prediction: Any) -> Response:
    """The response to a row: its text, and what the metric gets."""
    return Response(
        example=row.example.id,
        images=_media(row.example),
        prompt=row.prompt.instruction,
        prediction=prediction,
        reference=row.reference,
        text=text,
        group=row.example.meta.get(protocol.group_by) if protocol.group_by else None,
        expected=_expected(row),
        clip=row.prompt.clip,
    )


def _expected(row: Row) -> list[str]:
    """The reference in words: answers or captions as they are, an index as the candidate that it points to."""
    if isinstance(row.reference, list):
        return [str(each) for each in row.reference]
    index = row.reference.get("gold_index") if isinstance(row.reference, dict) else row.reference
    return list(row.candidates[index]) if isinstance(index, int) else []
