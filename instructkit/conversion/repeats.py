"""Repeated texts among millions, found by 8-byte hashes on disk.

A file of hashes is a row of little-endian unsigned 64-bit numbers, one per text, in order. The hashes of all files are
held in memory once: 8 bytes per text, 112 MB for the 14 million of the largest dataset.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path

import numpy as np


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """The hashes of texts: the first 8 bytes of BLAKE2b, the same in every process and version."""
    digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8")


def repeated_rows(files: Sequence[Path]) -> list[np.ndarray]:
    """For each file the rows, ascending, whose hash stands in another row of these files as well.

    Two texts can have the same hash: compare the texts of these rows before you call one a repeat.
    """
    hashes = _sorted_hashes(files)
    repeated = hashes[1:][hashes[1:] == hashes[:-1]]
    del hashes
    return [np.flatnonzero(np.isin(np.fromfile(file, "<u8"), repeated)) for file in files]


def distinct(files: Sequence[Path]) -> np.ndarray:
    """The distinct hashes of all files, ascending."""
    hashes = _sorted_hashes(files)
    return hashes[np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]]


def _sorted_hashes(files: Sequence[Path]) -> np.ndarray:
    sizes = [file.stat().st_size // 8 for file in files]
    hashes = np.empty(sum(sizes), "<u8")
    for file, size, end in zip(files, sizes, accumulate(sizes), strict=True):
        hashes[end - size : end] = np.fromfile(file, "<u8")
    hashes.sort()
    return hashes
