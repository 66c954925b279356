"""A benchmark's score from its answers: the metric over all, over groups, and how far chance moves it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from instructkit.evaluation import metrics
from instructkit.evaluation.bootstrap import interval, intervals
from instructkit.evaluation.responses import CAPTION, Answer
from instructkit.prompts.protocols import Protocol

READERS = {"qformer": "the Q-Former", "instruction": "the LLM", CAPTION: "the Q-Former"}
"""Who reads a prompt, by the names that say which of them was cut."""


class Spread(msgspec.Struct, kw_only=True):
    """The score under a training wording instead of the protocol's prompt.

    Attributes:
        wording: its name in `templates/train`.
        instruction: its Jinja.
        value: as the benchmark's.
        n: examples that were scored.
        errors: examples that have an error instead of an answer.
        cut: as the benchmark's.
    """

    wording: str
    instruction: str
    value: float
    n: int
    errors: int = 0
    cut: dict[str, int] = {}


class Result(msgspec.Struct, kw_only=True):
    """What a benchmark came to.

    Attributes:
        benchmark: name of the protocol.
        title: how papers write it.
        role: `held-in`, `held-out` or `extra`.
        metric: name of the metric.
        value: 0 to 100; CIDEr times 100.
        interval: 95% of bootstrap draws of the pictures lie between these; None for a single picture.
        n: examples that were scored.
        available: examples that the split has for this protocol.
        protocol_version: of the protocol.
        details: all that the metric gives.
        intervals: the same as `interval` of each of the details, where the metric has measures of equal standing.
        groups: value and number of examples by group, where the protocol names one; no value where the metric is not
            defined on the group, such as CIDEr on one image.
        errors: examples that have an error instead of an answer, and the error; they are not scored.
        prompt: the first example's prompt, byte for byte.
        cut: prompts of which a limit left the end alone, by who reads it: `qformer`, `instruction` (LLM).
        spread: scores under training wordings.
    """

    benchmark: str
    title: str
    role: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    n: int
    available: int
    protocol_version: int
    details: dict[str, float]
    intervals: dict[str, tuple[float, float] | None] = {}
    groups: dict[str, tuple[float | None, int]] = {}
    errors: dict[str, str] = {}
    prompt: str = ""
    cut: dict[str, int] = {}
    spread: list[Spread] = []


class NotEvaluated(msgspec.Struct, kw_only=True):
    """A benchmark that was asked for and has no score.

    Attributes:
        benchmark: name of the protocol.
        title: how papers write it.
        role: `held-in`, `held-out` or `extra`.
        reason: why.
        hidden: it was answered, but the split's answers are not public.
        errors: examples that have an error instead of an answer, and the error.
        cut: prompts of which a limit left the end alone, by who reads it: `qformer`, `instruction` (LLM).
    """

    benchmark: str
    title: str
    role: str
    reason: str
    hidden: bool = False
    errors: dict[str, str] = {}
    cut: dict[str, int] = {}


def score(protocol: Protocol, answers: Sequence[Answer], available: int) -> Result | NotEvaluated:
    """Score answers with the protocol's metric.

    Args:
        protocol: names metric and groups.
        answers: in the order of the split.
        available: examples that the split has for this protocol.
    """
    errors = errors_of(answers)
    scored = [answer for answer in answers if answer.error is None]
    missing = partial(
        NotEvaluated,
        benchmark=protocol.benchmark,
        title=protocol.title,
        role=protocol.role,
        errors=errors,
        cut=cut_of(answers),
    )
    if not scored:
        first = next(iter(errors.values()))
        return missing(reason=f"all {len(errors):,} examples failed, the first: {first}")
    try:
        details = aggregate(protocol, scored)
        spread = interval(protocol.metric, scored)
        others = intervals(protocol.metric, scored)
    except ValueError as error:  # such as an AUC of one class
        return missing(reason=f"no {protocol.metric} can be computed: {error}")
    groups: dict[str, list[Answer]] = {}
    for answer in scored:
        if answer.group is not None:
            groups.setdefault(answer.group, []).append(answer)
    key = metrics.load(protocol.metric).key
    return Result(
        benchmark=protocol.benchmark,
        title=protocol.title,
        role=protocol.role,
        metric=protocol.metric,
        value=details[key],
        interval=spread,
        n=len(scored),
        available=available,
        protocol_version=protocol.version,
        details=details,
        intervals=others,
        groups={name: (_value(protocol, part), len(part)) for name, part in sorted(groups.items())},
        errors=errors,
        prompt=scored[0].prompt,
        cut=cut_of(answers),
    )


def _value(protocol: Protocol, answers: Sequence[Answer]) -> float | None:
    try:
        return aggregate(protocol, answers)[metrics.load(protocol.metric).key]
    except ValueError:  # told as "cannot be computed" wherever the group is shown
        return None


def errors_of(answers: Sequence[Answer]) -> dict[str, str]:
    """Examples that have an error instead of an answer, and the error."""
    return {answer.example: answer.error for answer in answers if answer.error is not None}


def cut_of(answers: Sequence[Answer]) -> dict[str, int]:
    """How many prompts were cut for each reader; readers of whole prompts are left out."""
    return dict(Counter(sorted(reader for answer in answers for reader in answer.cut)))


def cut_phrase(cut: Mapping[str, int]) -> str:
    """What was cut how, in words; for a `cut` that is not empty."""
    if CAPTION in cut:
        return f"captions longer than the limit, their beginning kept: {cut[CAPTION]:,}"
    told = ", ".join(f"{number:,} for {READERS[name]}" for name, number in cut.items())
    return f"prompts longer than the limit, their end kept: {told}"


def value_phrase(metric: str, value: float, details: Mapping[str, float]) -> str:
    """A score with the metric's name, or each of several that stand side by side with its own."""
    found = metrics.load(metric)
    if not found.also:
        return f"{metric} {value:.2f}"
    return ", ".join(f"{name} {details[name]:.2f}" for name in (found.key, *found.also))


def aggregate(protocol: Protocol, answers: Sequence[Answer]) -> dict[str, float]:
    """All that the protocol's metric gives over some answers.

    Raises:
        ValueError: the metric is not defined on them.
    """
    metric = metrics.load(protocol.metric)
    return metric.aggregate([answer.prediction for answer in answers], [answer.reference for answer in answers])
