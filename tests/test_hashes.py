import random
import tracemalloc
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from instructkit.conversion import repeats


def test_hashes_are_those_of_blake2b() -> None:
    texts = ["", "vqav2/train/1", "é"]
    expected = [int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") for text in texts]
    assert repeats.hash_texts(texts).tolist() == expected
    assert repeats.hash_texts([]).tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_repeats_are_found_in_order_over_files(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    shards = [[str(rng.randrange(120)) for _ in range(rng.randrange(40))] for _ in range(6)] + [[]]
    counts = Counter(text for texts in shards for text in texts)
    files = [tmp_path / f"{number}.ids" for number in range(len(shards))]
    for file, texts in zip(files, shards, strict=True):
        file.write_bytes(repeats.hash_texts(texts).tobytes())
    expected = [[row for row, text in enumerate(texts) if counts[text] > 1] for texts in shards]
    assert [rows.tolist() for rows in repeats.repeated_rows(files)] == expected
    assert repeats.distinct(files).tolist() == sorted(repeats.hash_texts(counts).tolist())


def test_nothing_repeats_in_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.ids").write_bytes(b"")
    for files in ([], [tmp_path / "a.ids"]):
        assert [rows.tolist() for rows in repeats.repeated_rows(files)] == [[]] * len(files)
        assert repeats.distinct(files).tolist() == []


def test_memory_is_eight_bytes_a_text(tmp_path: Path) -> None:
    """Beside them one byte a text for the comparison, and what one file takes."""
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{number}.ids" for number in range(50)]
    for file in files:
        rng.integers(0, 1 << 63, 10_000, dtype=np.uint64).tofile(file)
    tracemalloc.start()
    try:
        assert sum(map(len, repeats.repeated_rows(files))) == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * 500_000
