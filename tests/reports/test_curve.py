"""The loss curve of a report, from the lines of a log."""

from __future__ import annotations

import re

import pytest

from instructkit.reports import plots
from instructkit.reports.blocks import Figures, Line, Table
from instructkit.reports.curve import POINTS, training_blocks, training_curve


def line(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "loss": 9.0, "mean_loss": 10.0 / step, "samples_per_second": float(step), **values}


def test_points_by_dataset_and_what_was_looked_at() -> None:
    lines = [
        line(10, **{"mean_loss/a": 3.0, "mean_loss/b": 1.0}),
        {"step": 10, "validation_loss": 2.0, "watch/okvqa": 11.0, "best_step": 10},
        line(20, **{"mean_loss/a": 2.0}),
    ]
    assert training_curve(lines) == {
        "losses": {
            "all datasets": [(10, 1.0), (20, 0.5)],
            "a": [(10, 3.0), (20, 2.0)],
            "b": [(10, 1.0)],
            "validation": [(10, 2.0)],
        },
        "speed": [(10, 10.0), (20, 20.0)],
        "watched": {"okvqa": [(10, 11.0)]},
        "lines_per_point": 1,
    }
    assert training_curve([]) == {}


def test_a_long_log_is_averaged_and_says_so() -> None:
    steps = 2 * POINTS + 1
    curve = training_curve([line(step) for step in range(1, steps + 1)])
    assert curve["lines_per_point"] == 3
    points = curve["losses"]["loss"]
    assert len(points) == 134
    assert points[0] == (3, pytest.approx((10 + 5 + 10 / 3) / 3))
    assert points[-1][0] == steps
    (figures,) = [b for b in training_blocks({"curve": curve, "training": {}}) if isinstance(b, Figures)]
    assert "Each point is the mean of 3 lines of the log." in figures.figures[0].caption


def test_what_is_told_of_a_run() -> None:
    lines = [line(step, **{"mean_loss/a": 8.0 / step, "mean_loss/b": 4.0}) for step in (1, 2, 4)]
    training = {"model_of_step": 2, "validation_loss": 1.5, "loss": 9.0}
    blocks = training_blocks({"curve": training_curve(lines), "training": training})
    told = [block.text for block in blocks if isinstance(block, Line)]
    assert told == [
        "Loss 10.0000 at step 1, 2.5000 at step 4; 2.0 samples/s (median).",
        "The model is that of step 2, the best (validation_loss 1.5).",
    ]
    (table,) = [block for block in blocks if isinstance(block, Table)]
    assert table.rows[1] == ["a", "8.0000", "2.0000", "2.0000"]
    assert training_blocks({"training": {}}) == []


def test_more_datasets_than_colours_stand_in_the_table_alone() -> None:
    names = [f"mean_loss/{number}" for number in range(plots.COLOURS)]
    blocks = training_blocks({"curve": training_curve([line(1, **dict.fromkeys(names, 1.0))]), "training": {}})
    (figures,) = [block for block in blocks if isinstance(block, Figures)]
    assert "Only all datasets of 8 lines; the table has them all." in figures.figures[0].caption
    assert figures.figures[0].svg.count('class="curve') == 1
    (table,) = [block for block in blocks if isinstance(block, Table)]
    assert len(table.rows) == 8


def test_points_lie_where_their_values_are() -> None:
    svg = plots.curves({"loss": [(0, 4.0), (50, 2.0), (100, 0.0)]}, "loss by step")
    (path,) = re.findall(r'class="curve c0" d="M([^"]*)"', svg)
    (x0, y0), (x1, y1), (x2, y2) = ([float(n) for n in point.split()] for point in path.split("L"))
    assert (x1 - x0, y1 - y0) == (pytest.approx(x2 - x1, abs=0.2), pytest.approx(y2 - y1, abs=0.2))
    grid = {float(y) for y in re.findall(r'class="grid" d="M[\d.]+ ([\d.]+)H', svg)}
    assert (max(grid), min(grid)) == (y2, y0)  # 0 and 4 are ticks
    assert "NaN" not in plots.curves({"loss": [(1, 0.0)]}, "zero")


@pytest.mark.parametrize("top", [1e-5, 0.3, 1.0, 4.0, 7.2, 100, 120, 999, 60_000, 3.1e7])
def test_ticks_reach_the_top_in_few_round_steps(top: float) -> None:
    svg = plots.curves({"loss": [(1, top)]}, "x")
    assert 3 <= len(re.findall('class="grid"', svg)) <= 7
