"""What all metrics share: the shape of their inputs, of their results and of their errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import datasets
import evaluate

TEXT_FEATURES = datasets.Features(
    {
        "predictions": datasets.Value("string"),
        "references": datasets.Sequence(datasets.Value("string")),
    }
)


class ScoredMetric(evaluate.Metric):
    """A metric whose result is 100 times the mean of its per-example scores, unless a subclass says otherwise.

    Made without arguments it holds its examples in memory and writes no file. Instances go into
    `evaluate.combine([...])` like any other metric; nothing is fetched from a hub.

    Attributes:
        key: Name of the main result in what `compute` returns.
        unit: What a per-example score means, for reports.
        example_features: Types of one prediction and one reference.
        also: Names of results that stand beside the main one wherever that is told.
        scores: `scores(predictions, references) -> list[float]`, one score per example. `nan` stands for an example
            that the metric leaves out.
    """

    key: ClassVar[str]
    unit: ClassVar[str] = "0..1"
    example_features: ClassVar[Any] = TEXT_FEATURES
    also: ClassVar[tuple[str, ...]] = ()
    scores: ClassVar[Callable[..., list[float]]]

    @staticmethod
    def measures(predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, list[list[float]]]:
        """Of a metric with several measures of equal standing, for each and each example the scores it is a mean of."""
        return {}

    def __init__(self, **options: Any) -> None:
        # Several processes can only meet in a file; one process needs none.
        options.setdefault("keep_in_memory", options.get("num_process", 1) == 1)
        super().__init__(**options)

    def _build_data_dir(self) -> str:
        if self.keep_in_memory:
            return str(self._data_dir_root)
        return str(super()._build_data_dir())

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="",
            features=self.example_features,
        )

    def _compute(self, *, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return self.aggregate(list(predictions), list(references))

    def aggregate(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """Score examples without going through `evaluate`.

        Returns:
            `{key: value}`, the same as `compute`.

        Raises:
            ValueError: No example can be scored, or an input does not fit; the message names it.
        """
        return {self.key: 100.0 * mean(self.scores(predictions, references))}


class ExampleMetric(ScoredMetric):
    """A metric of texts that scores each example alone, by `score_one`.

    Attributes:
        skips_unanswered: Whether an example without answers is left out; otherwise it is an error.
    """

    skips_unanswered: ClassVar[bool] = False

    @staticmethod
    def score_one(prediction: str, answers: Sequence[str]) -> float:
        """Score, 0..1, of one prediction against its answers, of which there is at least one."""
        raise NotImplementedError

    @classmethod
    def scores(cls, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """Score, 0..1, of each example.

        Args:
            predictions: One text per example.
            references: The accepted or annotated answers per example.

        Returns:
            One score per example, nan for an example that is left out.

        Raises:
            ValueError: Lengths differ, a reference is a bare string or has no answers.
        """
        check_lengths(predictions, references)
        check_answers([answers for answers in references if len(answers) or not cls.skips_unanswered])
        return [
            cls.score_one(prediction, answers) if len(answers) else math.nan
            for prediction, answers in zip(predictions, references, strict=True)
        ]


def mean(scores: Sequence[float]) -> float:
    """Mean of the scores that are not nan.

    Raises:
        ValueError: There is none.
    """
    valid = [score for score in scores if not math.isnan(score)]
    if not valid:
        raise ValueError(f"none of the {len(scores)} examples has a score: there is nothing to average")
    return math.fsum(valid) / len(valid)


def check_lengths(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    """Raise ValueError unless there is one reference for each prediction."""
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions but {len(references)} references: give one reference per prediction"
        )


def check_answers(references: Sequence[Sequence[object]]) -> None:
    """Raise ValueError unless each reference is a list of at least one answer."""
    for index, answers in enumerate(references):
        if isinstance(answers, str):
            raise ValueError(
                f"reference {index} is the string {answers!r}: give the list of its answers, [{answers!r}]"
            )
        if len(answers) == 0:
            raise ValueError(f"reference {index} has no answers: leave unanswered examples out of the scoring")


def check_finite(values: Sequence[float], index: int) -> None:
    """Raise ValueError if a score of example `index` is nan."""
    if any(math.isnan(value) for value in values):
        raise ValueError(f"prediction {index} holds nan: a score must be a number to be ranked")
