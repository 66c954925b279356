"""The trials of CapFilt on the world: what they count and report, and that a finished run is not run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit.errors import UserError
from tests.benchmarks import capfilt_world as trial
from tests.benchmarks.capfilt_filter import kept_of, shares
from tests.benchmarks.capfilt_table import CASES, beats_all, verdict, verdicts_of, write_report
from tests.benchmarks.capfilt_world import Clock, Pair

ASKED = {"steps": 10, "tested": 1000}


def made_up(shift: float) -> dict[str, dict[str, Any]]:
    """A seed in which each case is a little better than the one before."""
    return {
        case: {
            "measures": {"tr_r1": 10.0 + place + shift, "ir_r1": 20.0 + 2 * place - shift, "cider": 90.0 - 5 * place},
            "pairs": {"web": 1000 * (4 - place), "synthetic": place, "human": 7},
        }
        for place, case in enumerate(CASES)
    }


def test_two_standard_errors_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, deviation 1, standard error 1 / sqrt(3) = 0.577.
    found = verdict([10, 20, 30], [11, 22, 33])
    assert found.differences == [1, 2, 3]
    assert (found.mean, found.error, found.beats) == (2, pytest.approx(0.57735, abs=1e-5), True)
    # Differences -1, 1, 3: mean 1, deviation 2, standard error 1.155.
    assert verdict([10, 20, 30], [9, 21, 33]).beats is False
    assert verdict([5], [9]).beats is None


def test_both_must_beat_none_by_every_measure() -> None:
    found = verdicts_of([made_up(shift) for shift in (0, 1, 2)])
    assert {name: each.beats for name, each in found.items()} == {"tr_r1": True, "ir_r1": True, "cider": False}
    assert beats_all(found) is False
    assert beats_all({"tr_r1": found["tr_r1"]}) is True
    assert beats_all(verdicts_of([made_up(0)])) is None


def test_the_report_has_means_deviations_and_the_verdict(tmp_path: Path) -> None:
    report = write_report([made_up(shift) for shift in (0, 1, 2)], ASKED, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    shown = (tmp_path / "report.md").read_text()
    assert "| none | 4,000 | 0 | 7 | 11.0 ± 1.0 | 19.0 ± 1.0 | 90.0 ± 0.0 |" in shown
    assert "by every measure:** no." in shown
    assert "| CIDEr | -15.00 | -15.00 | -15.00 | -15.00 | 0.00 | no |" in shown
    assert "captioner" in (tmp_path / "report.html").read_text()


def test_the_filter_is_judged_on_what_it_kept(tmp_path: Path) -> None:
    pairs = [Pair(f"{number}.jpg", "a", number < 4) for number in range(10)]
    kept = [{"image": str(tmp_path / "images" / f"{number}.jpg")} for number in (0, 4, 5, 6)]
    (tmp_path / "capfilt.json").write_text(json.dumps(kept))
    found = shares(pairs, kept_of(tmp_path, tmp_path / "images"))
    assert found == {"found": 75.0, "dropped": 50.0}


def test_a_finished_run_is_read_and_another_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[dict[str, Any]] = []
    monkeypatch.setattr(trial, "run_recipe", lambda config, settings: runs.append({"config": config, **settings}))
    for _ in range(2):
        trial.run(tmp_path / "run", "capfilt", {"seed": 1, "data.root": tmp_path}, Clock(1))
    assert runs == [{"config": "capfilt", "seed": 1, "data.root": tmp_path, "output": tmp_path / "run"}]
    with pytest.raises(UserError, match="a run with other settings lies here"):
        trial.run(tmp_path / "run", "capfilt", {"seed": 2, "data.root": tmp_path}, Clock(1))
    with pytest.raises(SystemExit, match="start again to go on"):
        trial.run(tmp_path / "other", "capfilt", {}, Clock(0))
