"""The mini-world's BLIP-2, made anew in a few steps: what each part is made of, and that nothing is made twice."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from instructkit.errors import UserError
from instructkit.models.save import load_model
from instructkit.world.captions import describe
from instructkit.world.draw import draw_picture
from instructkit.world.pairs import HEAD, LINES, SENTENCES, pictured, write_pairs
from tests.evaluation.world import recipe_module

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--pictures", "24", "--size", "tiny", "--ranks", "1", "max_steps=2", "batch_size=8"]
MOST_PARAMETERS, MOST_BYTES = 5_500_000, 12_000_000


def make(out: Path) -> str:
    command = [sys.executable, str(ROOT / "recipes" / "pretrain_mini.py"), "--out", str(out)]
    command += ["--queries", "8", "--queries", "3", *SMALL]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stdout


@pytest.mark.full
def test_every_part_is_made_once(tmp_path: Path) -> None:
    make(tmp_path)
    for name, queries in (("model", 8), ("model-3", 3)):
        model, texts = load_model(str(tmp_path / name))
        assert model.query_tokens.shape[1] == queries
        assert sum(weight.numel() for weight in model.parameters()) <= MOST_PARAMETERS
        assert sum(path.stat().st_size for path in (tmp_path / name).rglob("*") if path.is_file()) <= MOST_BYTES
        assert {tensor.dtype for tensor in load_file(tmp_path / name / "model.safetensors").values()} == {torch.float16}
        assert texts.qformer is not None
    own, other = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "model-3"))
    for key in own:  # the norm behind the encoder is trained, as BLIP-2 trains it
        if key.startswith("vision_model.") and ".post_layernorm." not in key:
            torch.testing.assert_close(own[key], other[key], msg=key)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    make(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == made


def test_a_run_gets_its_ranks_and_one_that_fails_ends_all_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    module, commands = recipe_module("pretrain_mini"), []

    def fail(command: list[str]) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 2)

    monkeypatch.setattr(subprocess, "run", fail)
    options = argparse.Namespace(ranks=2, settings={"max_steps": 3})
    with pytest.raises(UserError, match="x: the run of text_world ended with an error"):
        module.run("text_world", Path("x"), {"data.text": Path("t.jsonl")}, options)
    (command,) = commands
    assert command[command.index("--num_accelerators") + 1] == "2"
    assert command[-4:] == ['data.text="t.jsonl"', "max_steps=3", 'output="x"', "resume=true"]


def test_parts_that_other_options_made_are_not_taken(tmp_path: Path) -> None:
    module = recipe_module("pretrain_mini")
    for _ in range(2):
        module.check_same(tmp_path / "mini", {"pictures": 24})
    with pytest.raises(UserError, match=r"mini: its parts were made with \{'pictures': 24\}, not with"):
        module.check_same(tmp_path / "mini", {"pictures": 60_000})


def test_pictures_come_with_a_description_and_sentences_in_two_parts(tmp_path: Path) -> None:
    write_pairs(tmp_path / "raw", 6)
    write_pairs(tmp_path / "again", 6)
    listed = sorted((tmp_path / "raw" / "images").rglob("*.jpg"))
    assert [path.read_bytes() for path in listed] == [
        path.read_bytes() for path in sorted((tmp_path / "again" / "images").rglob("*.jpg"))
    ]
    parts = [json.loads(line) for line in (tmp_path / "raw" / LINES).read_text().splitlines()]
    assert [tmp_path / "raw" / part["image"] for part in parts] == [
        path for path in listed for _ in range(1 + SENTENCES)
    ]
    for number, path in enumerate(listed):
        scene = pictured(number)
        whole, *others = parts[number * (1 + SENTENCES) : (number + 1) * (1 + SENTENCES)]
        assert (whole["instruction"], f"{HEAD} {whole['answer']}") == (HEAD, describe(scene))
        assert all(part["instruction"] != HEAD for part in others)
        assert np.abs(np.asarray(Image.open(path), int) - np.asarray(draw_picture(scene), int)).mean() < 4
