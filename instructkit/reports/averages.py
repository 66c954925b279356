"""Averages over benchmarks, as the paper has them: given only where every benchmark of them was evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructkit.prompts.protocols import Row, benchmarks, load_protocol

HELD_IN = ("coco_caption", "okvqa", "aokvqa", "textcaps")
"""The paper's held-in average (arXiv 2305.06500, ablation table); A-OKVQA by direct answers."""

_HELD_IN_PUBLISHED = [
    Row("InstructBLIP FlanT5-XL", 94.1, "arXiv 2305.06500, ablation table"),
    Row("InstructBLIP FlanT5-XL without instruction-aware features", 89.8, "arXiv 2305.06500, ablation table"),
    Row("InstructBLIP FlanT5-XL without data balancing", 92.6, "arXiv 2305.06500, ablation table"),
]

TITLES = {
    "held_out": "Held-out",
    "held_out_percent": "Held-out, those in per cent",
    "held_in": "Held-in",
}
"""What each average is called in reports."""


def averages(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The held-out average, that of those scored in per cent, and the held-in average.

    Args:
        entries: benchmarks of a report by name.

    Returns:
        For `held_out`, `held_out_percent` (without captioning, whose CIDEr may be hundreds) and `held_in`: `value`,
        None unless all are there, `benchmarks`, those `missing`, those of which only a part was scored (`partial`), and
        `published` rows, none beside miniatures.
    """
    held_out = tuple(name for name in benchmarks() if load_protocol(name).role == "held-out")
    percent = tuple(name for name in held_out if load_protocol(name).metric != "cider")
    held_in_rows = [{"model": row.model, "value": row.value, "verified": row.verified} for row in _HELD_IN_PUBLISHED]
    averaged = {
        "held_out": (held_out, _published(held_out)),
        "held_out_percent": (percent, _published(percent)),
        "held_in": (HELD_IN, held_in_rows),
    }
    return {
        key: {**_average(entries, names), "published": [] if _any_miniature(entries, names) else rows}
        for key, (names, rows) in averaged.items()
    }


def _average(entries: Mapping[str, Mapping[str, Any]], names: tuple[str, ...]) -> dict[str, Any]:
    there = [entries[name] for name in names if name in entries]
    complete = len(there) == len(names)
    return {
        "value": sum(entry["value"] for entry in there) / len(there) if complete else None,
        "benchmarks": list(names),
        "missing": [name for name in names if name not in entries],
        "partial": [entry["benchmark"] for entry in there if entry["n"] < entry["available"]],
    }


def _any_miniature(entries: Mapping[str, Mapping[str, Any]], names: tuple[str, ...]) -> bool:
    return any(entries[name]["miniature"] for name in names if name in entries)


def _published(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Means of the published rows, for models that have one on every benchmark."""
    rows: dict[str, list[Row]] = {}
    for name in names:
        for row in load_protocol(name).published:
            rows.setdefault(row.model, []).append(row)
    return [
        {
            "model": model,
            "value": sum(row.value for row in found) / len(found),
            "verified": all(r.verified for r in found),
        }
        for model, found in rows.items()
        if len(found) == len(names)
    ]
