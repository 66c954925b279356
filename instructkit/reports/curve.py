"""How a training run went: its losses and its speed over the steps, from the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import msgspec

from instructkit.files import reading
from instructkit.reports import plots
from instructkit.reports.blocks import Block, Figure, Figures, Heading, Line, Table
from instructkit.runs.log import LOSS_OF

POINTS = 200
"""So many points of a line at most; each is then the mean of as many lines of the log as it takes."""
_read_line = msgspec.json.Decoder(dict[str, int | float]).decode
_SPEED = "samples_per_second"
_VALIDATION = "validation_loss"
_WATCHED = "watch/"


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `log.jsonl`; none where there is no log.

    Raises:
        UserError: it is damaged.
    """
    path = folder / "log.jsonl"
    if not path.is_file():
        return []
    with reading(path, "resume=true leaves out what cannot be read"):
        lines = [_read_line(line) for line in path.read_bytes().splitlines()]
        if any("step" not in line for line in lines):
            raise ValueError("a line without a step")
    return lines


def training_curve(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is plotted of a run.

    Args:
        lines: of its log.

    Returns:
        `losses`, by name points (step, mean loss of a target token since the line before): of all datasets, each of
        several, and the validation; `speed`, points (step, samples/s); `watched`, by benchmark points (step, score);
        `lines_per_point`. Empty without a step.
    """
    steps = [line for line in lines if "loss" in line]
    if not steps:
        return {}
    together = -(-len(steps) // POINTS)
    names = list(dict.fromkeys(name for line in steps for name in line if name.startswith(LOSS_OF)))
    plain = "mean_loss" if any("mean_loss" in line for line in steps) else "loss"
    losses = {"all datasets" if len(names) > 1 else "loss": _points(steps, plain, together)}
    if len(names) > 1:
        losses |= {name.removeprefix(LOSS_OF): _points(steps, name, together) for name in names}
    if validation := _points(lines, _VALIDATION, 1):
        losses["validation"] = validation
    watched = dict.fromkeys(name for line in lines for name in line if name.startswith(_WATCHED))
    return {
        "losses": losses,
        "speed": _points(steps, _SPEED, together),
        "watched": {name.removeprefix(_WATCHED): _points(lines, name, 1) for name in watched},
        "lines_per_point": together,
    }


def training_blocks(report: Mapping[str, Any]) -> list[Block]:
    """The section on training: a line, the curves, and the losses by dataset in numbers."""
    curve, training = report.get("curve"), report["training"]
    if not curve:
        return []
    losses = curve["losses"]
    whole = next(iter(losses.values()))
    told = f"Loss {whole[0][1]:.4f} at step {whole[0][0]:,}, {whole[-1][1]:.4f} at step {whole[-1][0]:,}"
    if curve["speed"]:
        told += f"; {median(value for _, value in curve['speed']):,.1f} samples/s (median)"
    blocks: list[Block] = [Heading("Training"), Line(told + ".")]
    if "model_of_step" in training:
        reached = ", ".join(
            f"{name} {value}" for name, value in training.items() if name.startswith((_VALIDATION, _WATCHED))
        )
        blocks.append(Line(f"The model is that of step {training['model_of_step']:,}, the best ({reached})."))
    blocks.append(Figures(_figures(curve)))
    if len(losses) > 1:
        rows = [
            [name, f"{points[0][1]:.4f}", f"{min(value for _, value in points):.4f}", f"{points[-1][1]:.4f}"]
            for name, points in losses.items()
        ]
        blocks.append(Table(["loss", "first", "lowest", "last"], rows, (1, 2, 3)))
    return blocks


def _figures(curve: Mapping[str, Any]) -> list[Figure]:
    losses = curve["losses"]
    each = curve["lines_per_point"]
    binned = f" Each point is the mean of {each} lines of the log." if each > 1 else ""
    if len(losses) > plots.COLOURS:
        few = {name: points for name, points in losses.items() if name in ("all datasets", "validation")}
        binned += f" Only {' and '.join(few)} of {len(losses)} lines; the table has them all."
        losses = few
    figures = [Figure(f"Mean loss of a target token.{binned}", plots.curves(losses, "loss by step"))]
    if curve["speed"]:
        figures.append(Figure("Samples/s.", plots.curves({"samples/s": curve["speed"]}, "samples/s by step")))
    for start in range(0, len(curve["watched"]), plots.COLOURS):
        some = dict(list(curve["watched"].items())[start : start + plots.COLOURS])
        caption = f"Scores on the way: {', '.join(some)}."
        figures.append(Figure(caption, plots.curves(some, "scores by step")))
    return figures


def _points(lines: Sequence[Mapping[str, Any]], name: str, together: int) -> list[tuple[int, float]]:
    """The last step and the mean value of every so many lines; lines without the value say nothing."""
    groups = [lines[start : start + together] for start in range(0, len(lines), together)]
    held = [(group[-1]["step"], [line[name] for line in group if name in line]) for group in groups]
    return [(step, fmean(values)) for step, values in held if values]
