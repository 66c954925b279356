"""A report as Markdown."""

from __future__ import annotations

import re
from typing import Any

import yaml

from instructkit.reports import words


def markdown(report: dict[str, Any]) -> str:
    """The report for people, in plain text."""
    entries = list(report["benchmarks"].values())
    miniatures = words.miniatures(entries)
    lines = ["# Report", "", *([f"**{plain(miniatures)}**", ""] if miniatures else []), *_scores(entries)]
    lines += _averages(report)
    lines += _not_evaluated(report)
    for entry in entries:
        lines += _benchmark(entry)
    return "\n".join([*lines, *_facts(report)]) + "\n"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table; head and cells may hold any text, which is shown as it is."""
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def plain(text: str) -> str:
    """A text in one line that Markdown and HTML show as it is: answers and names come from models and strangers."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_\[\]!|~#])", r"\\\1", line)
    # No address of the text becomes a link, as some viewers make them.
    return re.sub(r"(?i)(:)(?=//)|(?<=www)(\.)|(@)", lambda found: f"&#{ord(found[0])};", line)


def fenced(text: str, language: str = "") -> list[str]:
    """A block of text as it is, whatever backticks it holds."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}{language}", text, fence]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(map(plain, cells)) + " |"


def _scores(entries: list[dict[str, Any]]) -> list[str]:
    head = ["benchmark", "metric", "score", "95% interval", "examples", "blind", "published"]
    rows = []
    for entry in entries:
        blind = f"{entry['blind_baseline']:.1f}" if entry["blind_baseline"] is not None else "-"
        rows.append(
            [
                f"{entry['title']} (protocol v{entry['protocol_version']})",
                words.measure(entry),
                f"{entry['value']:.2f}",
                words.interval(entry),
                words.size(entry),
                blind,
                "; ".join(map(words.published, entry["published"])) or "-",
            ]
        )
    return [*table(head, rows), "", words.notes(entries)] if entries else ["No benchmark has a score."]


def _averages(report: dict[str, Any]) -> list[str]:
    lines = ["", "## Averages", ""]
    for title, key in (("Held-out", "held_out"), ("Held-in", "held_in")):
        found = report["averages"][key]
        lines.append(f"- {title}: {plain(words.average(found))}.")
        if found["value"] is not None and found["published"]:
            lines.append(f"  Published: {plain('; '.join(map(words.published, found['published'])))}.")
    return lines


def _not_evaluated(report: dict[str, Any]) -> list[str]:
    if not report["not_evaluated"]:
        return []
    rows = [[each["title"], each["reason"]] for each in report["not_evaluated"]]
    lines = ["", "## Without a score", "", *table(["benchmark", "reason"], rows)]
    for each in report["not_evaluated"]:
        lines += _errors(each) + _cut(each)
    if report["submissions"]:
        lines += ["", f"Submission files: {plain(', '.join(report['submissions']))}."]
    return lines


def _benchmark(entry: dict[str, Any]) -> list[str]:
    protocol = entry["protocol"]
    lines = ["", f"## {plain(entry['title'])}", ""]
    lines.append(
        f"{plain(protocol['source'] + '/' + protocol['split'])}, {plain(entry['role'])}, "
        f"protocol v{entry['protocol_version']}: {plain(words.measure(entry))} **{entry['value']:.2f}** "
        f"({words.interval(entry)}) on {words.size(entry)} examples."
    )
    lines += ["", *table(["measure", "value"], [[name, f"{value:.4f}"] for name, value in entry["details"].items()])]
    if entry["groups"]:
        rows = [[name, words.group_value(value), f"{n:,}"] for name, (value, n) in entry["groups"].items()]
        lines += ["", *table([protocol["group_by"], words.measure(entry), "examples"], rows)]
    lines += _data_notes(entry) + _errors(entry) + _cut(entry)
    lines += ["", "Prompt, as Jinja and for the first example, byte for byte (JSON):", ""]
    lines += fenced(f"{words.literal(protocol['instruction'])}\n{words.literal(entry['prompt'])}")
    lines += ["", plain(words.answering(protocol)), "", plain(protocol["notes"])]
    if entry["spread"]:
        rows = [[each["wording"], each["instruction"], f"{each['value']:.2f}"] for each in entry["spread"]]
        lines += ["", f"Wordings: {plain(words.spread_phrase(entry))}.", ""]
        lines += table(
            ["wording", "prompt", words.measure(entry)],
            [["protocol", protocol["instruction"], f"{entry['value']:.2f}"], *rows],
        )
    lines += _calibration(entry) + _cases(entry)
    return lines


def _data_notes(entry: dict[str, Any]) -> list[str]:
    return [line for note in entry.get("data_notes", []) for line in ("", f"**Note:** {plain(note)}.")]


def _errors(entry: dict[str, Any]) -> list[str]:
    if not entry["errors"]:
        return []
    rows = [[name, error] for name, error in entry["errors"].items()]
    return ["", f"**{len(rows):,} examples failed and are not scored:**", "", *table(["example", "error"], rows)]


def _cut(entry: dict[str, Any]) -> list[str]:
    told = words.cut(entry)
    return ["", f"**{told}**"] if told else []


def _calibration(entry: dict[str, Any]) -> list[str]:
    found = entry["calibration"]
    if not found:
        return []
    rows = [
        [f"{10 * index} to {10 * index + 10}", f"{row['confidence']:.1f}", f"{row['accuracy']:.1f}", f"{row['n']:,}"]
        for index, row in enumerate(found["bins"])
        if row["n"]
    ]
    return [
        "",
        f"Calibration: ECE {found['ece']:.1f}. {words.ECE}",
        "",
        *table(["bin, %", "confidence", "accuracy", "answers"], rows),
    ]


def _cases(entry: dict[str, Any]) -> list[str]:
    rows = [
        [
            "right" if case["right"] else "wrong",
            case["example"],
            words.literal(case["prompt"]) + (f" (cut for {words.readers(case['cut'])})" if case.get("cut") else ""),
            words.literal(case["text"]),
            "; ".join(case["expected"]),
        ]
        for case in entry["cases"]
    ]
    return ["", "Examples:", "", *table(["", "example", "prompt", "answer", "expected"], rows)]


def _facts(report: dict[str, Any]) -> list[str]:
    rows = []
    for name, manifest in report["data"].items():
        files = ", ".join(f"{file['path']} {file['sha256'][:12]}" for file in manifest["files"])
        counts = [f"{manifest['examples']:,}", f"{manifest['rejected']:,}", words.published_count(manifest)]
        rows.append([name, *counts, manifest["layout"], files])
    lines = ["", "## Data", "", *table(["split", "examples", "rejected", "published", "layout", "files"], rows)]
    if report["training"]:
        lines += ["", "## Last step of training", ""]
        lines += fenced("\n".join(f"{key}: {value}" for key, value in report["training"].items()))
    lines += ["", "## Settings", "", *fenced(yaml.safe_dump(report["config"], sort_keys=False).rstrip(), "yaml")]
    lines += [
        "",
        "## Versions",
        "",
        plain(", ".join(f"{name} {number}" for name, number in report["versions"].items())),
    ]
    if report["model"]:
        lines += ["", f"Model: {plain(report['model'])}, computed in {plain(report['dtype'])}"]
    return lines
