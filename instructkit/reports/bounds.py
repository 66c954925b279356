"""What a tuned model's scores stand between: what can be said without a picture, and what its LLM says in words.

Four rows of the same benchmarks by the same protocols:
    blind      the higher of two: the tuned model asked about another picture of the benchmark, and the most frequent
               answer, of all questions for the same fact where the data tell it
    before     the model that training began with
    tuned
    words      its LLM, told in words all that is in the picture
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from instructkit.data.dataset import load_examples
from instructkit.errors import UserError
from instructkit.evaluation import metrics
from instructkit.evaluation.responses import Answer, ResponseLog
from instructkit.evaluation.run import benchmark_folder, read_evaluation
from instructkit.evaluation.score import Result
from instructkit.prompts.protocols import Protocol, load_protocol
from instructkit.reports import words
from instructkit.reports.blocks import Block, Heading, Line, Table
from instructkit.reports.files import write_files
from instructkit.reports.report import read_report
from instructkit.runs.provenance import command_line, commit, versions
from instructkit.runs.ranks import Ranks

RUNS = ("exchanged", "before", "tuned", "words")
ROWS = ("blind", "before", "tuned", "words")
_FREQUENT = 20
"""Answers that are tried as the only one."""
_HALF = 50.0
"""Area under the ROC curve of an answer that is always the same."""


class Bounds(NamedTuple):
    """One benchmark.

    Attributes:
        title: of the benchmark.
        role: `held-in` or `held-out`.
        metric: name of the metric.
        values: by row, 0 to 100; CIDEr times 100.
        intervals: by row, where the row is an evaluation: 95% of bootstrap draws.
        frequent: score of the most frequent answer; None where no single text is an answer.
        told: by run, means over the questions whose answer captions of the picture tell, and over the others; empty
            where single questions have no score.
    """

    title: str
    role: str
    metric: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]
    frequent: float | None
    told: dict[str, dict[str, float]]


def bounds_of(runs: Mapping[str, Path]) -> dict[str, Bounds]:
    """The benchmarks that all of these runs have a score of.

    Args:
        runs: folder of each of `RUNS`.

    Raises:
        UserError: a run is not evaluated, or they have no benchmark in common.
    """
    results = {row: {each.benchmark: each for each in read_evaluation(runs[row]).results} for row in RUNS}
    common = [name for name in results["tuned"] if all(name in each for each in results.values())]
    if not common:
        raise UserError(f"{', '.join(map(str, runs.values()))}: no benchmark has a score in all of them")
    root = Path(read_evaluation(runs["tuned"]).settings.data.root)
    return {name: _bounds(name, {row: results[row][name] for row in RUNS}, runs, root) for name in common}


def _bounds(name: str, results: Mapping[str, Result], runs: Mapping[str, Path], root: Path) -> Bounds:
    protocol = load_protocol(name)
    answers = {row: ResponseLog(benchmark_folder(runs[row], name), Ranks()).answers() for row in RUNS}
    meta = {each.id: each.meta for each in load_examples(root / protocol.source / protocol.split)}
    frequent = most_frequent(protocol, answers["tuned"], meta)
    values = {row: result.value for row, result in results.items()}
    intervals = {row: result.interval for row, result in results.items()}
    exchanged = values.pop("exchanged")
    blind = exchanged if frequent is None else max(exchanged, frequent)
    return Bounds(
        title=protocol.title,
        role=protocol.role,
        metric=protocol.metric,
        values={"blind": blind, **values},
        intervals={"blind": intervals.pop("exchanged") if blind == exchanged else None, **intervals},
        frequent=frequent,
        told=_told(protocol, answers, meta),
    )


def most_frequent(protocol: Protocol, answers: Sequence[Answer], meta: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The score of the one answer that is best for all questions that ask for the same fact, 0 to 100.

    Args:
        protocol: the benchmark.
        answers: with what each is compared with.
        meta: of the examples, by id; `fact` says what they ask for.
    """
    answers = [answer for answer in answers if answer.error is None]
    if protocol.metric == "roc_auc":
        return _HALF
    if protocol.metric == "cider" or not all(isinstance(answer.prediction, str) for answer in answers):
        return None
    metric = metrics.load(protocol.metric)
    groups: dict[str, list[Any]] = {}
    for answer in answers:
        groups.setdefault(str(meta[answer.example].get("fact", "")), []).append(answer.reference)
    best = 0.0
    for references in groups.values():
        texts = Counter(text for each in references for text in ([each] if isinstance(each, str) else each))
        tried = [text for text, _ in texts.most_common(_FREQUENT)]
        best += max((sum(metric.scores([text] * len(references), references)) for text in tried), default=0.0)
    return 100 * best / len(answers)


def _told(
    protocol: Protocol, answers: Mapping[str, Sequence[Answer]], meta: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    if protocol.metric in ("cider", "roc_auc"):
        return {}
    metric = metrics.load(protocol.metric)
    found: dict[str, dict[str, float]] = {}
    for row in RUNS:
        scored = [answer for answer in answers[row] if answer.error is None]
        scores = metric.scores([each.prediction for each in scored], [each.reference for each in scored])
        groups: dict[str, list[float]] = {}
        for answer, score in zip(scored, scores, strict=True):
            if "told" in meta[answer.example]:
                groups.setdefault(str(meta[answer.example]["told"]), []).append(100 * score)
        for group, each in groups.items():
            found.setdefault(group, {})[row] = statistics.mean(each)
    return found


class Summary(NamedTuple):
    """What the rows come to over the benchmarks of a role.

    Attributes:
        means: by row, over those in per cent: all but captioning.
        over_before: mean of tuned less that of before.
        over_blind: mean of tuned less that of blind.
        share: (tuned - blind) / (words - blind), of the means; None where words are not above blind.
        above_both: benchmarks on which the tuned model is above blind and before.
        benchmarks: number of all, captioning included.
    """

    means: dict[str, float]
    over_before: float
    over_blind: float
    share: float | None
    above_both: int
    benchmarks: int


def summary(bounds: Mapping[str, Bounds], role: str = "held-out") -> Summary | None:
    """Over the benchmarks of a role; None where none is in per cent."""
    found = [each for each in bounds.values() if each.role == role]
    percent = [each for each in found if each.metric != "cider"]
    if not percent:
        return None
    means = {row: statistics.mean(each.values[row] for each in percent) for row in ROWS}
    above = [each for each in found if each.values["tuned"] > max(each.values["blind"], each.values["before"])]
    over_blind = means["tuned"] - means["blind"]
    room = means["words"] - means["blind"]
    return Summary(
        means=means,
        over_before=means["tuned"] - means["before"],
        over_blind=over_blind,
        share=over_blind / room if room > 0 else None,
        above_both=len(above),
        benchmarks=len(found),
    )


def left_out(runs: Mapping[str, Path]) -> list[str]:
    """The benchmarks that some of the runs, but not all, have a score of; a sentence each."""
    scored = {row: {each.benchmark: each.title for each in read_evaluation(runs[row]).results} for row in RUNS}
    titles = {name: title for each in scored.values() for name, title in each.items()}
    without = {name: [row for row in RUNS if name not in scored[row]] for name in titles}
    return [f"{titles[name]} has no score of {', '.join(rows)}." for name, rows in without.items() if rows]


def contents(bounds: Mapping[str, Bounds], missing: Sequence[str], miniature: str | None) -> list[Block]:
    """The report for people, block by block.

    Args:
        bounds: by benchmark.
        missing: why a benchmark is left out, a sentence each.
        miniature: a sentence on made-up data; None for published ones.
    """
    numbers = tuple(range(1, len(ROWS) + 1))
    blocks: list[Block] = [
        Heading("Between blind and words", 1),
        *([Line("", miniature, "warn")] if miniature else []),
        *(Line(f" {reason}", "Left out:", "warn") for reason in missing),
        Line(
            "blind: the higher of the most frequent answer (of the questions for the same fact) and the tuned model "
            "asked about another picture; before: the model that training began with; words: its LLM, told in "
            "words what is in the picture. In brackets 95% intervals.",
            kind="soft",
        ),
    ]
    for role in ("held-out", "held-in"):
        own = [each for each in bounds.values() if each.role == role]
        if not own:
            continue
        blocks += [
            Heading(f"{role.capitalize()} benchmarks"),
            Table(
                ["benchmark", *ROWS, "metric"],
                [[each.title, *(_cell(each, row) for row in ROWS), each.metric] for each in own],
                numbers,
            ),
        ]
        if (found := summary(bounds, role)) is not None:
            means = ", ".join(f"{row} {found.means[row]:.1f}" for row in ROWS)
            blocks.append(
                Line(
                    f" {means}. Tuning brings {found.over_before:+.1f} over before and {found.over_blind:+.1f} over "
                    f"blind{share_phrase(found.share)}. Tuned is above blind and before on {found.above_both} of "
                    f"{found.benchmarks} benchmarks.",
                    "Mean of those in per cent:",
                )
            )
    if rows := [
        [each.title, group, *(f"{values[row]:.1f}" for row in RUNS)]
        for each in bounds.values()
        for group, values in sorted(each.told.items())
    ]:
        blocks += [
            Heading("Facts that captions tell, and others"),
            Table(["benchmark", "the answer is", *RUNS], rows, tuple(range(2, len(RUNS) + 2))),
        ]
    return blocks


def share_phrase(share: float | None) -> str:
    """What is said of a share behind the means."""
    return "" if share is None else f", {share:.2f} of what lies between blind and words"


def _cell(each: Bounds, row: str) -> str:
    interval = each.intervals[row]
    value = f"{each.values[row]:.1f}"
    return value if interval is None else f"{value} ({interval[0]:.1f} to {interval[1]:.1f})"


def write_bounds(runs: Mapping[str, Path], place: Path) -> dict[str, Any]:
    """Write a page, Markdown and JSON into a folder; returns what the JSON holds.

    Args:
        runs: folder of each of `RUNS`.
        place: made if missing.

    Raises:
        UserError: as `bounds_of`.
    """
    bounds = bounds_of(runs)
    missing = left_out(runs)
    totals = {role: summary(bounds, role) for role in ("held-out", "held-in")}
    found = {
        "benchmarks": {name: each._asdict() for name, each in bounds.items()},
        "summary": {role: each._asdict() for role, each in totals.items() if each is not None},
        "left_out": missing,
        "run": {"command": command_line(), "commit": commit()},
        "versions": versions(),
    }
    entries = list(read_report(runs["tuned"])["benchmarks"].values())
    write_files(place, contents(bounds, missing, words.miniatures(entries)), found)
    return found
