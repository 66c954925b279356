"""Repeated texts among millions, found in flat memory: 8-byte hashes on disk, compared a slice of hash space at a time.

A file of hashes is a row of little-endian unsigned 64-bit numbers, one a text, in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

SLICE = 1 << 20
"""Hashes compared at a time; what is held in memory is some 40 bytes each."""

Place = tuple[int, int]
"""Which file (index) and which row."""


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """The hashes of texts: the first 8 bytes of BLAKE2b, the same in every process and version."""
    digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8")


def repeated(files: Sequence[Path]) -> Iterator[list[Place]]:
    """Groups of places with equal hashes, each in order of file and row. Equal hashes need not mean equal texts."""
    for values, places in _slices(files):
        order = np.argsort(values, kind="stable")
        same = values[order][1:] == values[order][:-1]
        group: list[Place] = []
        for index in np.flatnonzero(same):
            if group and group[-1] != tuple(places[order[index]]):
                yield group
                group = []
            group = group or [_place(places[order[index]])]
            group.append(_place(places[order[index + 1]]))
        if group:
            yield group


def distinct(files: Sequence[Path]) -> Iterator[np.ndarray]:
    """The distinct hashes, slice by slice."""
    for values, _ in _slices(files):
        yield np.unique(values)


def _slices(files: Sequence[Path]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(hashes, places) of one slice of hash space after the other, each about `SLICE` long."""
    total = sum(file.stat().st_size // 8 for file in files)
    slices = -(-total // SLICE)
    for number in range(slices):
        values, places = [], []
        for index, file in enumerate(files):
            hashes = np.fromfile(file, "<u8")
            rows = np.flatnonzero((hashes >> np.uint64(8)) % np.uint64(slices) == number)
            values.append(hashes[rows])
            places.append(np.stack([np.full(len(rows), index), rows], 1))
        yield np.concatenate(values), np.concatenate(places)


def _place(pair: Any) -> Place:
    return int(pair[0]), int(pair[1])
