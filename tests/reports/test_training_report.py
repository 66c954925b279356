"""The report of a training run, as the recipe writes it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from instructkit.config.settings import DataConfig, EvaluationConfig, RunConfig
from instructkit.evaluation.run import evaluate_run
from instructkit.reports.report import finished_report, last_lines, write_report
from tests.reports.conftest import Written

IDENTITY = {"config": {"seed": 0}, "data": {"easy_vqa/train": "1"}}


@pytest.fixture
def config(written: Written, tmp_path: Path) -> RunConfig:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model").symlink_to(written.world.model())
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 1.5}\n')
    return RunConfig(
        output=str(folder),
        data=DataConfig(root=str(written.world.data), train=["easy_vqa"]),
        evaluation=EvaluationConfig(benchmarks=["easy_vqa"], limit=10),
    )


def test_training_then_evaluation(config: RunConfig) -> None:
    folder = Path(config.output)
    said: list[str] = []
    evaluate_run(config, folder, said.append)
    assert any(line.startswith("evaluate  easy_vqa: exact_match") for line in said)
    write_report(config, folder, IDENTITY)
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["training"] == {"step": 2, "loss": 1.5}
    assert report["config"]["evaluation"]["limit"] == 10
    assert set(report["data"]) == {"easy_vqa/train", "easy_vqa/test"}
    assert finished_report(folder, IDENTITY)
    assert not finished_report(folder, {**IDENTITY, "data": {}})
    lines = last_lines(folder)
    assert lines[0].startswith(f"reached   easy-VQA: exact_match {report['benchmarks']['easy_vqa']['value']:.2f} on 10")
    assert "blind baseline" in lines[0]
    assert report["curve"]["losses"] == {"loss": [[1, 2.5], [2, 1.5]]}
    told = "Loss 2.5000 at step 1, 1.5000 at step 2."
    assert told in (folder / "report" / "report.md").read_text()
    page = (folder / "report" / "report.html").read_text()
    assert told in page
    assert 'aria-label="loss by step"' in page
    assert 'aria-label="samples/s by step"' not in page


def test_other_settings_replace_the_responses(config: RunConfig) -> None:
    folder = Path(config.output)
    evaluate_run(config, folder, lambda line: None)
    other = msgspec.structs.replace(config, evaluation=EvaluationConfig(benchmarks=["easy_vqa"], limit=4))
    found = evaluate_run(other, folder, lambda line: None)
    assert found is not None
    assert found.results[0].n == 4


def test_without_benchmarks_there_is_still_a_report(config: RunConfig) -> None:
    folder = Path(config.output)
    plain = msgspec.structs.replace(config, evaluation=EvaluationConfig())
    assert evaluate_run(plain, folder, lambda line: None) is None
    write_report(plain, folder, IDENTITY)
    assert json.loads((folder / "report" / "report.json").read_text())["benchmarks"] == {}
