import random
from collections import defaultdict
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


@pytest.mark.parametrize("slice_size", [3, 50, 1 << 20])
def test_repeats_are_found_in_order_over_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slice_size: int
) -> None:
    monkeypatch.setattr(repeats, "SLICE", slice_size)
    rng = random.Random(1)
    files, places, texts = [], defaultdict(list), []
    for number in range(6):
        rows = [str(rng.randrange(120)) for _ in range(rng.randrange(40))]
        for row, text in enumerate(rows):
            places[text].append((number, row))
        texts += rows
        files.append(tmp_path / f"{number}.ids")
        files[-1].write_bytes(repeats.hash_texts(rows).tobytes())
    assert sorted(repeats.repeated(files)) == sorted(group for group in places.values() if len(group) > 1)
    found = np.concatenate(list(repeats.distinct(files)))
    assert sorted(found.tolist()) == sorted(repeats.hash_texts(set(texts)).tolist())


def test_nothing_repeats_in_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.ids").write_bytes(b"")
    assert list(repeats.repeated([tmp_path / "a.ids"])) == []
    assert list(repeats.repeated([])) == []
