"""The loop without any recipe: a toy model's steps are logged, kept, restored and stopped, on one rank and on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.mini import launch


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The runs of `loops.py`, by the number of their ranks."""
    folders = {ranks: tmp_path_factory.mktemp(f"loops-{ranks}") for ranks in (1, 2)}
    for ranks, folder in folders.items():
        launch(ranks, Path(__file__).with_name("loops.py"), [str(folder)])
    return folders


def lines(run: Path) -> list[dict[str, Any]]:
    """The log without what was measured."""
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in found]


MEASURED = {"samples_per_second", "peak_memory_gib", "peak_gpu_memory_gib"}
EACH = pytest.mark.parametrize("ranks", [1, 2])


def facts(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "facts.json").read_text())
    return found


@EACH
def test_a_line_every_second_step_and_the_last_has_each_loss(folders: dict[int, Path], ranks: int) -> None:
    found = lines(folders[ranks] / "whole")
    assert [line["step"] for line in found] == [2, 4, 6, 7]
    for line in found:
        assert line["loss"] == pytest.approx(line["loss/fit"] + 0.5 * line["loss/words"])
        assert line["mean_loss"] == pytest.approx(line["mean_fit"] + 0.5 * line["mean_words"])
        assert (line["rows/fit"], line["words/words"], line["samples"]) == (8, 20, 8)
    assert found[-1]["mean_fit"] == pytest.approx(found[-1]["loss/fit"])  # the only step since the line before
    said = facts(folders[ranks] / "whole")["said"]
    (last,) = [line for line in said if line.startswith("step 7/7")]
    assert f"loss {found[-1]['mean_loss']:.4f}" in last
    assert f"fit {found[-1]['loss/fit']:.4f}, words {found[-1]['loss/words']:.4f}" in last
    assert "training  7 steps of 8 image groups, about 8 samples" in "\n".join(said)


def test_two_ranks_and_micro_batches_log_what_one_rank_does(folders: dict[int, Path]) -> None:
    whole = lines(folders[1] / "whole")
    for other in (folders[2] / "whole", folders[1] / "split", folders[2] / "split"):
        for mine, theirs in zip(whole, lines(other), strict=True):
            assert theirs == pytest.approx(mine, rel=1e-4)


@EACH
def test_a_run_that_goes_on_repeats_log_and_weights_bit_for_bit(folders: dict[int, Path], ranks: int) -> None:
    whole, resumed = folders[ranks] / "whole", folders[ranks] / "resumed"
    assert lines(resumed) == lines(whole)
    assert facts(resumed)["weight"] == facts(whole)["weight"]
    assert facts(resumed)["numbers"] == [4, 5, 6, 7], "checkpoints are behind steps 3 and 6, the log was ahead"
    assert any("going on from" in line for line in facts(resumed)["said"])


@EACH
def test_checkpoints_are_written_where_they_are_due_and_the_best_is_kept(folders: dict[int, Path], ranks: int) -> None:
    kept = {name: facts(folders[ranks] / name)["checkpoints"] for name in ("whole", "best", "patience", "stopped")}
    assert kept == {"whole": [3, 6, 7], "best": [2, 6, 7], "patience": [2, 3, 4], "stopped": [2]}


@EACH
def test_the_model_of_the_best_step_is_put_back(folders: dict[int, Path], ranks: int) -> None:
    best = facts(folders[ranks] / "best")
    assert best["numbers"] == [1, 2, 3, 4, 5, 6, 7]
    assert best["weight"] == facts(folders[ranks] / "whole")["after"]["2"]
    assert best["weight"] != best["after"]["7"]
    assert "model     that of step 2, the best by validation_loss" in best["said"]


@EACH
def test_steps_end_when_no_evaluation_brings_a_gain(folders: dict[int, Path], ranks: int) -> None:
    assert facts(folders[ranks] / "patience")["numbers"] == [1, 2, 3, 4]
    again = facts(folders[ranks] / "patience-resumed")
    assert again["numbers"] == []
    assert any("no step is done: no gain in the last 2 evaluations" in line for line in again["said"])
    assert again["weight"] == facts(folders[ranks] / "patience")["weight"]


@EACH
def test_a_run_that_is_asked_to_stop_keeps_its_step_and_goes_on_from_there(
    folders: dict[int, Path], ranks: int
) -> None:
    stopped, resumed = folders[ranks] / "stopped", folders[ranks] / "stopped-resumed"
    assert facts(stopped)["numbers"] == [1, 2]
    assert facts(stopped)["ended"]
    assert facts(resumed)["numbers"] == [3, 4, 5, 6, 7]
    assert lines(resumed) == lines(folders[ranks] / "whole")
    assert facts(resumed)["weight"] == facts(folders[ranks] / "whole")["weight"]


@EACH
def test_checkpoints_of_an_earlier_run_are_not_gone_on_from_unasked(folders: dict[int, Path], ranks: int) -> None:
    anew = facts(folders[ranks] / "anew")
    assert anew["numbers"] == [1, 2, 3, 4, 5, 6, 7]
    assert lines(folders[ranks] / "anew") == lines(folders[ranks] / "whole")
    kept = sorted(path.name for path in (folders[ranks] / "anew.1" / "checkpoints").iterdir())
    assert kept == ["step-00000003", "step-00000006", "step-00000007"]
