"""Ablations: which runs are made, and what the report says of them, by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from instructkit.config.settings import BenchmarksConfig, EvaluationRun
from instructkit.data.mixture import Mixture
from instructkit.errors import UserError
from instructkit.reports.ablations import difference, measures_of, write_ablations
from tests.evaluation.world import ROOT, recipe_module

SCORES = {"full": (40.0, 50.0), "bare input": (30.0, 44.0)}


def made_up(gqa: float, vsr: float) -> dict[str, Any]:
    values = {"gqa": gqa, "vsr": vsr, "okvqa": 10.0, "nocaps": 300.0}
    titles = {"gqa": "GQA", "vsr": "VSR", "okvqa": "OKVQA", "nocaps": "NoCaps"}
    metrics = {"nocaps": "cider", "okvqa": "vqa_accuracy"}
    entries = {
        name: {
            "value": value,
            "title": titles[name],
            "role": "held-in" if name == "okvqa" else "held-out",
            "metric": metrics.get(name, "exact_match"),
            "miniature": True,
        }
        for name, value in values.items()
    }
    return {"benchmarks": entries}


def reports() -> dict[str, list[dict[str, Any]]]:
    return {name: [made_up(gqa + seed, vsr - seed) for seed in range(3)] for name, (gqa, vsr) in SCORES.items()}


def test_differences_are_paired_by_seed() -> None:
    # -1, -2, -3: mean -2, deviation 1, standard error 1 / sqrt(3).
    found = difference([10, 20, 30], [9, 18, 27])
    assert (found.by_seed, found.mean, found.error) == ([-1, -2, -3], -2, pytest.approx(0.57735, abs=1e-5))
    assert str(found) == "-2.00 ± 0.58"
    assert str(difference([10], [12])) == "+2.00"


def test_averages_leave_captioning_out() -> None:
    found = measures_of(reports())
    assert found["held-out, in per cent"]["full"] == [45, 45, 45]  # of GQA and VSR
    assert found["held-in"]["bare input"] == [10, 10, 10]
    assert found["NoCaps"]["full"] == [300, 300, 300]
    assert found["GQA"]["full"] == [40, 41, 42]


def test_the_report_keeps_the_papers_figures_apart(tmp_path: Path) -> None:
    found = write_ablations(reports(), ["LoRA on the LLM: no."], tmp_path)
    assert found["differences"]["GQA"]["bare input"]["by_seed"] == [-10, -10, -10]
    assert json.loads((tmp_path / "report.json").read_text())["scores"]["VSR"]["full"] == [50, 49, 48]
    shown = (tmp_path / "report.md").read_text()
    own, paper = shown.split("The paper, on the real benchmarks: not comparable")
    assert "| bare input | -8.00 ± 0.00 | +0.00 ± 0.00 | -10.00 ± 0.00 | -6.00 ± 0.00 |" in own
    assert "| full | 94.1 | 48.4 | 70.4 | 50.0 | 32.7 | 53.1 |" in paper
    assert "94.1" not in own
    assert "Left out:" in own
    assert "In miniature" in own
    assert "NoCaps" in (tmp_path / "report.html").read_text()


def test_each_variation_is_run_with_each_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, runs, asked = recipe_module("ablations"), [], []

    def run(config: str, settings: dict[str, Any], ranks: int) -> None:
        assert ranks == 2
        runs.append(settings)
        folder = Path(settings["output"])
        folder.mkdir(parents=True)

    def evaluate(settings: dict[str, Any], ranks: int) -> Path:
        asked.append(settings)
        return Path(settings["output"])

    class Own(NamedTuple):
        settings: EvaluationRun

    monkeypatch.setattr(module, "run_on_ranks", run)
    monkeypatch.setattr(module, "evaluate_on_ranks", evaluate)
    monkeypatch.setattr(module, "prepare_data", lambda config, say: None)
    monkeypatch.setattr(module, "read_report", lambda folder: made_up(1.0, 2.0))
    whole = EvaluationRun(output="x", evaluation=BenchmarksConfig(benchmarks=["held-out"], limit=7))
    monkeypatch.setattr(module, "read_evaluation", lambda folder: Own(whole))
    mixture = Mixture({"vqav2": np.arange(400), "okvqa": np.arange(100), "aokvqa": np.arange(9)}, {"aokvqa": 0})
    monkeypatch.setattr(module, "mixture_of", lambda config: mixture)
    model = tmp_path / "model-2"
    model.mkdir()
    (model / "config.json").write_text('{"num_query_tokens": 2}')
    options = Namespace(seeds=2, out=tmp_path, begin_with=[model], ranks=2)
    module.ablate("world", {"max_steps": 5, "towers.llm": "frozen"}, options, lambda line: None)
    assert len(runs) == 2 * (len(module.VARIATIONS) + 1)
    assert len({str(each["output"]) for each in runs}) == len(runs)
    assert [each["seed"] for each in runs] == [0] * 7 + [1] * 7
    own = [{key: value for key, value in each.items() if key not in ("seed", "output")} for each in runs[:7]]
    common = {"max_steps": 5, "towers.llm": "frozen"}
    assert own == [
        common,
        {**common, "model.instruction_aware": False},
        # Times 20 and 10, the square roots; what the config leaves out stays out.
        {**common, "data.weights": {"vqav2": 0.05, "okvqa": 0.1, "aokvqa": 0}},
        {**common, "data.instructions": "none"},
        {**common, "data.instructions": "name"},
        {"max_steps": 5, "towers.llm": "lora"},
        {**common, "model.name": model},
    ]
    # Runs without instructions are asked as they were trained, too.
    assert [each["evaluation.prompts"] for each in asked] == ["none", "name"] * 2
    assert {each["evaluation.limit"] for each in asked} == {7}
    shown = (tmp_path / "report" / "report.md").read_text()
    assert "| bare input, asked as trained |" in shown
    assert "| 2 queries |" in shown
    runs.clear()
    options = Namespace(seeds=1, out=tmp_path / "trained", begin_with=[], ranks=2)
    module.ablate("world", {}, options, lambda line: None)
    assert len(runs) == 5
    shown = (tmp_path / "trained" / "report" / "report.md").read_text()
    assert "towers.llm=full" in shown
    assert "other numbers of queries: no model with them was named (--begin-with)" in shown
    refused = {
        r"is for recipes/pretrain_qformer\.py": ("stage1_world", {}),
        r"seed=\.\.\.: ablations give each run its own": ("world", {"seed": 3}),
        r"asks no benchmark": ("world", {"benchmarks": []}),
    }
    for message, (config, settings) in refused.items():
        with pytest.raises(UserError, match=message):
            module.ablate(config, settings, options, lambda line: None)
    with pytest.raises(UserError, match=r"trained.*config\.json"):
        module.queries_of(tmp_path / "trained")


@pytest.mark.full
def test_all_variations_of_the_world_train_and_are_read_again(tmp_path: Path) -> None:
    words = ["--seeds", "1", "--out", "runs", "--ranks", "1", "max_steps=2", "warmup_steps=1", "data.world=tiny"]
    command = [sys.executable, str(ROOT / "recipes" / "ablations.py"), *words, "benchmarks=[gqa,vsr]", "limit=4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(2):
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.count("nothing has changed since the run that lies here") == 5
    found = json.loads((tmp_path / "runs" / "report" / "report.json").read_text())
    assert set(found["scores"]["GQA"]) == {
        "full",
        "without instruction-aware features",
        "without balancing",
        "bare input",
        "bare input, asked as trained",
        "names of task and dataset",
        "names of task and dataset, asked as trained",
    }
