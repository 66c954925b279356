"""Which examples of a split a benchmark takes, and in which batches they are answered."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from random import Random
from typing import NamedTuple

import numpy as np

from instructkit.data.dataset import Examples
from instructkit.data.examples import Example
from instructkit.data.mixture import image_numbers
from instructkit.errors import UserError
from instructkit.prompts.jinja import Text
from instructkit.prompts.protocols import Protocol
from instructkit.prompts.templates import Prompt


class Wording(NamedTuple):
    """A training wording that stands in for a protocol's prompt.

    Attributes:
        name: in its file of `templates/train`.
        instruction: its Jinja.
        text: the same, compiled.
    """

    name: str
    instruction: str
    text: Text


class Question(NamedTuple):
    """How a benchmark asks.

    Attributes:
        protocol: the benchmark.
        wording: instead of the protocol's instruction; None for that itself.
    """

    protocol: Protocol
    wording: Wording | None = None

    def prompt(self, example: Example) -> Prompt:
        """The prompt of one example."""
        if self.wording is None:
            return self.protocol.prompt(example)
        return self.protocol.prompt(for_wordings(self.protocol, example), self.wording.text)


def for_wordings(protocol: Protocol, example: Example) -> Example:
    """The example as training wordings are to see it: without options where the protocol does not show them."""
    if not example.choices or "choices" in protocol.compiled.fields:
        return example
    seen = Example(**{name: getattr(example, name) for name in Example.__struct_fields__})
    seen.choices = []
    return seen


class Plan(NamedTuple):
    """What is to be answered.

    Attributes:
        order: ids in the order of the split.
        batches: positions in the split, batch by batch.
        names: ids, batch by batch.
        available: examples of the split that belong to the benchmark, those beyond a limit included.
    """

    order: list[str]
    batches: list[list[int]]
    names: list[list[str]]
    available: int


def draw(protocol: Protocol, examples: Examples, limit: int, seed: int) -> list[int]:
    """Positions of some examples that belong to a benchmark, drawn at random: the same seed draws the same ones."""
    order = Random(f"{seed}/{protocol.benchmark}").sample(range(len(examples)), len(examples))
    drawn: list[int] = []
    while order and len(drawn) < limit:
        part, order = order[:limit], order[limit:]
        drawn += [index for index, each in zip(part, examples.take(part), strict=True) if protocol.keeps(each)]
    return sorted(drawn[:limit])


def make_plan(
    question: Question, examples: Examples, limit: int | None, batch_size: int, rows: Sequence[int] | None = None
) -> Plan:
    """Lay out the batches, the longest prompts first.

    What needs most memory then comes first, and little of a batch is padding. Questions of one image stay together,
    so that a batch encodes it once.

    Args:
        question: how the benchmark asks.
        examples: the split.
        limit: number of examples, from the start of the split.
        batch_size: questions a batch.
        rows: positions of the examples that there are; None for the whole split.
    """
    kept: list[int] = []
    names: list[str] = []
    lengths: list[int] = []
    available = 0
    for index, example in enumerate(examples) if rows is None else zip(rows, examples.take(rows), strict=True):
        if question.protocol.keeps(example):
            available += 1
            if limit is None or len(kept) < limit:
                kept.append(index)
                names.append(example.id)
                lengths.append(_length(question, example))
    if not kept:
        return Plan([], [], [], 0)
    images = image_numbers(examples.rows)[np.array(kept)].tolist()
    order = _longest_first(images, lengths)
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return Plan(
        names,
        [[kept[place] for place in part] for part in parts],
        [[names[place] for place in part] for part in parts],
        available,
    )


def _length(question: Question, example: Example) -> int:
    try:
        return len(question.prompt(example).instruction)
    except UserError:
        return 0  # said with the example's id when it is its turn


def _longest_first(images: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Places, those of one image side by side, by the longest prompt of the image."""
    places = sorted(range(len(images)), key=lambda place: images[place])
    groups = [list(group) for _, group in groupby(places, key=lambda place: images[place])]
    groups.sort(key=lambda group: (-max(lengths[place] for place in group), group[0]))
    return [place for group in groups for place in group]
