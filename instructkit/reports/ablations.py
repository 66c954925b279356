"""What each part of a recipe brings: runs without it beside the whole one, seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from instructkit.reports import words
from instructkit.reports.blocks import Block, Heading, Line, Table
from instructkit.reports.files import write_files
from instructkit.runs.provenance import command_line, commit, versions

FULL = "full"
"""The run that the others are compared with."""
PERCENT, HELD_IN = "held-out, in per cent", "held-in"
PAPER_COLUMNS = ("held-in average", "GQA", "ScienceQA", "IconQA", "VizWiz", "iVQA")
PAPER = {
    FULL: (94.1, 48.4, 70.4, 50.0, 32.7, 53.1),
    "without instruction-aware features": (89.8, 45.9, 63.4, 45.8, 25.1, 47.5),
    "without balancing": (92.6, 46.8, 66.0, 49.9, 31.8, 51.1),
}
"""InstructBLIP FlanT5-XL (arXiv 2305.06500, ablation table)."""

Reports = Mapping[str, Sequence[Mapping[str, Any]]]
"""By variation, the `report.json` of each seed."""


class Difference(NamedTuple):
    """A variation less the whole recipe.

    Attributes:
        by_seed: of each seed.
        mean: of them.
        error: standard error of the mean; None with one seed.
    """

    by_seed: list[float]
    mean: float
    error: float | None

    def __str__(self) -> str:
        return f"{self.mean:+.2f}" + ("" if self.error is None else f" ± {self.error:.2f}")


def difference(full: Sequence[float], varied: Sequence[float]) -> Difference:
    """Compare seed by seed."""
    found = [one - other for other, one in zip(full, varied, strict=True)]
    error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else None
    return Difference(found, statistics.mean(found), error)


def measures_of(reports: Reports) -> dict[str, dict[str, list[float]]]:
    """By what is measured and variation, a value a seed: two averages, then each benchmark that all runs have.

    The averages are over the held-out benchmarks in per cent, that is without captioning, and over all held-in ones.
    """
    every = [report["benchmarks"] for seeds in reports.values() for report in seeds]
    common = [name for name in every[0] if all(name in entries for entries in every)]
    roles = {name: every[0][name]["role"] for name in common}
    held_in = [name for name in common if roles[name] == "held-in"]
    percent = [name for name in common if roles[name] == "held-out" and every[0][name]["metric"] != "cider"]
    columns = {
        **({PERCENT: percent} if percent else {}),
        **({HELD_IN: held_in} if held_in else {}),
        **{every[0][name]["title"]: [name] for name in common},
    }
    return {
        column: {
            variation: [statistics.mean(report["benchmarks"][name]["value"] for name in names) for report in seeds]
            for variation, seeds in reports.items()
        }
        for column, names in columns.items()
    }


def contents(reports: Reports, left_out: Sequence[str]) -> list[Block]:
    """The report for people, block by block.

    Args:
        reports: of all runs.
        left_out: why a variation was left out, a sentence each.
    """
    measures = measures_of(reports)
    seeds = len(reports[FULL])
    numbers = tuple(range(1, len(measures) + 1))
    entries = [entry for report in reports[FULL] for entry in report["benchmarks"].values()]
    reached = [[variation, *(_deviation(found[variation]) for found in measures.values())] for variation in reports]
    differences = [
        [variation, *(str(difference(found[FULL], found[variation])) for found in measures.values())]
        for variation in reports
        if variation != FULL
    ]
    paper = [[name, *(f"{value:.1f}" for value in values)] for name, values in PAPER.items() if name in reports]
    return [
        Heading("Ablations", 1),
        Line(
            f"Each variation differs from the whole recipe in one thing; {seeds} seed(s) of the training.", kind="soft"
        ),
        *([Line("", note, "warn")] if (note := words.miniatures(entries)) else []),
        *(Line(f" {reason}", "Left out:", "warn") for reason in left_out),
        Heading("Scores"),
        Table(["mean ± deviation", *measures], reached, numbers),
        Heading("Less than the whole recipe, or more"),
        Table(["paired by seed, mean ± standard error", *measures], differences, numbers),
        Heading("The paper, on the real benchmarks: not comparable"),
        Table(["InstructBLIP FlanT5-XL", *PAPER_COLUMNS], paper, tuple(range(1, len(PAPER_COLUMNS) + 1))),
        Heading("Versions"),
        Line(", ".join(f"{name} {number}" for name, number in versions().items())),
    ]


def write_ablations(reports: Reports, left_out: Sequence[str], place: Path) -> dict[str, Any]:
    """Write a page, Markdown and JSON into a folder; returns what the JSON holds."""
    blocks, measures = contents(reports, left_out), measures_of(reports)
    found = {
        "scores": measures,
        "differences": {
            column: {name: difference(by[FULL], by[name])._asdict() for name in reports if name != FULL}
            for column, by in measures.items()
        },
        "left_out": list(left_out),
        "run": {"command": command_line(), "commit": commit()},
        "versions": versions(),
    }
    write_files(place, blocks, found)
    return found


def _deviation(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"
