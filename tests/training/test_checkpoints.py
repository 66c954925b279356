"""A torn checkpoint is seen, whatever byte it broke at, and the one before is used."""

from __future__ import annotations

import json
import os
import random
import shutil
import zlib
from pathlib import Path

import pytest
import torch

from instructkit.training.checkpoints import COMPLETE, foreign, torn
from instructkit.training.checkpoints import _newest_whole as newest_whole
from tests.matrix import mostly_full
from tests.training.mini import run_all


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


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def states(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.pt"))


def spoil(folder: Path, path: Path, mark: Path) -> None:
    """Put code into a state, and its new size and checksum into the list."""
    content = torch.load(path, weights_only=False)
    torch.save({**content, "extra": Payload(mark)}, path, _use_new_zipfile_serialization=False)
    listed = json.loads((folder / COMPLETE).read_text())
    listed["files"][str(path.relative_to(folder))] = [path.stat().st_size, zlib.crc32(path.read_bytes())]
    (folder / COMPLETE).write_text(json.dumps(listed))


@pytest.mark.parametrize(
    ("stage", "precision"),
    mostly_full(
        [(stage, precision) for precision in ("fp32", "bf16") for stage in range(4)],
        *((0, "fp32"), (2, "fp32"), (3, "fp32"), (2, "bf16")),
    ),
)
def test_code_in_any_state_is_refused_and_does_not_run(stage, precision, one, tmp_path):
    whole = one / f"zero{stage}-{precision}" / "checkpoints" / "step-00000004"
    assert foreign(whole) is None
    assert len(states(whole)) == (2 if stage else 1)
    for number in range(len(states(whole))):
        folder = shutil.copytree(whole, tmp_path / str(number))
        path = states(folder)[number]
        spoil(folder, path, tmp_path / "ran")
        assert torn(folder) is None
        assert path.name in (foreign(folder) or "")
        assert "posix.system" in (foreign(folder) or "")
        assert not (tmp_path / "ran").exists()


def test_a_run_does_not_go_on_from_a_state_with_code(words, one, tmp_path):
    source = shutil.copytree(one / "zero2-fp32", tmp_path / "zero2-fp32")
    folder = source / "checkpoints" / "step-00000002"
    shutil.rmtree(source / "checkpoints" / "step-00000004")
    spoil(folder, states(folder)[-1], tmp_path / "ran")
    run_all(1, tmp_path, {"resumed": [*words, "zero_stage=2", "precision=fp32", "after=zero2-fp32:2"]})
    said = (tmp_path / "resumed" / "error-0.txt").read_text()
    assert "holds posix.system, which no state has; it could run code, so it is not loaded" in said
    assert "\n" not in said
    assert not (tmp_path / "ran").exists()
