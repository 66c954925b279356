"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructkit.errors import UserError
from instructkit.files import write_atomically
from instructkit.reports import html, markdown, plots, words
from instructkit.reports.averages import TITLES
from instructkit.reports.blocks import Block, Figure, Figures, Heading, Line, Table
from instructkit.reports.report import read_report

Reports = Mapping[str, Mapping[str, Any]]
"""Reports by the name of their run."""


def write_comparison(runs: Sequence[Path], out: Path) -> list[Path]:
    """Write `comparison.md` and `comparison.html`.

    Args:
        runs: folders with a report.
        out: made if missing.

    Returns:
        The files.

    Raises:
        UserError: a folder has no report, or is named twice.
    """
    reports = {name: read_report(folder) for name, folder in zip(run_names(runs), runs, strict=True)}
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "comparison.md", out / "comparison.html"]
    blocks = compared(reports)
    write_atomically(paths[0], markdown.text(blocks))
    write_atomically(paths[1], html.page(blocks))
    return paths


def run_names(runs: Sequence[Path]) -> list[str]:
    """A short name for each run: as many of its path's last parts as tell the runs apart.

    Raises:
        UserError: a run is named twice.
    """
    parts = [run.resolve().parts for run in runs]
    if len(set(parts)) < len(parts):
        raise UserError(f"{', '.join(map(str, runs))}: the same run is named twice")
    depth = 1
    while len({run[-depth:] for run in parts}) < len(parts):
        depth += 1
    return ["/".join(run[-depth:]) for run in parts]


def compared(reports: Reports) -> list[Block]:
    """The comparison, with a plot a benchmark."""
    figures = []
    for name, entry in _entries(reports).items():
        own = {run: report["benchmarks"][name] for run, report in reports.items() if name in report["benchmarks"]}
        plot = plots.comparison(
            entry["title"], [(run, each["value"], each["interval"]) for run, each in own.items()], entry["metric"]
        )
        figures.append(Figure(f"{entry['title']}, {words.measure(entry)}", plot))
    numbers = tuple(range(1, 1 + len(reports)))
    return [
        Heading("Runs side by side", 1),
        Table(["benchmark", *reports, "metric"], _rows(reports), numbers),
        Line(" ".join(words.NOTES), kind="soft"),
        *(Line(note, kind="warn") for note in _differences(reports)),
        Figures(figures),
        Heading("Settings that differ"),
        Table(["setting", *reports], _settings(reports)),
    ]


def _entries(reports: Reports) -> dict[str, Any]:
    """Every benchmark that any run has a score of, as the first such run tells it."""
    found: dict[str, Any] = {}
    for report in reports.values():
        for name, entry in report["benchmarks"].items():
            found.setdefault(name, entry)
    return found


def _rows(reports: Reports) -> list[list[str]]:
    rows = []
    for name, entry in _entries(reports).items():
        own = [report["benchmarks"].get(name) for report in reports.values()]
        for place, measured in enumerate(words.measured(entry)):
            found = [words.measured(each)[place] if each else None for each in own]
            cells = [f"{each.value:.2f} ({each.interval})" if each else "-" for each in found]
            rows.append([entry["title"], *cells, measured.measure])
    for key, title in TITLES.items():
        # Reports of earlier versions lack one of them.
        values = [report["averages"].get(key, {}).get("value") for report in reports.values()]
        if any(value is not None for value in values):
            rows.append([f"average: {title}", *("-" if value is None else f"{value:.2f}" for value in values), ""])
    return rows


def _differences(reports: Reports) -> list[str]:
    """Benchmarks whose scores cannot be compared as they stand."""
    notes = []
    for name, entry in _entries(reports).items():
        own = {run: report["benchmarks"][name] for run, report in reports.items() if name in report["benchmarks"]}
        protocols = {run: f"v{each['protocol_version']}" for run, each in own.items()}
        if len(set(protocols.values())) > 1:
            told = ", ".join(f"{run} {number}" for run, number in protocols.items())
            notes.append(f"{entry['title']}: versions of the protocol differ ({told}); the scores cannot be compared.")
        made_up = [run for run, each in own.items() if each.get("miniature")]
        if 0 < len(made_up) < len(own):
            notes.append(f"{entry['title']}: a miniature in {', '.join(made_up)}; the scores cannot be compared.")
        sizes = {run: words.size(each) for run, each in own.items()}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{run} {number}" for run, number in sizes.items())
            notes.append(f"{entry['title']}: numbers of examples differ ({told}).")
    for run, report in reports.items():
        notes += [f"{each['title']}: {run} has no score: {each['reason']}" for each in report.get("not_evaluated", [])]
    return notes


def _settings(reports: Reports) -> list[list[str]]:
    flat = {
        run: _flat(report["config"]) | {"versions." + k: v for k, v in report["versions"].items()}
        for run, report in reports.items()
    }
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    rows = [[key, *(str(values.get(key, "-")) for values in flat.values())] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
