"""The pictures of web datasets: each once, with all texts that the datasets list with its address."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from instructkit import sources
from instructkit.conversion.repeats import hash_texts
from instructkit.data.dataset import MANIFEST, Examples, load_examples, not_converted
from instructkit.data.examples import CAPTIONED, Example
from instructkit.errors import UserError

_ROWS = 65_536


class WebPicture(NamedTuple):
    """A picture and what the web says about it.

    Attributes:
        name: dataset and path below its media folder; the same on every machine.
        path: where it lies.
        texts: all that are listed with its address, in order, as they stand.
    """

    name: str
    path: Path
    texts: list[str]


class Captioned:
    """A converted split of pictures with captions.

    Args:
        entry: source or source/split.
        root: folder of converted datasets.

    Raises:
        UserError: it is not converted, or holds no captions.
    """

    def __init__(self, entry: str, root: Path) -> None:
        self.name = split_of(entry)
        if not (root / self.name / MANIFEST).is_file():
            raise UserError(not_converted(self.name, root))
        self.examples: Examples = load_examples(root / self.name)
        self.root = Path(self.examples.manifest.media_root)
        task = self.examples.manifest.task
        if task not in CAPTIONED:
            raise UserError(f"{self.name}: holds no captions, its task is {task}; CapFilt reads pictures with captions")

    def __len__(self) -> int:
        return len(self.examples)

    def path(self, example: Example) -> str:
        """The path of an example's picture below `root`.

        Raises:
            UserError: it shows other than one picture.
        """
        if example.video is not None or len(example.images) != 1:
            shown = "a video" if example.video is not None else f"{len(example.images)} pictures"
            raise UserError(f"{example.id}: shows {shown}; CapFilt reads one picture with its captions")
        return example.images[0]

    def addresses(self) -> Iterator[list[str]]:
        """Where the picture of each example lies, some ten thousand at a time."""
        rows = self.examples.rows.select_columns(["images"]).with_format("arrow")
        for start in range(0, len(self), _ROWS):
            paths = rows[start : start + _ROWS]["images"].to_pylist()
            yield [f"{self.root}/{'|'.join(each)}" for each in paths]


class WebPictures:
    """The distinct pictures of some datasets, in the order in which they are first listed.

    In memory are some numbers an example, whatever the datasets hold.

    Args:
        datasets: what the web says.
    """

    def __init__(self, datasets: Sequence[Captioned]) -> None:
        self.datasets = datasets
        self._starts = np.cumsum([0, *map(len, datasets)])
        hashes = [hash_texts(addresses) for each in datasets for addresses in each.addresses()]
        listed = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
        _, first, which = np.unique(listed, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        number = rank[which]
        self._rows = np.argsort(number, kind="stable")
        self._ends = np.cumsum(np.bincount(number, minlength=len(first)))
        self.listed = len(listed)

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def repeated(self) -> int:
        """How many pictures are listed more than once."""
        return int((np.diff(self._ends, prepend=0) > 1).sum())

    def take(self, numbers: range) -> list[WebPicture]:
        """Some pictures that follow each other.

        Raises:
            UserError: an example shows other than one picture.
        """
        if not len(numbers):
            return []
        starts = [int(self._ends[number - 1]) if number else 0 for number in numbers]
        rows = self._rows[starts[0] : self._ends[numbers[-1]]]
        examples = iter(self._examples(rows))
        found = []
        for number, start in zip(numbers, starts, strict=True):
            dataset, example = next(examples)
            name = dataset.path(example)
            texts = list(example.references)
            for _ in range(int(self._ends[number]) - start - 1):
                other, again = next(examples)
                if other.root / other.path(again) != dataset.root / name:
                    raise UserError(f"{again.id}: its picture's address has the hash of {example.id}'s; leave one out")
                texts += again.references
            found.append(WebPicture(f"{dataset.name}/{name}", dataset.root / name, texts))
        return found

    def _examples(self, rows: np.ndarray) -> list[tuple[Captioned, Example]]:
        """The examples of some rows over all datasets, in order."""
        which = np.searchsorted(self._starts, rows, side="right") - 1
        found: dict[int, tuple[Captioned, Example]] = {}
        for index in np.unique(which):
            mine = rows[which == index]
            dataset = self.datasets[index]
            examples = dataset.examples.take((mine - self._starts[index]).tolist())
            found |= {row: (dataset, example) for row, example in zip(mine.tolist(), examples, strict=True)}
        return [found[row] for row in rows.tolist()]


def split_of(entry: str) -> str:
    """`source/split` of a source or source/split.

    Raises:
        UserError: there is no such source or split.
    """
    name, _, split = entry.partition("/")
    source = sources.source(name)
    source.find_split(split or source.split)
    return f"{name}/{split or source.split}"
