"""A torn checkpoint is seen, whatever byte it broke at, and the one before is used."""

from __future__ import annotations

import random
import shutil

import pytest

from instructkit.training.checkpoints import COMPLETE, torn
from instructkit.training.checkpoints import _newest_whole as newest_whole


@pytest.fixture
def checkpoints(one, tmp_path):
    return shutil.copytree(one / "zero2-fp32" / "checkpoints", tmp_path / "checkpoints")


def test_checkpoints_that_are_whole(checkpoints):
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000002", "step-00000004"]
    assert torn(checkpoints / "step-00000004") is None
    assert newest_whole(checkpoints, pytest.fail) == checkpoints / "step-00000004"


def test_a_file_cut_at_any_byte_a_flipped_bit_and_a_missing_file_are_seen(checkpoints):
    random.seed(0)
    folder = checkpoints / "step-00000004"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 3
    for file in files:
        content = file.read_bytes()
        for size in (0, 1, *random.choices(range(len(content)), k=10), len(content) - 1):
            file.write_bytes(content[:size])
            assert torn(folder), f"{file} cut at byte {size}"
        if file.name != COMPLETE:
            place = random.randrange(len(content))
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            assert torn(folder), f"{file} flipped at byte {place}"
        file.unlink()
        assert torn(folder), f"{file} missing"
        file.write_bytes(content)
    assert torn(folder) is None


def test_the_checkpoint_before_a_torn_one_is_used_with_a_line_that_says_so(checkpoints):
    (checkpoints / "step-00000004" / COMPLETE).unlink()
    lines: list[str] = []
    assert newest_whole(checkpoints, lines.append) == checkpoints / "step-00000002"
    assert len(lines) == 1
    assert "step-00000004: no readable complete.json" in lines[0]
    shutil.rmtree(checkpoints / "step-00000002" / "state")
    assert newest_whole(checkpoints, lines.append) is None
    assert newest_whole(checkpoints / "nowhere", pytest.fail) is None
