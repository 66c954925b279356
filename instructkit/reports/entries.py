"""A benchmark as a report holds it: its result, its protocol, what others reached, what its answers look like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from instructkit.data.dataset import read_manifest
from instructkit.evaluation import metrics
from instructkit.evaluation.responses import Answer, ResponseLog
from instructkit.evaluation.run import Evaluation, benchmark_folder
from instructkit.evaluation.score import Result
from instructkit.evaluation.select import wanted_benchmarks
from instructkit.prompts.protocols import Protocol
from instructkit.reports.baseline import blind
from instructkit.reports.calibration import calibration, is_right
from instructkit.reports.cases import case, choose, searches
from instructkit.runs.ranks import Ranks


def benchmark_entries(evaluation: Evaluation, folder: Path) -> dict[str, dict[str, Any]]:
    """The benchmarks that have a score, by name.

    Args:
        evaluation: of the run.
        folder: of the run, with the responses.
    """
    root = Path(evaluation.settings.data.root)
    asked = evaluation.settings.evaluation
    wanted = wanted_benchmarks(asked.benchmarks, prompts=asked.prompts)
    protocols = {each.protocol.benchmark: each.protocol for each in wanted}
    return {
        result.benchmark: _entry(result, protocols[result.benchmark], root, benchmark_folder(folder, result.benchmark))
        for result in evaluation.results
    }


def manifests(evaluation: Evaluation) -> dict[str, Any]:
    """Manifests of the splits that were evaluated or gave candidates, by `source/split`."""
    root = Path(evaluation.settings.data.root)
    reached = {each.benchmark for each in evaluation.results}
    found: dict[str, Any] = {}
    for wanted in wanted_benchmarks(evaluation.settings.evaluation.benchmarks):
        protocol = wanted.protocol
        if protocol.benchmark in reached:
            for split in [protocol.split, *(protocol.vocabulary.splits if protocol.vocabulary else [])]:
                name = f"{protocol.source}/{split}"
                found[name] = msgspec.to_builtins(read_manifest(root / name))
    return found


def _entry(result: Result, protocol: Protocol, root: Path, place: Path) -> dict[str, Any]:
    log = ResponseLog(place, Ranks())
    answers = [answer for answer in log.answers() if answer.error is None]
    metric = metrics.load(protocol.metric)
    scores = metric.scores([answer.prediction for answer in answers], [answer.reference for answer in answers])
    plain = msgspec.to_builtins(protocol)
    manifest = read_manifest(root / protocol.source / protocol.split)
    return {
        **msgspec.to_builtins(result),
        "also": list(metric.also),
        "miniature": manifest.miniature,
        "published": [] if manifest.miniature else plain["published"],
        "protocol": {key: value for key, value in plain.items() if key not in ("published", "benchmark")},
        "data_notes": manifest.notes,
        "blind_baseline": blind(root, protocol),
        "calibration": _calibration(protocol, answers, dict(zip((a.example for a in answers), scores, strict=True))),
        "cases": searches(log, answers, scores)
        if protocol.mode == "retrieve"
        else _cases(log, answers, scores, protocol),
    }


def _cases(log: ResponseLog, answers: list[Answer], scores: list[float], protocol: Protocol) -> list[dict[str, Any]]:
    chosen = choose(answers, scores, protocol.metric)
    return [case(response, *chosen[response.example]) for response in log.responses(chosen)]


def _calibration(protocol: Protocol, answers: list[Answer], scores: Mapping[str, float]) -> dict[str, Any] | None:
    ranked = [answer for answer in answers if answer.confidence is not None]
    return calibration(
        [answer.confidence for answer in ranked if answer.confidence is not None],
        [is_right(protocol.metric, answer, scores[answer.example]) for answer in ranked],
    )
