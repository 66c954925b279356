"""Which step of a run was the best, and when to stop looking for a better one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructkit.config.settings import EvaluationConfig
from instructkit.errors import UserError

VALIDATION = "validation_loss"
MEAN = "watch_mean"


def score_of(benchmark: str) -> str:
    """What a watched benchmark's score is called in the log."""
    return f"watch/{benchmark}"


class Best:
    """The best of the evaluations so far, by one of their values.

    Args:
        config: `best` names the value; without it the benchmarks' mean counts, or the loss where none is watched.
        benchmarks: names of those that are watched.

    Raises:
        UserError: nothing is evaluated, or not what `best` names.
    """

    def __init__(self, config: EvaluationConfig, benchmarks: Sequence[str]) -> None:
        self._patience = config.patience
        self._what = [list(benchmarks), config.validation, config.watch_limit]
        self.name = _name(config, [score_of(name) for name in benchmarks]) if config.every else ""
        self.step: int | None = None
        self._value: float | None = None
        self._without_gain = 0

    @property
    def exhausted(self) -> bool:
        """Whether `patience` evaluations in a row brought no gain."""
        return self._patience is not None and self._without_gain >= self._patience

    def take(self, step: int, values: Mapping[str, float]) -> bool:
        """Compare an evaluation with the best before; whether it is better."""
        value = values.get(self.name)
        sign = -1 if self.name.startswith(VALIDATION) else 1
        better = value is not None and (self._value is None or sign * value > sign * self._value)
        if better:
            self.step, self._value, self._without_gain = step, value, 0
        else:
            self._without_gain += 1
        return better

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        values = {"step": self.step, "value": self._value, "without_gain": self._without_gain}
        return {"name": self.name, "what": self._what, **values}

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Go on from a checkpoint, unless it compared something else; whether it did so."""
        if [state["name"], state["what"]] != [self.name, self._what]:
            return False
        self.step, self._value, self._without_gain = state["step"], state["value"], state["without_gain"]
        return True


def _name(config: EvaluationConfig, scores: Sequence[str]) -> str:
    losses = [VALIDATION] if config.validation else []
    if len(config.validation) > 1:
        losses += [f"{VALIDATION}/{name}" for name in config.validation]
    there = [*([MEAN] if len(scores) > 1 else []), *scores, *losses]
    if not there:
        raise UserError(
            f"evaluation.every={config.every}, but nothing to evaluate: name benchmarks in evaluation.watch, or "
            f"splits in evaluation.validation"
        )
    if config.best is not None and config.best not in there:
        raise UserError(f"evaluation.best={config.best}: not evaluated; there are {', '.join(there)}")
    return config.best or there[0]
