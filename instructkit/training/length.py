"""How long a run and an epoch of it are in steps, and how often it passes over each of its datasets."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec

from instructkit import sources
from instructkit.config.settings import RunConfig
from instructkit.data.dataset import MANIFEST
from instructkit.data.mixture import Mixture, image_numbers
from instructkit.errors import UserError
from instructkit.runs.run import Run
from instructkit.runs.waiting import on_first_rank
from instructkit.training.datasets import open_parts, training_splits

MANY_PASSES = 20
"""More passes over a dataset than a finetuning is likely to want."""


def with_steps(config: RunConfig, mixture: Callable[[RunConfig], Mixture]) -> RunConfig:
    """The settings with epochs as steps (`max_steps`, `decay_every`); call on every rank, the datasets converted.

    Args:
        config: of the run.
        mixture: gives the run's mixture of its converted datasets.
    """
    training = config.training
    decays = training.schedule == "step" and training.decay_every is None
    if training.epochs is None and not decays:
        return config

    def count() -> tuple[int, int]:
        drawn = mixture(config)
        one = msgspec.structs.replace(config, training=msgspec.structs.replace(training, epochs=1.0))
        return steps_of(config, drawn), steps_of(one, drawn)

    steps, epoch = on_first_rank(count)
    config = _of_steps(config, steps)
    if decays:
        config = msgspec.structs.replace(config, training=msgspec.structs.replace(config.training, decay_every=epoch))
    return config


def planned_steps(config: RunConfig) -> tuple[RunConfig, str | None]:
    """As `with_steps`, before there are data: from converted datasets, or else from their published sizes.

    Returns:
        The settings, and what their steps rest on.

    Raises:
        UserError: a dataset is not converted, and its authors state no size.
    """
    epochs = config.training.epochs
    if epochs is None:
        return config, None
    splits = dict(zip(config.data.train, training_splits(config), strict=True))
    if all((Path(config.data.root) / split / MANIFEST).is_file() for split in splits.values()):
        steps, rest = steps_of(config, mixture_of(config)), f"of the datasets in {config.data.root}"
    else:
        sizes = [_published(entry, split) for entry, split in splits.items() if config.data.weights.get(entry, 1)]
        groups = epochs * sum(sizes) / config.data.group_size
        steps, rest = max(1, math.ceil(groups / config.training.batch_size)), "of published sizes, every group full"
    return _of_steps(config, steps), f"training.epochs={epochs:g}: {steps:,} steps, {rest}"


def _published(entry: str, split: str) -> int:
    source, _, part = split.partition("/")
    known = sources.source(source).splits
    count = known[part].published if part in known else None
    if count is None:
        raise UserError(
            f"training.epochs: {entry} is not converted and has no published size; convert it first, or set max_steps"
        )
    return count


def _of_steps(config: RunConfig, steps: int) -> RunConfig:
    training = msgspec.structs.replace(config.training, max_steps=steps, epochs=None)
    return msgspec.structs.replace(config, training=training)


def mixture_of(config: RunConfig) -> Mixture:
    """The mixture of a run, its datasets opened."""
    images = {part.name: image_numbers(part.examples.rows) for part in open_parts(config, config.data.train)}
    return Mixture(images, config.data.weights, config.data.group_size, config.seed)


def steps_of(config: RunConfig, mixture: Mixture) -> int:
    """Optimizer steps of a run, for `epochs` as many as draw that many samples, the last one whole.

    An epoch is as many samples as the datasets with a probability above 0 hold examples.
    """
    if config.training.epochs is None:
        return config.training.max_steps
    examples = sum(size for name, size in mixture.sizes.items() if mixture.probabilities[name])
    groups = config.training.epochs * examples / mixture.examples_per_group
    return max(1, math.ceil(groups / config.training.batch_size - 1e-9))


def passes(config: RunConfig, mixture: Mixture) -> dict[str, float]:
    """How often a run of `max_steps` passes over each dataset: drawn samples over examples, as expected."""
    samples = config.training.max_steps * config.training.batch_size * mixture.examples_per_group
    return {
        name: chance * samples / mixture.sizes[name] if mixture.sizes[name] else 0.0
        for name, chance in mixture.probabilities.items()
    }


def say_mixture(run: Run[RunConfig], mixture: Mixture, unit: str = "examples") -> None:
    """Say how often the run draws each dataset and passes over it, and warn of many passes.

    Args:
        run: the run.
        mixture: its mixture.
        unit: what the mixture counts.
    """
    counts, widest = passes(run.config, mixture), max(15, *map(len, mixture.names))
    for name, chance in mixture.probabilities.items():
        run.say(
            f"mixture   {name:<{widest}} {mixture.sizes[name]:>13,} {unit}   probability {chance:.4f}   "
            f"{counts[name]:,.2f} passes"
        )
    for line in length_warnings(run.config, mixture, unit):
        run.log.warn(line)


def length_warnings(config: RunConfig, mixture: Mixture, unit: str = "examples") -> list[str]:
    """A line for each dataset that a run passes over more often than `MANY_PASSES`."""
    return [
        f"{name}: {count:,.0f} passes over {mixture.sizes[name]:,} {unit}, more than {MANY_PASSES}; the model may "
        "learn them by heart; epochs=3 would be three passes, or take a smaller max_steps"
        for name, count in passes(config, mixture).items()
        if count > MANY_PASSES
    ]
