"""The report of CapFilt: what was kept and dropped, by origin and score, with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import yaml

from instructkit.config.settings import CapFiltRun
from instructkit.evaluation.capfilt.join import BINS, Pair, Shown, Tally
from instructkit.reports import plots
from instructkit.reports.blocks import Block, Card, Cards, Code, Figure, Figures, Heading, Line, Table
from instructkit.reports.files import write_files
from instructkit.runs.provenance import command_line, commit, versions

_REASONS = ("unmatched", "ranked lower", "repeat", "blank", "unreadable")
_DEFINED = (
    "Noise ratio: the share of the texts that the filter looked at and did not keep. Repeat: a text that the same "
    "picture already has, such as a caption that equals the web's text; it is not looked at again. A picture that is "
    "listed several times gets one caption, and each of its web texts is judged. Of a picture that cannot be read "
    "nothing is kept."
)
_PUBLISHED = (
    "BLIP's filter (arXiv 2201.12086) calls 25% of captions by nucleus sampling noisy and 19% of captions "
    "by beam search."
)


def write_capfilt_report(config: CapFiltRun, tally: Tally, folder: Path) -> None:
    """Write `report/` of the run's folder: a page, Markdown and JSON.

    Args:
        config: the settings.
        tally: what it came to.
        folder: of the run.

    Raises:
        UserError: the disk refuses.
    """
    settings = {key: value for key, value in msgspec.to_builtins(config).items() if key != "output"}
    blocks = contents(config, tally, settings)
    place = folder / "report"
    report = {
        "capfilt": {**msgspec.to_builtins(tally), "noise": {name: tally.noise(name) for name in _origins(tally)}},
        "config": settings,
        "run": {"command": command_line(), "commit": commit(), "seed": config.seed},
        "versions": versions(),
    }
    write_files(place, blocks, report)


def contents(config: CapFiltRun, tally: Tally, settings: dict[str, Any]) -> list[Block]:
    """The report for people, block by block."""
    kept = sum(tally.kept.values())
    blocks: list[Block] = [
        Heading("CapFilt", 1),
        Line(
            f"{kept + tally.human:,} pairs: {tally.kept.get('web', 0):,} of the web, "
            f"{tally.kept.get('synthetic', 0):,} synthetic, {tally.human:,} written by people.",
            kind="soft",
        ),
    ]
    if tally.unreadable:
        blocks.append(Line(f" {tally.unreadable:,} of {tally.pictures:,} pictures cannot be read.", "Warning:", "warn"))
    if tally.cut:
        blocks.append(Line(f" the filter read only the beginning of {tally.cut:,} texts.", "Note:", "warn"))
    blocks += [_counts(tally), _pictures(tally), Line(_DEFINED, kind="soft"), Line(_PUBLISHED, kind="soft")]
    figures = [_histogram(config, tally, origin) for origin in _origins(tally) if _scored(tally, origin)]
    blocks += [Figures(figures)] if figures else []
    for kind, shown in tally.shown.items():
        blocks += [Heading(kind.capitalize()), Cards([_card(each) for each in shown])]
    return [
        *blocks,
        Heading("Settings"),
        Code(yaml.safe_dump(settings, sort_keys=False).rstrip(), "yaml"),
        Heading("Versions"),
        Line(", ".join(f"{name} {number}" for name, number in versions().items())),
    ]


def _origins(tally: Tally) -> list[str]:
    return [name for name in ("web", "synthetic") if name in tally.kept or name in tally.dropped]


def _counts(tally: Tally) -> Table:
    reasons = [why for why in _REASONS if any(why in each for each in tally.dropped.values())]
    rows = []
    for origin in _origins(tally):
        dropped, kept = tally.dropped.get(origin, {}), tally.kept.get(origin, 0)
        noise = tally.noise(origin)
        rows.append(
            [
                origin,
                f"{kept + sum(dropped.values()):,}",
                f"{kept:,}",
                *(f"{dropped.get(why, 0):,}" for why in reasons),
                "-" if noise is None else f"{100 * noise:.1f}%",
            ]
        )
    rows.append(["human", f"{tally.human:,}", f"{tally.human:,}", *("-" for _ in reasons), "-"])
    head = ["texts", "all", "kept", *reasons, "noise ratio"]
    return Table(head, rows, tuple(range(1, len(head))))


def _pictures(tally: Tally) -> Table:
    rows = [
        ["web pairs", f"{tally.listed:,}"],
        ["their pictures", f"{tally.pictures:,}"],
        ["listed several times", f"{tally.repeated:,}"],
        ["cannot be read", f"{tally.unreadable:,}"],
        ["keep no text", f"{tally.emptied:,}"],
    ]
    return Table(["pictures", "number"], rows, (1,))


def _scored(tally: Tally, origin: str) -> bool:
    return origin in tally.kept_bins or origin in tally.dropped_bins


def _histogram(config: CapFiltRun, tally: Tally, origin: str) -> Figure:
    none = [0] * BINS
    kept, dropped = tally.kept_bins.get(origin, none), tally.dropped_bins.get(origin, none)
    step = (1 - tally.low) / BINS
    rows = [
        [f"{tally.low + index * step:.2f} to {tally.low + (index + 1) * step:.2f}", f"{stay:,}", f"{go:,}"]
        for index, (stay, go) in enumerate(zip(kept, dropped, strict=True))
        if stay or go
    ]
    caption = f"{origin.capitalize()} texts by {config.filter.score.upper()} score"
    least = config.filter.least
    caption += f"; dashed: the threshold, {least:g}." if least is not None else "."
    svg = plots.histogram(kept, dropped, tally.low, least, f"number of {origin} texts by score")
    return Figure(caption, svg, Table(["score", "kept", "dropped"], rows, (1, 2)))


def _card(shown: Shown) -> Card:
    said = [_said(pair, why) for pair, why in zip(shown.texts, shown.why, strict=True)]
    others = [line for index, line in enumerate(said) if index != shown.index]
    return Card(Path(shown.image), said[shown.index], [*others, shown.image], not shown.why[shown.index])


def _said(pair: Pair, why: str) -> str:
    score = "" if pair.score is None else f", {pair.score:.3f}"
    return f"{pair.caption or '(nothing)'} ({pair.origin}, {why or 'kept'}{score})"
