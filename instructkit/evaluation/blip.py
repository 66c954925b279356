"""A BLIP that answers: captions that begin with a prompt, and questions, generated or ranked (arXiv 2201.12086).

For a caption the prompt is what the decoder's text begins with, behind `[DEC]`. A question is read by the encoder with
the picture, and the decoder writes the answer about what it made of it (paper, section 5.3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from instructkit.errors import UserError
from instructkit.evaluation.answer import RANKED, Answerer, Row, ranked_response, response_of, shared_options
from instructkit.evaluation.generate import Pieces, without_own_defaults
from instructkit.evaluation.rank import by_rule, sums_along
from instructkit.evaluation.responses import Response
from instructkit.evaluation.trie import CandidateTrie
from instructkit.models.batches import Captions, Limits, padded, share_images
from instructkit.models.blip import Blip, Seen, cross_keys
from instructkit.prompts.protocols import Decoding, Protocol, benchmarks, load_protocol
from instructkit.prompts.protocols import Texts as Candidate

MOST_TOKENS = 16384
"""Token positions of one forward pass of a ranking."""
_CAPTIONS = ("captioning", "reading_captioning")
_LACK = {
    "captioning": "writes no captions (a BlipForConditionalGeneration does)",
    "retrieval": "does not compare pictures with texts (a BlipForImageTextRetrieval does)",
    "vqa": "answers no questions (a BlipForQuestionAnswering does)",
}


def way_of(protocol: Protocol, tasks: Collection[str]) -> str:
    """What a protocol asks of a BLIP, of the names in `Blip.tasks`.

    Free words, as `ask` has without a protocol, are a question, or what a caption begins with for a model that answers
    none.
    """
    if protocol.mode == "retrieve":
        return "retrieval"
    free = protocol.task == "llava" and "vqa" not in tasks
    return "captioning" if protocol.task in _CAPTIONS or free else "vqa"


def why_not(protocol: Protocol, tasks: Sequence[str]) -> str | None:
    """Why a BLIP with these tasks cannot do a benchmark, and what to do about it; None where it can."""
    way = way_of(protocol, tasks)
    if way in tasks:
        return None
    can = ", ".join(name for name in benchmarks() if _can(name, tasks))
    return (
        f"the model is a BLIP for {' and '.join(tasks)}, which {_LACK[way]}; name another model, or benchmarks that "
        f"it can do: {can}"
    )


def _can(name: str, tasks: Collection[str]) -> bool:
    """Whether a benchmark is asked as BLIP is asked, and a BLIP with these tasks does it."""
    protocol = load_protocol(name)
    own = protocol.mode == "retrieve" or "blip" in name.split("_")
    return own and way_of(protocol, tasks) in tasks


class BlipAnswerer(Answerer):
    """A BLIP, its tokeniser and the device it is on.

    Args:
        model: put into evaluation mode.
        captions: its tokeniser.
        ranked: how many candidates a response keeps with their scores, the best; None for all.
    """

    def __init__(self, model: Blip, captions: Captions, ranked: int | None = RANKED) -> None:
        text = model.config.text_config
        self.model, self.captions, self.ranked = model.eval(), captions, ranked
        self.image_size = model.config.vision_config.image_size
        self.limits = Limits()
        self.positions: int = text.max_position_embeddings
        self._whole = Captions(captions.tokenizer, self.positions)
        self._begin, self._end = int(text.bos_token_id), int(text.sep_token_id)

    def shared_trie(self, protocol: Protocol, vocabulary: Sequence[str] | None) -> CandidateTrie | None:
        """As of `Answerer`; candidates of captions are ranked without one."""
        options = shared_options(protocol, vocabulary)
        return None if options is None or self._way(protocol) != "vqa" else self._trie(options, protocol)

    def _way(self, protocol: Protocol) -> str:
        if (reason := why_not(protocol, self.model.tasks)) is not None:
            raise UserError(f"{protocol.benchmark}: {reason}")
        return way_of(protocol, self.model.tasks)

    def _room(self, protocol: Protocol, row: Row) -> int | None:
        """There is no room to share out: what does not fit is an error."""
        way, name = self._way(protocol), f"{protocol.benchmark}: example {row.example.id}"
        if len(row.looks) != 1:
            raise UserError(f"{name}: has {len(row.looks)} pictures or frames, and a BLIP looks at one")
        (prompt,) = self._whole.words([row.prompt.instruction])
        written = 1 + (len(prompt) if way == "captioning" else 0)
        if protocol.mode == "rank":
            texts = [text for each in row.rankable for text in each]
            written += max(map(len, self._whole.words(texts)))
        longest = max(len(prompt) + 2, written)
        if longest >= self.positions:
            raise UserError(f"{name}: a text of {longest} tokens is more than the {self.positions} that the BLIP reads")
        return None

    @torch.no_grad()
    def _answered(
        self,
        protocol: Protocol,
        rows: Sequence[Row],
        pixels: Tensor,
        shared: CandidateTrie | None,
        stream: Callable[[str], object] | None,
    ) -> list[Response]:
        weight = self.model.itm_head.weight
        features = self.model.encode_images(pixels.to(weight.device, weight.dtype))
        index = share_images([row.looks for row in rows])[1]["image_index"].to(weight.device)
        prompts = [row.prompt.instruction for row in rows]
        if self._way(protocol) == "captioning":
            begun = [[self._begin, *words] for words in self._whole.words(prompts)]
            states, mask = features[index], None
        else:
            begun = [[self._begin] for _ in prompts]
            read = {name: each.to(weight.device) for name, each in self._whole.rows(prompts).items()}
            states, mask = self.model.read_with(features, index, **read), read["attention_mask"]
        if protocol.mode == "generate":
            texts = self._generate(protocol.decoding, states, mask, begun, stream)
            return [response_of(protocol, row, text, text) for row, text in zip(rows, texts, strict=True)]
        if mask is None:
            scores = [self._rank(protocol, row, states[at : at + 1], begun[at]) for at, row in enumerate(rows)]
        else:
            scores = self._rank_answers(protocol, rows, states, mask, shared)
        return [
            ranked_response(protocol, row, each.tolist(), self.ranked) for row, each in zip(rows, scores, strict=True)
        ]

    def _generate(
        self,
        decoding: Decoding,
        states: Tensor,
        mask: Tensor | None,
        begun: Sequence[list[int]],
        stream: Callable[[str], object] | None,
    ) -> list[str]:
        """A text for each row of states, without what it begins with; rows that begin alike in length run together."""
        groups: dict[int, list[int]] = defaultdict(list)
        for row, ids in enumerate(begun):
            groups[len(ids)].append(row)
        texts = [""] * len(begun)
        for length, rows in groups.items():
            given = torch.tensor([begun[row] for row in rows], device=states.device)
            kept = None if mask is None else mask[rows]
            with without_own_defaults(self.model.text_decoder):
                written = self.model.generate(states[rows], given, kept, **self._options(decoding, length, stream))
            found = self.captions.tokenizer.batch_decode(written[:, length:], skip_special_tokens=True)
            for row, text in zip(rows, found, strict=True):
                texts[row] = text.strip()
        return texts

    def _options(self, decoding: Decoding, length: int, stream: Callable[[str], object] | None) -> dict[str, Any]:
        """Of transformers' `generate`; a text ends at the latest where the model has no more positions."""
        most = min(decoding.max_new_tokens, self.positions - length)
        value, beams = decoding.repetition_penalty, decoding.num_beams
        penalty = [] if value == 1 else [RepetitionPenaltyLogitsProcessor(value, prompt_ignore_length=length)]
        return {
            "do_sample": False,
            "num_beams": beams,
            "min_new_tokens": min(decoding.min_new_tokens, most),
            "max_new_tokens": most,
            "logits_processor": LogitsProcessorList(penalty),
            "streamer": None if stream is None else Pieces(self.captions.tokenizer, stream),
        } | ({"length_penalty": decoding.length_penalty} if beams > 1 else {})

    def _rank(self, protocol: Protocol, row: Row, features: Tensor, begun: list[int]) -> Tensor:
        """Scores of a caption's candidates, which are written about one picture, `[candidates]`."""
        end = [self._end] if self._scores_end(protocol) else []
        ids = [[*begun, *words, *end] for words in self._whole.words([t for each in row.rankable for t in each])]
        scores = []
        at_once = max(1, MOST_TOKENS // max(map(len, ids)))
        for start in range(0, len(ids), at_once):
            part = ids[start : start + at_once]
            rows = padded(part, self._end).to(features.device)
            mask = padded([[1] * len(each) for each in part], 0).to(features.device)
            index = torch.zeros(len(part), dtype=torch.long, device=features.device)
            scores.append(self.model.score(features, index, rows, mask, prompt=len(begun)))
        sums = torch.cat(scores)
        if protocol.score == "mean":
            sums = sums / torch.tensor([len(each) - len(begun) for each in ids], device=sums.device)
        return sums

    def _rank_answers(
        self, protocol: Protocol, rows: Sequence[Row], states: Tensor, mask: Tensor, shared: CandidateTrie | None
    ) -> list[Tensor]:
        """Scores of the candidates of each question, whose beginnings in common are read once, `[candidates]` each."""
        tries = [shared or self._trie(row.rankable, protocol) for row in rows]
        decoder, text = self.model.text_decoder, self.model.config.text_config
        at_once = max(1, MOST_TOKENS * text.hidden_size // text.vocab_size)
        branches = _Branches(self.model, states, mask)
        sums = sums_along(
            branches, lambda hidden: decoder.cls(hidden).float(), tries, at_once, MOST_TOKENS, states.device
        )
        return by_rule(sums, tries, protocol.score)

    def _trie(self, candidates: Sequence[Candidate], protocol: Protocol) -> CandidateTrie:
        ids = self._whole.words([text for candidate in candidates for text in candidate])
        return CandidateTrie.build(ids, end_token=self._end if self._scores_end(protocol) else None)

    @staticmethod
    def _scores_end(protocol: Protocol) -> bool:
        return protocol.end_token is not False  # as BLIP ranks answers


class _Branches:
    """The decoder behind questions, going on along the branches of a trie (`sums_along`)."""

    first = 0

    def __init__(self, model: Blip, states: Tensor, mask: Tensor) -> None:
        keys = cross_keys(model.text_decoder.bert, states)
        self.model = model
        self.seen = Seen(keys, torch.arange(len(states), device=states.device), mask.bool())

    def read(self, token: Tensor, depth: Tensor, visible: Tensor) -> Tensor:
        """As of `DecoderBranches`; nothing is kept."""
        rows = len(self.seen.which)
        return self.model.write_branches(self.seen, token.expand(rows, -1), depth, visible)

    def forget(self, states: int) -> None:
        """Nothing was kept."""
