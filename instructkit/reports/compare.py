"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from instructkit.errors import UserError
from instructkit.files import write_atomically
from instructkit.reports import html, markdown, plots, words
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
    write_atomically(paths[0], compared_markdown(reports))
    write_atomically(paths[1], compared_html(reports))
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


def compared_markdown(reports: Reports) -> str:
    """The comparison in plain text."""
    lines = ["# Runs side by side", "", *markdown.table(_head(reports), _rows(reports)), ""]
    lines += [" ".join(words.NOTES), ""]
    lines += [f"- {markdown.plain(note)}" for note in _differences(reports)]
    lines += ["", "## Settings that differ", "", *markdown.table(["setting", *reports], _settings(reports))]
    return "\n".join(lines) + "\n"


def compared_html(reports: Reports) -> str:
    """The comparison as a page, with a plot a benchmark."""
    numbers = tuple(range(2, 2 + len(reports)))
    body = ["<h1>Runs side by side</h1>", html.table(_head(reports), _rows(reports), numbers)]
    body.append(f'<p class="soft">{escape(" ".join(words.NOTES))}</p>')
    body += [f'<p class="warn">{escape(note)}</p>' for note in _differences(reports)]
    figures = []
    for name, entry in _entries(reports).items():
        rows = [
            (run, report["benchmarks"][name]["value"], report["benchmarks"][name]["interval"])
            for run, report in reports.items()
            if name in report["benchmarks"]
        ]
        plot = plots.comparison(entry["title"], rows, entry["metric"])
        figures.append(
            f"<figure><figcaption>{escape(entry['title'])}, {escape(words.measure(entry))}</figcaption>{plot}</figure>"
        )
    body.append(f'<h2>Benchmarks</h2><div class="figures">{"".join(figures)}</div>')
    body.append("<h2>Settings that differ</h2>" + html.table(["setting", *reports], _settings(reports)))
    return html.page("Runs side by side", body)


def _entries(reports: Reports) -> dict[str, Any]:
    """Every benchmark that any run has a score of, as the first such run tells it."""
    found: dict[str, Any] = {}
    for report in reports.values():
        for name, entry in report["benchmarks"].items():
            found.setdefault(name, entry)
    return found


def _head(reports: Reports) -> list[str]:
    return ["benchmark", "metric", *reports]


def _rows(reports: Reports) -> list[list[str]]:
    rows = []
    for name, entry in _entries(reports).items():
        cells = []
        for report in reports.values():
            own = report["benchmarks"].get(name)
            cells.append(f"{own['value']:.2f} ({words.interval(own)})" if own else "-")
        rows.append([entry["title"], words.measure(entry), *cells])
    for title, key in (("average of the held-out", "held_out"), ("average of the held-in", "held_in")):
        values = [report["averages"][key]["value"] for report in reports.values()]
        if any(value is not None for value in values):
            rows.append([title, "", *("-" if value is None else f"{value:.2f}" for value in values)])
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
