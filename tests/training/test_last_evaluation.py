"""The evaluation at the end of a run: alone in memory, in the run's precision, each file read for a checksum once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit.config.read import load_config
from instructkit.config.settings import dtype_of
from instructkit.evaluation.run import read_evaluation
from instructkit.reports.report import read_report
from tests.training.mini import log, run_all, write_model, write_releases

RUNS = {
    "zero0": ["zero_stage=0"],
    "zero2": ["zero_stage=2"],
    "wider": ["zero_stage=2", "precision=bf16", "evaluation.dtype=float32"],
    "narrower": ["zero_stage=0", "evaluation.dtype=bfloat16"],
    "zero3": ["zero_stage=3"],
    "zero3-bf16": ["zero_stage=3", "precision=bf16"],
    "offload": ["zero_stage=3", "offload=parameters"],
}
DTYPES = {name: "bfloat16" if name.endswith("bf16") or name == "narrower" else "float32" for name in RUNS}
ON = {1: ("zero0", "wider", "narrower", "zero3", "offload"), 2: ("zero0", "zero2", "zero3", "zero3-bf16")}
PLACES = [(ranks, name) for ranks, names in ON.items() for name in names]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("last")
    words = [
        *write_releases(folder),
        f"model.name={write_model(folder / 'model')}",
        "towers.llm=lora",
        "batch_size=4",
        "max_steps=2",
        "evaluation.benchmarks=[easy_vqa/train]",
        "evaluation.limit=6",
        "eval_batch_size=2",
        # These hold the engine as well.
        "every=1",
        "evaluation.validation=[easy_vqa]",
        "watch_limit=4",
    ]
    folders = {ranks: folder / f"on-{ranks}" for ranks in (1, 2)}
    for ranks, place in folders.items():
        run_all(ranks, place, {name: [*words, *RUNS[name]] for name in ON[ranks]}, script="lives.py")
    return folders


def facts(runs: dict[int, Path], ranks: int, name: str) -> list[dict[str, Any]]:
    return [json.loads((runs[ranks] / name / f"evaluation-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.full
@pytest.mark.parametrize(("ranks", "name"), PLACES)
def test_the_engine_is_gone_before_the_evaluation_loads_its_model(runs: Any, ranks: int, name: str) -> None:
    assert [found["alive"] for found in facts(runs, ranks, name)] == [[]] * ranks


@pytest.mark.full
@pytest.mark.parametrize(("ranks", "name"), PLACES)
def test_the_evaluation_computes_in_the_precision_that_report_and_results_state(
    runs: Any, ranks: int, name: str
) -> None:
    assert [found["dtype"] for found in facts(runs, ranks, name)] == [f"torch.{DTYPES[name]}"] * ranks
    run = runs[ranks] / name
    assert len(log(run)) > 2
    assert read_evaluation(run).settings.evaluation.dtype == read_report(run)["dtype"] == DTYPES[name]
    assert f"computed in {DTYPES[name]}" in (run / "report" / "report.md").read_text()
    assert f"computed in {DTYPES[name]}" in (run / "report" / "report.html").read_text()


@pytest.mark.full
def test_only_the_first_rank_takes_checksums(runs: Any) -> None:
    for name in ON[2]:
        first, second = (found["hashed"] for found in facts(runs, 2, name))
        model = str(runs[2] / name / "model")
        assert first.count(model) == 1
        assert len(first) > 1  # the base is compared as well
        assert second == []


@pytest.mark.full
def test_one_rank_and_two_give_the_same_answers(runs: Any) -> None:
    for name in ("zero0", "zero3"):
        one, two = (read_evaluation(runs[ranks] / name).results for ranks in (1, 2))
        assert [result.value for result in one] == [result.value for result in two]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "float32"),
        (["precision=bf16"], "bfloat16"),
        (["precision=bf16", "evaluation.dtype=float32"], "float32"),
        (["evaluation.dtype=float16"], "float16"),
    ],
)
def test_the_precision_is_the_runs_unless_another_is_set(words: list[str], expected: str) -> None:
    assert dtype_of(load_config(Path(__file__).with_name("mini.yaml"), words)) == expected
