"""Plots as SVG text that stands in the page itself; colours come from the page's style sheet.

Every plot but the reliability diagram is as wide as a phone's page, and its labels stand in lines of their own, so that
none is cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any
from unicodedata import east_asian_width

_WIDTH = 340
_BARS = 288
_LINE = 16
_BAR = 20

Interval = Sequence[float] | None
Points = Sequence[tuple[float, float]]


def scores(entry: dict[str, Any]) -> str:
    """Bars: this model, with its 95% interval, above the published ones; a dashed line where blindness gets."""
    rows = [("this model", entry["value"], "own", entry["interval"])]
    rows += [(row["model"], row["value"], "known" if row["verified"] else "unsure", None) for row in entry["published"]]
    beside = " beside published ones" if entry["published"] else ""
    about = f"{entry['title']}: score of this model{beside}"
    return _bars(rows, entry["metric"], about, entry["blind_baseline"])


def comparison(title: str, rows: Iterable[tuple[str, float, Interval]], metric: str) -> str:
    """Bars of several runs on one benchmark: name, value, 95% interval."""
    return _bars([(name, value, "own", interval) for name, value, interval in rows], metric, f"{title}: score by run")


def overview(entries: list[dict[str, Any]]) -> str:
    """A line a benchmark: this model with its interval, and the best of the published ones with its name."""
    best = [max(entry["published"], key=lambda row: row["value"], default=None) for entry in entries]
    top = _top([row["value"] for row in (*entries, *filter(None, best))] + _highs(entries))
    ticks = _ticks(top)
    scale = _BARS / ticks[-1]
    left = (_WIDTH - _BARS) / 2
    parts, y = [], 0.0
    for entry, other in zip(entries, best, strict=True):
        beside = f"; best published: {other['model']} {other['value']:.1f}" if other else ""
        label, y = _label(0, y, f"{entry['title']} {entry['value']:.1f}{beside}")
        parts.append(label)
        y += _BAR / 2
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{left + _BARS:.1f}"/>')
        if other:
            kind = "known" if other["verified"] else "ring"
            parts.append(f'<circle class="{kind}" cx="{left + other["value"] * scale:.1f}" cy="{y:.1f}" r="4"/>')
        if entry["interval"]:
            low, high = (left + bound * scale for bound in entry["interval"])
            parts.append(f'<path class="whisker" d="M{low:.1f} {y:.1f}H{high:.1f}"/>')
        parts.append(f'<path class="own" d="M{left + entry["value"] * scale:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"/>')
        y += _BAR / 2
    for tick in ticks:
        parts.append(_text(left + tick * scale, y + 14, f"{tick:g}", "middle"))
    beside = " and of the best published one" if any(best) else ""
    return _svg(_WIDTH, y + 20, parts, f"scores of this model{beside}, by benchmark")


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
    parts.append(_text(left + side / 2, top + side + 32, "confidence, %; darker: more answers", "middle"))
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
    parts, y = [], 0.0
    for label, value, kind in rows:
        text, y = _label(0, y, label)
        y += _BAR / 2
        x = (value - low) / (high - low) * _BARS
        parts += [text, f'<path class="grid" d="M0 {y:.1f}H{_BARS}"/>']
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(_text(x + 9, y + 4, f"{value:.1f}", "start", "strong" if kind == "own" else ""))
        y += _BAR / 2
    return _svg(_WIDTH, y + 4, parts, f"{entry['title']}: score by wording")


def curves(series: dict[str, Points], about: str) -> str:
    """Lines over the steps of a run, from zero on; with several a legend below, in which the first is the thickest.

    Args:
        series: points (step, value) of each line by its name; at most `COLOURS` lines, none empty.
        about: what the values are, for those who do not see the plot.
    """
    height, top = 150, 8
    steps = _ticks(max(step for points in series.values() for step, _ in points))
    values = _ticks(max(value for points in series.values() for _, value in points))
    left = 8 + max(_wide(_number(tick)) for tick in values)
    width = _WIDTH - left - 20
    across, up = width / steps[-1], height / values[-1]
    parts = []
    for tick in values:
        y = top + height - tick * up
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{left + width:.1f}"/>')
        parts.append(_text(left - 6, y + 4, _number(tick), "end"))
    for tick in steps:
        parts.append(_text(left + tick * across, top + height + 15, _number(tick), "middle"))
    parts.append(_text(left + width / 2, top + height + 31, "step", "middle"))
    y = top + height + 36.0
    for colour, points in reversed(list(enumerate(series.values()))):
        at = [f"{left + step * across:.1f} {top + height - value * up:.1f}" for step, value in points]
        # A line of one point is seen as a dot, by its round ends.
        parts.append(f'<path class="curve c{colour}" d="M{"L".join(at if len(at) > 1 else at * 2)}"/>')
    for colour, name in enumerate(series if len(series) > 1 else ()):
        text, below = _label(left + 24, y, name)
        parts += [f'<path class="curve c{colour}" d="M{left:.1f} {y + 10:.1f}h16"/>', text]
        y = below
    return _svg(_WIDTH, y + 4, parts, about)


def histogram(kept: Sequence[int], dropped: Sequence[int], low: float, least: float | None, about: str) -> str:
    """Bars of equal width from `low` to 1: how many were kept, and above them how many were dropped.

    Args:
        kept: number of each bar.
        dropped: likewise.
        low: where the first bar begins.
        least: a dashed line there; None for no line.
        about: what is counted, for those who do not see the plot.
    """
    height, top = 150, 8
    ticks = _ticks(max(map(sum, zip(kept, dropped, strict=True))))
    left = 8 + max(_wide(_number(tick)) for tick in ticks)
    width = _WIDTH - left - 20
    up, bar = height / ticks[-1], width / len(kept)
    parts = []
    for tick in ticks:
        y = top + height - tick * up
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{left + width:.1f}"/>')
        parts.append(_text(left - 6, y + 4, _number(tick), "end"))
    for index, counts in enumerate(zip(kept, dropped, strict=True)):
        y = top + height
        for kind, count in zip(("own", "lost"), counts, strict=True):
            y -= count * up
            parts.append(
                f'<rect class="{kind}" x="{left + index * bar + 0.5:.1f}" y="{y:.1f}" width="{bar - 1:.1f}" '
                f'height="{count * up:.1f}"><title>{count:,}</title></rect>'
            )
    for share in (0, 0.5, 1):
        parts.append(_text(left + share * width, top + height + 15, f"{low + share * (1 - low):g}", "middle"))
    parts.append(_text(left + width / 2, top + height + 31, "score; blue: kept, red: dropped", "middle"))
    if least is not None:
        x = left + (least - low) / (1 - low) * width
        parts.append(f'<path class="blind" d="M{x:.1f} {top}V{top + height}"/>')
    return _svg(_WIDTH, top + height + 38, parts, about)


COLOURS = 7
"""So many lines of `curves` can be told apart."""


def _bars(rows: Sequence[tuple[str, float, str, Interval]], metric: str, about: str, blind: float | None = None) -> str:
    """A bar a row (label, value, kind, 95% interval); shares end at 100, CIDEr a little above the best."""
    bounds = [max(value, *(interval or [0])) for _, value, _, interval in rows]
    scale = _BARS / (max(*bounds, 1.0) * 1.05 if metric == "cider" else 100.0)
    parts, y = [], 0.0
    across = None if blind is None else blind * scale
    for label, value, kind, interval in rows:
        text, y = _label(0, y, label)
        end = value * scale
        parts.append(text)
        parts.append(f'<rect class="{kind}" y="{y + 2:.1f}" width="{max(1, end):.1f}" height="14" rx="2"/>')
        if interval:
            low, high = (bound * scale for bound in interval)
            end = max(end, high)
            middle = f"{y + 9:.1f}H{high:.1f}M{low:.1f} {y + 5:.1f}v8M{high:.1f} {y + 5:.1f}v8"
            parts.append(f'<path class="whisker" d="M{low:.1f} {middle}"/>')
        parts.append(_text(end + 6, y + 13, f"{value:.1f}", "start", "strong" if kind == "own" else ""))
        y += _BAR
        if across is not None:
            parts.append(f'<path class="blind" d="M{across:.1f} {y:.1f}v-{_BAR}"/>')
    if across is not None:
        label = f"blind {blind:.1f}"
        half = _wide(label) / 2
        parts.append(_text(min(max(across, half), _WIDTH - half), y + 13, label, "middle"))
        y += _LINE + 4
    return _svg(_WIDTH, y, parts, about)


def _highs(entries: list[dict[str, Any]]) -> list[float]:
    return [entry["interval"][1] for entry in entries if entry["interval"]]


def _top(values: list[float]) -> float:
    return max(100.0, *values)


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 to the first that is not below `top`: 3 to 6 of them."""
    unit = 10.0 ** math.floor(math.log10(top)) if top > 0 else 1.0
    step = next(size * unit for size in (0.2, 0.25, 0.5, 1, 2, 2.5, 5) if top <= 5 * size * unit * (1 + 1e-9))
    return [index * step for index in range(max(1, math.ceil(top / step - 1e-9)) + 1)]


def _number(value: float) -> str:
    """A number in few letters: 12.5k, 3M."""
    for least, size, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _wide(text: str) -> float:
    """No fewer pixels than a text takes at the style sheet's 12 px, in whatever font without serifs is there."""
    return sum(
        15 if east_asian_width(c) in "WF" else 12 if c in "mwMW@%" else 9.5 if c.isupper() else 7.6 for c in text
    )


def _wrapped(text: str, width: float) -> list[str]:
    """Lines of at most `width` pixels; a word that is wider is broken."""
    lines = [""]
    for word in " ".join(text.split()).split(" "):
        if lines[-1] and _wide(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if _wide(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines[1:] if len(lines) > 1 else lines


def _label(x: float, y: float, text: str) -> tuple[str, float]:
    """A label in as many lines as it takes below `y`, and where they end."""
    lines = _wrapped(text, _WIDTH - x)
    shown = "".join(_text(x, y + (index + 1) * _LINE - 4, line, "start") for index, line in enumerate(lines))
    return shown, y + len(lines) * _LINE


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, parts: list[str], about: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(about)}">{"".join(parts)}</svg>'
    )
