"""What a report tells, in which order: the same for the page and for Markdown."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from instructkit.reports import plots, words
from instructkit.reports.averages import TITLES
from instructkit.reports.blocks import Block, Card, Cards, Cases, Code, Figure, Figures, Heading, Line, Table
from instructkit.reports.curve import training_blocks


def contents(report: dict[str, Any]) -> list[Block]:
    """The report for people, block by block.

    Args:
        report: what `report.json` holds.
    """
    entries = list(report["benchmarks"].values())
    blocks: list[Block] = [Heading("Report", 1), _lead(report)]
    blocks += [Line("", told, "warn") for told in words.unlike_others(report["config"], entries)]
    blocks += [Line(f" {warning}.", "Warning:", "warn") for warning in report.get("warnings", [])]
    blocks += _scores(entries) + _averages(report) + _not_evaluated(report) + training_blocks(report)
    blocks += _before_after(report.get("before_after", []))
    for entry in entries:
        blocks += _benchmark(entry, report["data"])
    return blocks + _facts(report)


def _lead(report: dict[str, Any]) -> Line:
    model = report["config"].get("model")
    name = model.get("name") if isinstance(model, dict) else model
    scored, without = len(report["benchmarks"]), len(report["not_evaluated"])
    rest = f", {without} without a score" if without else ""
    return Line(f"Model {name}: {scored} benchmark{'s' if scored != 1 else ''} scored{rest}.", kind="soft")


def _scores(entries: list[dict[str, Any]]) -> list[Block]:
    """The table of all scores, with a column for each published model, and their plot."""
    if not entries:
        return [Line("No benchmark has a score.")]
    # Models with a figure on most benchmarks come first.
    models = [
        name for name, _ in Counter(row["model"] for entry in entries for row in entry["published"]).most_common()
    ]
    rows = []
    for entry in entries:
        rows += [
            [
                entry["title"],
                f"{found.value:.2f}",
                found.interval,
                *(found.published.get(model, "-") for model in models),
                f"{entry['blind_baseline']:.1f}" if entry["blind_baseline"] is not None else "-",
                words.size(entry),
                found.measure,
            ]
            for found in words.measured(entry)
        ]
    head = ["benchmark", "score", "95% interval", *models, "blind", "examples", "metric"]
    caption = "Blue: this model with its 95% interval."
    if models:
        caption += " Grey: the best published score; a ring is unverified."
    return [
        Table(head, rows, tuple(range(1, len(models) + 5))),
        Line(words.notes(entries), kind="soft"),
        Figures([Figure(caption, plots.overview(entries))]),
    ]


def _averages(report: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = [Heading("Averages")]
    for key, title in TITLES.items():
        found = report["averages"][key]
        if key == "held_out_percent" and found["value"] is None:
            continue  # what is missing is said of the whole average
        blocks.append(Line(f": {words.average(found)}.", title))
        if found["value"] is not None and found["published"]:
            blocks.append(Line(f"Published: {'; '.join(map(words.published, found['published']))}.", kind="soft"))
    return blocks


def _before_after(cases: list[dict[str, Any]]) -> list[Block]:
    """What was answered before training and behind it."""
    if not cases:
        return []
    told = "A checksum of their ids chose the questions."
    if any(case["maps"] for case in cases):
        told += (
            " Beside each picture stands what the trained model's queries look at under its instruction, then under "
            "that of the next picture; the rest is pale."
        )
    cards = [
        Card(
            Path(case["picture"]),
            case["prompt"],
            [
                f"before: {case['before'] or '(nothing)'}",
                f"after: {case['after'] or '(nothing)'}",
                f"expected: {'; '.join(dict.fromkeys(case['expected']))}",
                f"{case['title']}, {case['example']}",
            ],
            None,
            tuple(case["maps"]),
        )
        for case in cases
    ]
    return [Heading("Before and after"), Line(told, kind="soft"), Cards(cards)]


def _not_evaluated(report: dict[str, Any]) -> list[Block]:
    found = report["not_evaluated"]
    if not found:
        return []
    blocks: list[Block] = [
        Heading("Without a score"),
        Table(["benchmark", "reason"], [[each["title"], each["reason"]] for each in found]),
    ]
    for each in found:
        blocks += _warnings(each)
    if report["submissions"]:
        blocks.append(Line(f"Submission files: {', '.join(report['submissions'])}."))
    return blocks


def _benchmark(entry: dict[str, Any], data: dict[str, Any]) -> list[Block]:
    protocol, measure = entry["protocol"], words.measure(entry)
    split = f"{protocol['source']}/{protocol['split']}"
    about = f"{split}, {entry['role']}, protocol v{entry['protocol_version']}"
    return [
        Heading(entry["title"]),
        Line(
            f" ({words.interval(entry)}) on {words.size(entry)} examples of {about}.", f"{measure} {entry['value']:.2f}"
        ),
        *_warnings(entry),
        Figures(_figures(entry)),
        *_numbers(entry),
        Heading("Prompt", 3),
        Line("As Jinja and for the first example, byte for byte (JSON):", kind="soft"),
        Code(f"{words.literal(protocol['instruction'])}\n{words.literal(entry['prompt'])}"),
        Line(words.answering(protocol)),
        Line(protocol["notes"], kind="soft"),
        *_wordings(entry),
        Cases(entry, data),
        *_published(entry),
    ]


def _warnings(entry: dict[str, Any]) -> list[Block]:
    """What is wrong with the data, which examples failed, and which prompts were cut."""
    blocks: list[Block] = [Line(f" {note}.", "Note:", "warn") for note in entry.get("data_notes", [])]
    if entry["errors"]:
        rows = [[name, error] for name, error in entry["errors"].items()]
        blocks.append(Line("", f"{len(rows):,} examples failed and are not scored:", "warn"))
        blocks.append(Table(["example", "error"], rows))
    if told := words.cut(entry):
        blocks.append(Line("", told, "warn"))
    return blocks


def _figures(entry: dict[str, Any]) -> list[Figure]:
    beside = " beside published models; dashed bars are unverified" if entry["published"] else ""
    figures = [Figure(f"Score{beside}.", plots.scores(entry))]
    if found := entry["calibration"]:
        rows = [
            [words.percents(index), f"{row['confidence']:.1f}", f"{row['accuracy']:.1f}", f"{row['n']:,}"]
            for index, row in enumerate(found["bins"])
            if row["n"]
        ]
        caption = f"Calibration: ECE {found['ece']:.1f}. {words.ECE}"
        bins = Table(["bin, %", "confidence", "accuracy", "answers"], rows, (1, 2, 3))
        figures.append(Figure(caption, plots.reliability(found), bins))
    if entry["spread"]:
        figures.append(Figure(f"Wordings: {words.spread_phrase(entry)}.", plots.spread(entry)))
    return figures


def _numbers(entry: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    if len(entry["details"]) > 1:
        rows = [[words.detail(name), f"{value:.2f}"] for name, value in entry["details"].items()]
        head = ["measure", "value"]
        if each := entry.get("intervals"):
            head.append("95% interval")
            rows = [[*row, words.interval({"interval": each[name]})] for row, name in zip(rows, each, strict=True)]
        blocks.append(Table(head, rows, (1, 2)))
    if entry["groups"]:
        rows = [[name, words.group_value(value), f"{n:,}"] for name, (value, n) in entry["groups"].items()]
        blocks.append(Table([entry["protocol"]["group_by"], words.measure(entry), "examples"], rows, (1, 2)))
    return blocks


def _wordings(entry: dict[str, Any]) -> list[Block]:
    if not entry["spread"]:
        return []
    asked = [{**entry, "wording": "protocol", "instruction": entry["protocol"]["instruction"]}, *entry["spread"]]
    rows = [[each["wording"], each["instruction"], f"{each['value']:.2f}", f"{each['n']:,}"] for each in asked]
    return [
        Heading("Wordings", 3),
        Line(f"{words.spread_phrase(entry)}."),
        Table(["wording", "prompt (Jinja)", words.measure(entry), "examples"], rows, (2, 3)),
    ]


def _published(entry: dict[str, Any]) -> list[Block]:
    if not entry["published"]:
        return []
    others = list(dict.fromkeys(name for row in entry["published"] for name in row.get("details", {})))
    rows = [
        [
            row["model"],
            f"{row['value']:.1f}",
            *(f"{row['details'][name]:.1f}" if name in row.get("details", {}) else "-" for name in others),
            row["source"],
            "read" if row["verified"] else "unverified",
        ]
        for row in entry["published"]
    ]
    folded = "Published results and where they stand"
    head = ["model", words.measure(entry), *map(words.detail, others), "source", ""]
    return [Table(head, rows, tuple(range(1, len(others) + 2)), folded)]


def _facts(report: dict[str, Any]) -> list[Block]:
    rows = []
    for name, manifest in report["data"].items():
        files = ", ".join(f"{file['path']} ({file['sha256'][:12]})" for file in manifest["files"])
        counts = [f"{manifest['examples']:,}", f"{manifest['rejected']:,}", words.published_count(manifest)]
        rows.append([name, *counts, manifest["layout"], files])
    head = ["split", "examples", "rejected", "published", "layout", "files (SHA-256)"]
    blocks: list[Block] = [
        Heading("Data"),
        Table(head, rows, (1, 2, 3)),
        Heading("Settings"),
        Code(yaml.safe_dump(report["config"], sort_keys=False).rstrip(), "yaml"),
        Heading("Versions"),
        Line(", ".join(f"{name} {number}" for name, number in report["versions"].items())),
    ]
    if report["model"]:
        blocks.append(Line(f"Model: {report['model']}, computed in {report['dtype']}"))
    return blocks
