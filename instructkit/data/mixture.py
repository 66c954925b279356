"""Which example comes when: square-root balanced mixing of datasets, in an order that follows from the seed alone.

The paper draws dataset d with p_d = sqrt(S_d) / sum_i sqrt(S_i), S_d its number of examples (section 3.3), and then
moved A-OKVQA down and OKVQA up by hand; `overrides` are such factors.

A `Mixture` is an endless sequence of groups: some questions about one image, so that a batch passes an image through
the vision encoder once. Position t of the sequence is a function of (datasets, seed, t): a run that goes on at step s
needs no saved state but s, and the number of ranks or workers changes nothing.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from instructkit.errors import UserError

Integers = npt.NDArray[np.int64]
_BLOCK = 65_536


def probabilities(sizes: Mapping[str, int], overrides: Mapping[str, float] | None = None) -> dict[str, float]:
    """Training probability of each dataset.

    Args:
        sizes: number of examples by dataset.
        overrides: factors on a dataset's square root, before the probabilities are made to add up to one; 0 leaves
            it out.

    Raises:
        UserError: an override names no dataset or is negative, or nothing is left.
    """
    overrides = overrides or {}
    for name, factor in overrides.items():
        if name not in sizes:
            raise UserError(f"weight of {name!r}: no such dataset in the mixture; it has {', '.join(sizes)}")
        if not factor >= 0 or math.isinf(factor):
            raise UserError(f"weight of {name!r}: must be a number of at least 0, not {factor}")
    roots = {name: math.sqrt(size) * overrides.get(name, 1.0) for name, size in sizes.items()}
    total = sum(roots.values())
    if total == 0:
        raise UserError("the mixture is empty: every dataset has no examples or the weight 0")
    return {name: root / total for name, root in roots.items()}


class Draw(NamedTuple):
    """One group of the sequence.

    Attributes:
        dataset: index of the dataset.
        epoch: how often that dataset has been gone through before.
        rows: indices of its examples; all show the same image.
    """

    dataset: int
    epoch: int
    rows: Integers


class ImageGroups:
    """The examples of one dataset in groups that share an image, in another order every epoch.

    Args:
        images: a number an example, equal where examples show the same image.
        size: maximum number of examples in a group.
        seed: an integer of the run and the dataset.
    """

    def __init__(self, images: Integers, size: int, seed: int) -> None:
        self._images = images
        self._seed = seed
        counts = np.bincount(images) if len(images) else np.zeros(0, np.int64)
        counts = counts[counts > 0]
        chunks = -(-counts // size)
        starts = np.repeat(np.cumsum(counts) - counts, chunks)
        within = np.arange(chunks.sum()) - np.repeat(np.cumsum(chunks) - chunks, chunks)
        self._starts = starts + within * size
        self._stops = np.minimum(self._starts + size, np.repeat(np.cumsum(counts), chunks))
        self._epoch = -1
        self._rows: Integers = np.zeros(0, np.int64)
        self._order: Integers = np.zeros(0, np.int64)

    def __len__(self) -> int:
        """Number of groups in an epoch."""
        return len(self._starts)

    def group(self, epoch: int, index: int) -> Integers:
        """The examples of one group."""
        if epoch != self._epoch:
            random = np.random.Generator(np.random.Philox(key=np.array([self._seed, epoch], np.uint64)))
            self._rows = np.lexsort((random.random(len(self._images)), self._images))
            self._order = random.permutation(len(self))
            self._epoch = epoch
        chunk = self._order[index]
        return self._rows[self._starts[chunk] : self._stops[chunk]]


class Mixture:
    """The endless sequence of groups that training reads.

    Args:
        images: by dataset, a number an example, equal where examples show the same image.
        overrides: factors on the datasets' weights.
        group_size: maximum number of questions about one image in a group.
        seed: of the run.
    """

    def __init__(
        self,
        images: Mapping[str, Integers],
        overrides: Mapping[str, float] | None = None,
        group_size: int = 1,
        seed: int = 0,
    ) -> None:
        self.names = list(images)
        self.sizes = {name: len(rows) for name, rows in images.items()}
        self.probabilities = probabilities(self.sizes, overrides)
        self._seed = seed
        self._datasets = [ImageGroups(rows, group_size, _key(seed, name)) for name, rows in images.items()]
        self._group_probabilities = self._per_group()
        self._blocks: dict[int, tuple[Integers, Integers]] = {}
        self._drawn: list[Integers] = [np.zeros(len(self.names), np.int64)]

    @property
    def groups_per_epoch(self) -> int:
        """Number of groups that all datasets together have."""
        return sum(len(dataset) for dataset in self._datasets)

    @property
    def examples_per_group(self) -> float:
        """Mean number of examples in a group of the sequence."""
        return float(sum(p * self._mean(index) for index, p in enumerate(self._group_probabilities)))

    def __getitem__(self, position: int) -> Draw:
        block, offset = divmod(position, _BLOCK)
        choices, ranks = self._block(block)
        dataset = int(choices[offset])
        turn = int(self._drawn[block][dataset] + ranks[offset])
        epoch, index = divmod(turn, len(self._datasets[dataset]))
        return Draw(dataset, epoch, self._datasets[dataset].group(epoch, index))

    def _mean(self, index: int) -> float:
        groups = len(self._datasets[index])
        return self.sizes[self.names[index]] / groups if groups else 0.0

    def _per_group(self) -> npt.NDArray[np.float64]:
        """Probability that a group comes from a dataset, so that its share of examples is the dataset's probability."""
        weights = [
            p / self._mean(index) if p else 0.0
            for index, p in enumerate(self.probabilities[name] for name in self.names)
        ]
        return np.array(weights) / sum(weights)

    def _block(self, block: int) -> tuple[Integers, Integers]:
        """Datasets of a block of positions, and how many of the same dataset precede each inside the block."""
        while len(self._drawn) <= block:
            choices = self._choices(len(self._drawn) - 1)
            self._drawn.append(self._drawn[-1] + np.bincount(choices, minlength=len(self.names)))
        if block not in self._blocks:
            choices = self._choices(block)
            ranks = np.zeros(len(choices), np.int64)
            for dataset in range(len(self.names)):
                mine = choices == dataset
                ranks[mine] = np.arange(mine.sum())
            self._blocks = {block: (choices, ranks)}
        return self._blocks[block]

    def _choices(self, block: int) -> Integers:
        random = np.random.Generator(np.random.Philox(key=np.array([_key(self._seed, "mixture"), block], np.uint64)))
        return random.choice(len(self.names), size=_BLOCK, p=self._group_probabilities)


def image_numbers(rows: Any) -> Integers:
    """A number an example, equal where examples show the same images or video.

    Args:
        rows: the `datasets.Dataset` of `instructkit.data.dataset.Examples`.
    """
    table: pa.Table = rows.select_columns(["images", "video"]).with_format("arrow")[:]
    key = pc.coalesce(table["video"], pc.binary_join(table["images"], "\n"))
    codes = key.combine_chunks().dictionary_encode().indices
    numbers: Integers = codes.to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers


def picture_counts(rows: Any, frames: int) -> Integers:
    """How many pictures each example shows; a video counts as its frames.

    Args:
        rows: the `datasets.Dataset` of `instructkit.data.dataset.Examples`.
        frames: taken of a video.
    """
    table: pa.Table = rows.select_columns(["images", "video"]).with_format("arrow")[:]
    images = pc.list_value_length(table["images"])
    counts: Integers = pc.if_else(pc.is_valid(table["video"]), frames, images).fill_null(0).to_numpy().astype(np.int64)
    return counts


def _key(seed: int, name: str) -> int:
    """64 bits of a generator's key that follow from a run's seed and a name."""
    if seed < 2**31:
        return (seed << 32) ^ zlib.crc32(name.encode())
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big")


def describe(sizes: Mapping[str, int], chances: Mapping[str, float]) -> Sequence[str]:
    """Lines of a table: dataset, examples, probability."""
    width = max(len(name) for name in sizes)
    return [f"{name:<{width}}  {sizes[name]:>12,}  {chances[name]:.4f}" for name in sizes]
