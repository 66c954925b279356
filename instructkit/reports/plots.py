"""Plots as SVG text that stands in the page itself; colours come from the page's style sheet."""

from __future__ import annotations

import math
from html import escape
from typing import Any

_ROW = 20
_LABEL = 176
_BARS = 250
_VALUE = 52


def scores(entry: dict[str, Any]) -> str:
    """Bars: this model, with its 95% interval, above the published ones; a dashed line where blindness gets."""
    rows = [("this model", entry["value"], "own")]
    rows += [(row["model"], row["value"], "known" if row["verified"] else "unsure") for row in entry["published"]]
    scale = _BARS / _top([value for _, value, _ in rows] + [(entry["interval"] or [0, 0])[1]], entry["metric"])
    parts = []
    for index, (label, value, kind) in enumerate(rows):
        y = index * _ROW
        end = _LABEL + value * scale
        parts.append(_text(_LABEL - 8, y + 14, label, "end"))
        parts.append(
            f'<rect class="{kind}" x="{_LABEL}" y="{y + 3}" width="{max(1, value * scale):.1f}" height="14" rx="2"/>'
        )
        if kind == "own" and entry["interval"]:
            low, high = (_LABEL + bound * scale for bound in entry["interval"])
            end = max(end, high)
            parts.append(
                f'<path class="whisker" d="M{low:.1f} {y + 10}H{high:.1f}M{low:.1f} {y + 6}v8M{high:.1f} {y + 6}v8"/>'
            )
        parts.append(_text(end + 6, y + 14, f"{value:.1f}", "start", "strong" if kind == "own" else ""))
    height = len(rows) * _ROW
    blind = entry["blind_baseline"]
    if blind is not None:
        x = _LABEL + blind * scale
        parts.append(f'<path class="blind" d="M{x:.1f} 0V{height}"/>')
        parts.append(_text(x, height + 13, f"blind {blind:.1f}", "middle"))
        height += _ROW
    beside = " beside published ones" if entry["published"] else ""
    return _svg(_LABEL + _BARS + _VALUE, height, parts, f"{entry['title']}: score of this model{beside}")


def overview(entries: list[dict[str, Any]]) -> str:
    """A line a benchmark: this model among the published ones."""
    values = [row["value"] for entry in entries for row in (*entry["published"], entry)]
    top = max(100.0, *values, *((entry["interval"] or [0, 0])[1] for entry in entries))
    width = 2 * _BARS
    scale = width / (20 * math.ceil(top / 20))
    height = len(entries) * _ROW + 6
    parts = []
    for tick in range(0, math.ceil(top / 20) * 20 + 1, 20):
        x = _LABEL + tick * scale
        parts.append(f'<path class="grid" d="M{x:.1f} 0V{height}"/>{_text(x, height + 14, str(tick), "middle")}')
    for index, entry in enumerate(entries):
        y = index * _ROW + 12
        parts.append(_text(_LABEL - 12, y + 4, entry["title"], "end"))
        for row in entry["published"]:
            kind = "known" if row["verified"] else "ring"
            about = f"<title>{escape(row['model'])} {row['value']:.1f}</title>"
            parts.append(
                f'<circle class="{kind}" cx="{_LABEL + row["value"] * scale:.1f}" cy="{y}" r="4">{about}</circle>'
            )
        if entry["interval"]:
            low, high = (_LABEL + bound * scale for bound in entry["interval"])
            parts.append(f'<path class="whisker" d="M{low:.1f} {y}H{high:.1f}"/>')
        x = _LABEL + entry["value"] * scale
        about = f"<title>this model {entry['value']:.1f}</title>"
        parts.append(f'<path class="own" d="M{x:.1f} {y - 6}l6 6l-6 6l-6 -6z">{about}</path>')
    among = " among published ones" if any(entry["published"] for entry in entries) else ""
    return _svg(_LABEL + width + 20, height + 20, parts, f"scores of this model{among}, by benchmark")


def reliability(calibration: dict[str, Any]) -> str:
    """Reliability diagram: accuracy over confidence, one bar a bin, its darkness the share of answers in it."""
    side, left, top = 200, 40, 8
    most = max(row["n"] for row in calibration["bins"])
    width = side / len(calibration["bins"])
    parts = []
    for index, row in enumerate(calibration["bins"]):
        if not row["n"]:
            continue
        height = row["accuracy"] / 100 * side
        about = f"confidence {row['confidence']:.0f}%, accuracy {row['accuracy']:.0f}%, {row['n']:,} answers"
        parts.append(
            f'<rect class="own" opacity="{0.3 + 0.7 * row["n"] / most:.2f}" x="{left + index * width + 1:.1f}" '
            f'y="{top + side - max(height, 1.5):.1f}" width="{width - 2:.1f}" height="{max(height, 1.5):.1f}">'
            f"<title>{about}</title></rect>"
        )
    parts.append(f'<path class="axis" d="M{left} {top}V{top + side}H{left + side}"/>')
    parts.append(f'<path class="blind" d="M{left} {top + side}L{left + side} {top}"/>')
    for share in (0, 50, 100):
        parts.append(_text(left - 6, top + side - share / 100 * side + 4, str(share), "end"))
        parts.append(_text(left + share / 100 * side, top + side + 15, str(share), "middle"))
    parts.append(_text(left + side / 2, top + side + 32, "confidence, %", "middle"))
    turned = f'transform="rotate(-90 11 {top + side / 2:.0f})"'
    parts.append(f'<text x="11" y="{top + side / 2:.0f}" text-anchor="middle" {turned}>accuracy, %</text>')
    return _svg(left + side + 16, top + side + 38, parts, "reliability diagram")


def spread(entry: dict[str, Any]) -> str:
    """Dots: the score under the protocol's prompt and under training wordings."""
    rows = [("protocol's prompt", entry["value"], "own")]
    rows += [(each["wording"], each["value"], "known") for each in entry["spread"]]
    values = [value for _, value, _ in rows]
    low, high = min(values), max(values)
    margin = max(1.0, 0.15 * (high - low))
    low, high = low - margin, high + margin
    parts = []
    for index, (label, value, kind) in enumerate(rows):
        y = index * _ROW + 10
        x = _LABEL + (value - low) / (high - low) * _BARS
        parts.append(_text(_LABEL - 8, y + 4, label, "end"))
        parts.append(f'<path class="grid" d="M{_LABEL} {y}H{_LABEL + _BARS}"/>')
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y}" r="5"/>')
        parts.append(_text(x + 9, y + 4, f"{value:.1f}", "start", "strong" if kind == "own" else ""))
    return _svg(_LABEL + _BARS + _VALUE, len(rows) * _ROW + 4, parts, f"{entry['title']}: score by wording")


def comparison(title: str, rows: list[tuple[str, float, tuple[float, float] | None]], metric: str) -> str:
    """Bars of several runs on one benchmark: name, value, 95% interval."""
    scale = _BARS / _top([bound for _, value, interval in rows for bound in (value, (interval or (0, 0))[1])], metric)
    parts = []
    for index, (label, value, interval) in enumerate(rows):
        y, end = index * _ROW, _LABEL + value * scale
        parts.append(_text(_LABEL - 8, y + 14, label, "end"))
        parts.append(
            f'<rect class="own" x="{_LABEL}" y="{y + 3}" width="{max(1, value * scale):.1f}" height="14" rx="2"/>'
        )
        if interval:
            low, high = (_LABEL + bound * scale for bound in interval)
            end = max(end, high)
            parts.append(
                f'<path class="whisker" d="M{low:.1f} {y + 10}H{high:.1f}M{low:.1f} {y + 6}v8M{high:.1f} {y + 6}v8"/>'
            )
        parts.append(_text(end + 6, y + 14, f"{value:.1f}", "start", "strong"))
    return _svg(_LABEL + _BARS + _VALUE, len(rows) * _ROW, parts, f"{title}: score by run")


def _top(values: list[float], metric: str) -> float:
    """Where the scale ends: shares at 100, CIDEr a little above the best."""
    return max(*values, 1.0) * 1.05 if metric == "cider" else 100.0


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    shown = text if len(text) <= 22 else text[:21] + "…"
    name = f' class="{kind}"' if kind else ""
    about = f"<title>{escape(text)}</title>" if shown != text else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(shown)}{about}</text>'


def _svg(width: float, height: float, parts: list[str], about: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(about)}">{"".join(parts)}</svg>'
    )
