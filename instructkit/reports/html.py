"""A report as one HTML page: style, plots and pictures stand in the page itself, so it can be mailed and kept."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import yaml

from instructkit.errors import UserError
from instructkit.reports import plots, words
from instructkit.reports.pictures import data_uri


def html(report: dict[str, Any]) -> str:
    """The report for people, with plots and pictures.

    The pictures are read from the media folders that the report's manifests name.
    """
    entries = list(report["benchmarks"].values())
    body = [
        "<h1>Report</h1>",
        _lead(report),
        _miniatures(entries),
        _overview(entries),
        _averages(report),
        _not_evaluated(report),
    ]
    for entry in entries:
        body.append(_benchmark(entry, report["data"]))
    return page("Report", [*body, _facts(report)])


def page(title: str, body: list[str]) -> str:
    """A whole page around a body."""
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n" + "\n".join(filter(None, body)) + "\n</body>\n</html>\n"
    )


def table(head: list[str], rows: list[list[str]], numbers: tuple[int, ...] = ()) -> str:
    """A table; cells are texts, columns in `numbers` stand to the right."""

    def cells(tag: str, row: list[str]) -> str:
        kinds = [' class="number"' if index in numbers else "" for index in range(len(row))]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    lines = [f"<tr>{cells('td', row)}</tr>" for row in rows]
    return f'<div class="wide"><table><tr>{cells("th", head)}</tr>\n' + "\n".join(lines) + "</table></div>"


def _lead(report: dict[str, Any]) -> str:
    model = report["config"].get("model")
    name = model.get("name") if isinstance(model, dict) else model
    scored, without = len(report["benchmarks"]), len(report["not_evaluated"])
    rest = f", {without} without a score" if without else ""
    told = f"{scored} benchmark{'s' if scored != 1 else ''} scored{rest}"
    return f'<p class="soft">Model <code>{escape(str(name))}</code>: {told}.</p>'


def _miniatures(entries: list[dict[str, Any]]) -> str:
    told = words.miniatures(entries)
    return f'<p class="warn"><b>{escape(told)}</b></p>' if told else ""


def _overview(entries: list[dict[str, Any]]) -> str:
    if not entries:
        return "<p>No benchmark has a score.</p>"
    rows = [
        [
            entry["title"],
            entry["role"],
            f"v{entry['protocol_version']}",
            words.measure(entry),
            f"{entry['value']:.2f}",
            words.interval(entry),
            words.size(entry),
            f"{entry['blind_baseline']:.1f}" if entry["blind_baseline"] is not None else "-",
        ]
        for entry in entries
    ]
    head = ["benchmark", "role", "protocol", "metric", "score", "95% interval", "examples", "blind"]
    caption = "Blue: this model with its 95% interval."
    if any(entry["published"] for entry in entries):
        caption += " Grey: published models, rings are unverified."
    figure = f"<figure><figcaption>{caption}</figcaption>{plots.overview(entries)}</figure>"
    return table(head, rows, (4, 5, 6, 7)) + f'<p class="soft">{escape(words.notes(entries))}</p>{figure}'


def _averages(report: dict[str, Any]) -> str:
    parts = ["<h2>Averages</h2>"]
    for title, key in (("Held-out", "held_out"), ("Held-in", "held_in")):
        found = report["averages"][key]
        parts.append(f"<p><b>{title}</b>: {escape(words.average(found))}.</p>")
        if found["value"] is not None and found["published"]:
            parts.append(f'<p class="soft">{escape("; ".join(map(words.published, found["published"])))}</p>')
    return "\n".join(parts)


def _not_evaluated(report: dict[str, Any]) -> str:
    found = report["not_evaluated"]
    if not found:
        return ""
    parts = [
        "<h2>Without a score</h2>",
        table(["benchmark", "reason"], [[each["title"], each["reason"]] for each in found]),
    ]
    parts += [_errors(each) + _cut(each) for each in found]
    if report["submissions"]:
        parts.append(f"<p>Submission files: {escape(', '.join(report['submissions']))}</p>")
    return "\n".join(parts)


def _benchmark(entry: dict[str, Any], data: dict[str, Any]) -> str:
    protocol = entry["protocol"]
    split = f"{protocol['source']}/{protocol['split']}"
    parts = [
        f"<h2>{escape(entry['title'])}</h2>",
        f"<p><b>{escape(words.measure(entry))} {entry['value']:.2f}</b> ({words.interval(entry)}) "
        f'on {words.size(entry)} examples <span class="soft">of {escape(split)}, {entry["role"]}, '
        f"protocol v{entry['protocol_version']}</span></p>",
        _data_notes(entry),
        _errors(entry),
        _cut(entry),
        f'<div class="figures">{_figures(entry)}</div>',
        _numbers(entry),
        "<h3>Prompt</h3>",
        '<p class="soft">As Jinja and for the first example, byte for byte (JSON):</p>',
        f"<pre>{escape(words.literal(protocol['instruction']))}\n{escape(words.literal(entry['prompt']))}</pre>",
        f'<p>{escape(words.answering(protocol))}</p><p class="soft">{escape(protocol["notes"])}</p>',
        _wordings(entry),
        _cases(entry, data),
        _sources(entry),
    ]
    return "\n".join(filter(None, parts))


def _figures(entry: dict[str, Any]) -> str:
    figures = [("Score beside published models; dashed bars are unverified.", plots.scores(entry))]
    if not entry["published"]:
        figures = [("Score", plots.scores(entry))]
    if entry["calibration"]:
        caption = f"Calibration: ECE {entry['calibration']['ece']:.1f}. Darker bars hold more answers."
        figures.append((caption, plots.reliability(entry["calibration"])))
    if entry["spread"]:
        figures.append((f"Wordings: {words.spread_phrase(entry)}.", plots.spread(entry)))
    return "".join(f"<figure><figcaption>{escape(caption)}</figcaption>{plot}</figure>" for caption, plot in figures)


def _numbers(entry: dict[str, Any]) -> str:
    parts = []
    if len(entry["details"]) > 1:
        parts.append(
            table(["measure", "value"], [[name, f"{value:.2f}"] for name, value in entry["details"].items()], (1,))
        )
    if entry["groups"]:
        rows = [[name, words.group_value(value), f"{n:,}"] for name, (value, n) in entry["groups"].items()]
        parts.append(table([entry["protocol"]["group_by"], words.measure(entry), "examples"], rows, (1, 2)))
    return "\n".join(parts)


def _data_notes(entry: dict[str, Any]) -> str:
    notes = entry.get("data_notes", [])
    return "\n".join(f'<p class="warn"><b>Note:</b> {escape(note)}.</p>' for note in notes)


def _errors(entry: dict[str, Any]) -> str:
    if not entry["errors"]:
        return ""
    rows = [[name, error] for name, error in entry["errors"].items()]
    return f'<p class="warn"><b>{len(rows):,} examples failed and are not scored:</b></p>' + table(
        ["example", "error"], rows
    )


def _cut(entry: dict[str, Any]) -> str:
    told = words.cut(entry)
    return f'<p class="warn">{escape(told)}</p>' if told else ""


def _wordings(entry: dict[str, Any]) -> str:
    if not entry["spread"]:
        return ""
    rows = [
        [each["wording"], each["instruction"], f"{each['value']:.2f}", f"{each['n']:,}"] for each in entry["spread"]
    ]
    return "<h3>Wordings</h3>" + table(["wording", "prompt (Jinja)", words.measure(entry), "examples"], rows, (2, 3))


def _sources(entry: dict[str, Any]) -> str:
    if not entry["published"]:
        return ""
    rows = [
        [row["model"], f"{row['value']:.1f}", row["source"], "read" if row["verified"] else "unverified"]
        for row in entry["published"]
    ]
    inside = table(["model", words.measure(entry), "source", ""], rows, (1,))
    return f"<details><summary>Published results and where they stand</summary>{inside}</details>"


def _cases(entry: dict[str, Any], data: dict[str, Any]) -> str:
    names = ("Better half", "Worse half") if entry["metric"] == "cider" else ("Right", "Wrong")
    parts = []
    for title, right in zip(names, (True, False), strict=True):
        chosen = [case for case in entry["cases"] if case["right"] == right]
        if chosen:
            cards = "\n".join(_case(case, entry["protocol"], data) for case in chosen)
            parts.append(f'<h3>{title}</h3><div class="cases">{cards}</div>')
    return "\n".join(parts)


def _case(case: dict[str, Any], protocol: dict[str, Any], data: dict[str, Any]) -> str:
    root = Path(data[f"{protocol['source']}/{protocol['split']}"]["media_root"])
    try:
        uri = data_uri([root / path for path in case["images"]], protocol["frames"], tuple(case["clip"]))
        picture = f'<img alt="{escape(case["example"])}" src="{uri}">'
    except UserError as error:
        picture = f'<div class="warn">{escape(str(error))}</div>'
    cut = f' <span class="warn">(cut for {escape(words.readers(case["cut"]))})</span>' if case.get("cut") else ""
    lines = [f"<p>{escape(case['prompt'])}{cut}</p>", f"<p><b>{escape(case['text']) or '(nothing)'}</b></p>"]
    if case["candidates"]:
        ranked = "; ".join(f"{each['text']} {100 * each['probability']:.0f}%" for each in case["candidates"])
        lines.append(f'<p class="soft">ranked: {escape(ranked)}</p>')
    expected = "; ".join(case["expected"][:5])
    lines.append(
        f'<p class="soft">expected: {escape(expected)}</p><p class="soft"><code>{escape(case["example"])}</code></p>'
    )
    return f'<div class="case {"right" if case["right"] else "wrong"}">{picture}<div>{"".join(lines)}</div></div>'


def _facts(report: dict[str, Any]) -> str:
    rows = []
    for name, manifest in report["data"].items():
        files = ", ".join(f"{file['path']} ({file['sha256'][:12]})" for file in manifest["files"])
        counts = [f"{manifest['examples']:,}", f"{manifest['rejected']:,}", words.published_count(manifest)]
        rows.append([name, *counts, manifest["layout"], files])
    head = ["split", "examples", "rejected", "published", "layout", "files (SHA-256)"]
    parts = ["<h2>Data</h2>", table(head, rows, (1, 2, 3))]
    if report["training"]:
        lines = "\n".join(f"{key}: {value}" for key, value in report["training"].items())
        parts.append(f"<h2>Last step of training</h2><pre>{escape(lines)}</pre>")
    settings = yaml.safe_dump(report["config"], sort_keys=False).rstrip()
    parts.append(f"<h2>Settings</h2><pre>{escape(settings)}</pre>")
    numbers = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    model = ""
    if report["model"]:
        model = f"<p>Model: <code>{escape(report['model'])}</code>, computed in {escape(report['dtype'])}</p>"
    return "\n".join([*parts, f"<h2>Versions</h2><p>{escape(numbers)}</p>{model}"])
