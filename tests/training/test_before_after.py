"""Answers before and after: those of the two models, to questions that nobody picked, and where the queries look."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from instructkit.data.dataset import load_examples
from instructkit.evaluation.assistant import load_model
from instructkit.evaluation.run import benchmark_folder
from instructkit.files import read_json
from instructkit.reports.report import read_report
from tests.evaluation.world import ROOT, World
from tests.training.mini import launch

MINI = Path(__file__).with_name("mini.yaml")
BENCHMARKS = ("gqa", "vsr", "msvd_qa")
"""The last asks about films, whose frames are no single picture."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("before_after"))
    for name in BENCHMARKS:
        made.benchmark(name)
    made.split("vqav2", "train")
    return made


def words(world: World, output: Path, **settings: Any) -> list[str]:
    given = {
        "model.name": world.model(),
        "data.root": world.data,
        "data.train": "[vqav2]",
        "benchmarks": f"[{', '.join(BENCHMARKS)}]",
        "output": output,
        "training.batch_size": 4,
        "max_steps": 2,
        **settings,
    }
    return ["--config", str(MINI), *(f"{key}={value}" for key, value in given.items())]


def answered(run: Path) -> dict[str, str]:
    """By id, what the evaluation of a run found."""
    found = {}
    for name in BENCHMARKS[:2]:
        for line in (benchmark_folder(run, name) / "responses.jsonl").read_text().splitlines():
            response = json.loads(line)
            found[response["example"]] = response["text"]
    return found


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (2, 0), (2, 3)])
def test_the_report_shows_answers_before_and_after_and_where_the_queries_look(
    ranks: int, stage: int, world: World, tmp_path: Path
) -> None:
    settings = {"training.zero_stage": stage}
    launch(ranks, ROOT / "recipes" / "instruct.py", words(world, tmp_path / "run", **settings))
    world.evaluate(",".join(BENCHMARKS[:2]), tmp_path / "before")
    cases = read_report(tmp_path / "run")["before_after"]
    asked = [case["example"] for case in cases]
    chosen = []
    for source, split in (("gqa", "testdev"), ("vsr", "test")):
        ids = [example.id for example in load_examples(world.data / source / split) if example.images]
        chosen.append(sorted(ids, key=lambda name: (zlib.crc32(name.encode()), name)))
    turns = [name for pair in zip(*chosen, strict=False) for name in pair]
    assert asked[: min(len(turns), 12)] == turns[:12]
    before, after = answered(tmp_path / "before"), answered(tmp_path / "run")
    assert [case["before"] for case in cases] == [before[name] for name in asked]
    assert [case["after"] for case in cases] == [after[name] for name in asked]
    assert [case["other"] for case in cases] == [case["prompt"] for case in [*cases[1:], cases[0]]]
    model = load_model(tmp_path / "run" / "model")
    for case in cases[:3]:
        for prompt, found in zip((case["prompt"], case["other"]), case["maps"], strict=True):
            shares = model.attention(case["picture"], prompt).mean(0)
            assert shares.tolist() == [pytest.approx(row, abs=6e-4) for row in found]
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "Before and after" in page
    assert page.count('<div class="looks">') == len(cases)
    assert "before: " in (tmp_path / "run" / "report" / "report.md").read_text()


def test_a_q_former_that_reads_no_instruction_has_no_maps(world: World, tmp_path: Path) -> None:
    launch(1, ROOT / "recipes" / "instruct.py", words(world, tmp_path / "run", **{"model.instruction_aware": "false"}))
    cases = read_report(tmp_path / "run")["before_after"]
    assert cases
    assert all(case["maps"] == [] for case in cases)
    assert "queries look" not in (tmp_path / "run" / "report" / "report.md").read_text()


def test_a_run_from_random_weights_has_no_answers_before(world: World, tmp_path: Path) -> None:
    launch(1, ROOT / "recipes" / "instruct.py", words(world, tmp_path / "run", **{"model.name": "nano"}))
    assert read_json(tmp_path / "run" / "before_after.json", list, "") == []
    assert "Before and after" not in (tmp_path / "run" / "report" / "report.md").read_text()


def test_a_picture_that_cannot_be_read_is_said_and_ends_no_run(world: World, tmp_path: Path) -> None:
    again = World(tmp_path / "world")
    for name in BENCHMARKS[:1]:
        again.benchmark(name)
    again.split("vqav2", "train")
    examples = load_examples(again.data / "gqa" / "testdev")
    names = sorted((example.id for example in examples), key=lambda name: (zlib.crc32(name.encode()), name))
    broken = next(example for example in examples if example.id == names[0])
    (Path(examples.manifest.media_root) / broken.images[0]).write_bytes(b"torn")
    settings = {"data.root": again.data, "benchmarks": "[gqa]"}
    launch(1, ROOT / "recipes" / "instruct.py", words(world, tmp_path / "run", **settings))
    first, *others = read_report(tmp_path / "run")["before_after"]
    assert broken.images[0] in first["before"] == first["after"]
    assert first["maps"] == []
    assert all(each["maps"] for each in others if each["picture"] != first["picture"])
