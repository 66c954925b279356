"""One benchmark: the examples of a protocol through a model, every response written down, then the metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from instructkit import metrics
from instructkit.batches import Texts, decode, pictures, share_images
from instructkit.errors import UserError
from instructkit.evaluation.generate import generate_texts
from instructkit.evaluation.rank import score_candidates
from instructkit.evaluation.responses import Response, ResponseFile
from instructkit.evaluation.trie import CandidateTrie
from instructkit.examples import Example, Examples, load_examples
from instructkit.mixture import image_numbers
from instructkit.models.instruct_blip import InstructBlip
from instructkit.prompts import Prompt
from instructkit.protocols import VOCABULARY, Protocol, merge_scores

Progress = Callable[[int], object]
RANKED = 100


class Result(msgspec.Struct, kw_only=True):
    """What a benchmark came to.

    Attributes:
        benchmark: name of the protocol.
        title: how papers write it.
        metric: name of the metric.
        value: 0 to 100; CIDEr times 100.
        n: examples that were scored.
        available: examples that the split has for this protocol.
        protocol_version: of the protocol.
        details: all that the metric gives.
        groups: value and number of examples by group, where the protocol names one.
    """

    benchmark: str
    title: str
    metric: str
    value: float
    n: int
    available: int
    protocol_version: int
    details: dict[str, float]
    groups: dict[str, tuple[float, int]] = {}


class Evaluator:
    """A model, its tokenisers and the device it is on, ready to answer prompts.

    Args:
        model: put into evaluation mode.
        texts: its tokenisers.
        image_size: pixels of a side.
    """

    def __init__(self, model: InstructBlip, texts: Texts, image_size: int) -> None:
        self.model = model.eval()
        self.texts = texts
        self.image_size = image_size

    def prefixes(self, prompts: Sequence[Prompt], root: Path, frames: int) -> tuple[Tensor, Tensor]:
        """What the LLM reads before it answers: embeddings `[rows, length, width]` and mask `[rows, length]`."""
        looks = [pictures(prompt, root, frames) for prompt in prompts]
        distinct, sharing = share_images(looks)
        rows = self.texts.prefixes(self.texts.encode(prompts), [len(look) for look in looks])
        device = self.model.query_tokens.device
        mask = rows.pop("attention_mask").to(device)
        inputs = {"pixel_values": decode(distinct, self.image_size), **sharing, **rows}
        with torch.no_grad():
            embeds = self.model.prefix(**{name: tensor.to(device) for name, tensor in inputs.items()})
        return embeds, mask

    def trie(self, candidates: Sequence[str], protocol: Protocol) -> CandidateTrie:
        """The candidates of a question or a benchmark, tokenised, with an end token where the protocol scores one."""
        scored = protocol.end_token if protocol.end_token is not None else not self.texts.decoder_only
        end = self.texts.llm.eos_token_id if scored else None
        return CandidateTrie.build(self.texts.encode_answers(candidates), end_token=end)


def evaluate_benchmark(
    evaluator: Evaluator,
    protocol: Protocol,
    examples: Examples,
    folder: Path,
    *,
    root: Path | None = None,
    vocabulary: Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    progress: Progress = lambda examples: None,
) -> Result:
    """Answer and score the examples of a benchmark.

    Args:
        evaluator: the model.
        protocol: the benchmark.
        examples: the split that the protocol names.
        folder: `responses.jsonl` is kept in here; an evaluation that was stopped goes on behind its last whole batch.
        root: folder that media paths start from, in place of the manifest's.
        vocabulary: candidates, for protocols that take them from other splits.
        limit: at most so many examples, the first of the split.
        batch_size: questions a forward pass.
        progress: called with the number of examples done since the last call.

    Raises:
        UserError: the split has no example for the protocol, or a picture is missing or broken.
    """
    kept = [index for index, example in enumerate(examples) if protocol.keeps(example)]
    if not kept:
        raise UserError(f"{protocol.benchmark}: no example of {examples.folder} belongs to it")
    order = _by_image(examples, kept[:limit])
    folder.mkdir(parents=True, exist_ok=True)
    file = ResponseFile(folder / "responses.jsonl", batch_size)
    done = file.keep_whole_batches(len(order))
    progress(done)
    shared = _shared_trie(evaluator, protocol, vocabulary)
    for start in range(done, len(order), batch_size):
        batch = examples.take(order[start : start + batch_size])
        file.append(answer(evaluator, protocol, batch, root or Path(examples.manifest.media_root), vocabulary, shared))
        progress(len(batch))
    return score(protocol, file.read(), len(kept))


def answer(
    evaluator: Evaluator,
    protocol: Protocol,
    examples: Sequence[Example],
    root: Path,
    vocabulary: Sequence[str] | None = None,
    shared: CandidateTrie | None = None,
) -> list[Response]:
    """Responses to some examples, in one forward pass of the image encoder and the Q-Former."""
    prompts = [protocol.prompt(example) for example in examples]
    embeds, mask = evaluator.prefixes(prompts, root, protocol.frames)
    if protocol.mode == "generate":
        texts = generate_texts(evaluator.model, evaluator.texts.llm, embeds, mask, protocol.decoding)
        return [
            _response(protocol, example, prompt, text, text)
            for example, prompt, text in zip(examples, prompts, texts, strict=True)
        ]
    options = [protocol.options(example, vocabulary) for example in examples]
    tries = shared or [evaluator.trie([text for texts in option for text in texts], protocol) for option in options]
    with torch.no_grad():
        scores = score_candidates(evaluator.model.language_model, embeds, mask, tries, rule=protocol.score)
    return [
        _ranked(protocol, example, prompt, [texts[0] for texts in option], merge_scores(option, row.tolist()))
        for example, prompt, option, row in zip(examples, prompts, options, scores, strict=True)
    ]


def score(protocol: Protocol, responses: Sequence[Response], available: int) -> Result:
    """Score responses with the protocol's metric."""
    metric = metrics.load(protocol.metric)

    def compute(part: Sequence[Response]) -> dict[str, float]:
        return metric.aggregate([r.prediction for r in part], [r.reference for r in part])

    details = compute(responses)
    groups: dict[str, list[Response]] = {}
    for response in responses:
        if response.group is not None:
            groups.setdefault(response.group, []).append(response)
    return Result(
        benchmark=protocol.benchmark,
        title=protocol.title,
        metric=protocol.metric,
        value=details[metric.key],
        n=len(responses),
        available=available,
        protocol_version=protocol.version,
        details=details,
        groups={name: (compute(part)[metric.key], len(part)) for name, part in sorted(groups.items())},
    )


def load_vocabulary(protocol: Protocol, root: Path) -> list[str] | None:
    """The candidates that a protocol takes from other splits, read from `root/<source>/<split>`; else None."""
    if protocol.candidates != VOCABULARY or protocol.vocabulary is None:
        return None
    splits = [load_examples(root / protocol.source / split) for split in protocol.vocabulary.splits]
    return protocol.vocabulary.texts(example for split in splits for example in split)


def _by_image(examples: Examples, indices: Sequence[int]) -> list[int]:
    """The same examples with those of one image side by side, so that a batch encodes it once."""
    numbers = image_numbers(examples.rows)[np.array(indices)]
    return [indices[place] for place in np.argsort(numbers, kind="stable")]


def _shared_trie(evaluator: Evaluator, protocol: Protocol, vocabulary: Sequence[str] | None) -> CandidateTrie | None:
    """The trie of candidates that all examples share, built once; None where each has its own or none."""
    if protocol.mode == "generate":
        return None
    if protocol.candidates == VOCABULARY or isinstance(protocol.candidates, list):
        options = protocol.options(Example(id=protocol.benchmark), vocabulary)
        return evaluator.trie([text for texts in options for text in texts], protocol)
    return None


def _ranked(
    protocol: Protocol, example: Example, prompt: Prompt, candidates: Sequence[str], scores: Sequence[float]
) -> Response:
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    best = candidates[order[0]]
    prediction: Any = best
    if protocol.metric == "visdial":
        prediction = list(scores)
    elif protocol.positive is not None:
        prediction = scores[protocol.positive] - scores[1 - protocol.positive]
    response = _response(protocol, example, prompt, best, prediction)
    response.ranked = [(candidates[index], scores[index]) for index in order[:RANKED]]
    response.confidence = 1 / sum(math.exp(score - scores[order[0]]) for score in scores)
    return response


def _response(protocol: Protocol, example: Example, prompt: Prompt, text: str, prediction: Any) -> Response:
    return Response(
        example=example.id,
        images=prompt.images or ([prompt.video] if prompt.video else []),
        prompt=prompt.instruction,
        prediction=prediction,
        reference=protocol.reference(example),
        text=text,
        group=example.meta.get(protocol.group_by) if protocol.group_by else None,
    )


def blind_baseline(train: Iterable[Example], test: Iterable[Example]) -> float:
    """Accuracy, 0 to 100, of answering every question with its most frequent training answer, without the image.

    A question that training never asks counts as wrong.
    """
    counts: dict[str, dict[str, int]] = {}
    for example in train:
        asked = counts.setdefault(example.question or "", {})
        for given in example.answers:
            asked[given] = asked.get(given, 0) + 1
    best = {question: max(given, key=lambda text: given[text]) for question, given in counts.items()}
    right = [best.get(example.question or "") in example.answers for example in test]
    return 100 * sum(right) / len(right)
