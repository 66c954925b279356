"""The report of a run: `report/report.json`, and the same for people as `report.md` and `report.html`.

Of what was measured they hold the speed of training alone, as the log has it: the same answers give the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from instructkit.config.settings import EvaluationRun, RunConfig, to_dict
from instructkit.data.dataset import read_manifest
from instructkit.errors import UserError
from instructkit.evaluation.run import Evaluation, read_evaluation
from instructkit.evaluation.score import value_phrase
from instructkit.files import read_json, reading
from instructkit.reports import words
from instructkit.reports.averages import averages
from instructkit.reports.contents import contents
from instructkit.reports.curve import log_lines, training_curve
from instructkit.reports.entries import benchmark_entries, manifests
from instructkit.reports.files import write_files
from instructkit.runs.log import MEASURED, WARNING
from instructkit.runs.provenance import command_line, commit, versions
from instructkit.training.before_after import read_before_after
from instructkit.training.datasets import splits_of


def write_report(config: RunConfig, folder: Path, identity: dict[str, Any]) -> Path:
    """Write the report of a training run: its settings and its evaluation, if benchmarks are configured.

    Args:
        config: settings of the run.
        folder: of the run.
        identity: what `finished_report` recognises the run by.

    Returns:
        The report's folder.
    """
    evaluation = read_evaluation(folder) if config.evaluation.benchmarks else None
    lines = log_lines(folder)
    data = {name: msgspec.to_builtins(read_manifest(Path(config.data.root) / name)) for name in splits_of(config)}
    report = {
        **_results(evaluation, folder),
        "training": _training(lines, config),
        "warnings": _warnings(folder),
        "curve": training_curve(lines),
        "before_after": msgspec.to_builtins(read_before_after(folder)),
        "config": to_dict(config),
        "run": _run(config.seed),
        "versions": versions(),
        "data": data,
        "identity": identity,
    }
    return _write(folder, report)


def write_evaluation_report(settings: EvaluationRun) -> Path:
    """Write the report of an evaluation.

    Args:
        settings: of the evaluation, which is finished.

    Returns:
        The run's folder.
    """
    folder = Path(settings.output)
    evaluation = read_evaluation(folder)
    report = {
        **_results(evaluation, folder),
        "training": {},
        # Where the report lies is no part of it.
        "config": {key: value for key, value in msgspec.to_builtins(settings).items() if key != "output"},
        "run": _run(None),
        "versions": versions(),
        "data": manifests(evaluation),
    }
    _write(folder, report)
    return folder


def finished_report(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether the folder holds the report of a run with the same settings and data.

    Raises:
        UserError: the report is damaged.
    """
    path = folder / "report" / "report.json"
    if not path.is_file():
        return False
    saved = _read(path, "remove it, and resume=true writes it anew from the last checkpoint").get("identity")
    return bool(saved == msgspec.json.decode(msgspec.json.encode(identity)))


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a run, from its folder or the report's own.

    Raises:
        UserError: there is none, or it is damaged.
    """
    for path in (folder / "report" / "report.json", folder / "report.json"):
        if path.is_file():
            return _read(path, "evaluate the run again")
    raise UserError(f"{folder}: no report here (report/report.json); evaluate the run first")


class _Entry(msgspec.Struct):
    title: str
    metric: str
    value: float
    n: int


class _Whole(msgspec.Struct):
    """What all who read a report rely on."""

    benchmarks: dict[str, _Entry]
    averages: dict[str, dict[str, Any]]
    config: dict[str, Any]
    versions: dict[str, Any]
    not_evaluated: list[dict[str, Any]] = []


def _read(path: Path, remedy: str) -> dict[str, Any]:
    content: dict[str, Any] = read_json(path, Any, remedy)
    if isinstance(content, dict) and "capfilt" in content:
        raise UserError(f"{path}: is the report of CapFilt, which has no benchmarks; open report.html beside it")
    with reading(path, remedy):
        msgspec.convert(content, _Whole)
    return content


def last_lines(folder: Path) -> list[str]:
    """What a person wants to read last: each benchmark's score beside its baseline, and where the report lies."""
    report = read_report(folder)
    lines = []
    for entry in report["benchmarks"].values():
        beside = f" (blind baseline {entry['blind_baseline']:.1f})" if entry.get("blind_baseline") is not None else ""
        failed = f", {len(entry['errors']):,} failed" if entry.get("errors") else ""
        reached = value_phrase(entry["metric"], entry["value"], entry["details"])
        lines.append(f"reached   {entry['title']}: {reached} on {entry['n']:,}{failed}{beside}")
        lines += [f"note      {entry['title']}: {note}" for note in entry.get("data_notes", [])]
    for entry in report.get("not_evaluated", []):
        lines.append(f"no score  {entry['title']}: {entry['reason']}")
    notes = words.unlike_others(report["config"], list(report["benchmarks"].values()))
    lines += [f"note      {note}" for note in notes]
    return [*lines, f"report    {folder / 'report' / 'report.html'}, report.md and report.json"]


def failed(evaluation: Evaluation) -> bool:
    """Whether an example failed, a benchmark that was asked for by name has no score, or none has one."""
    named = set(evaluation.settings.evaluation.benchmarks)
    answered = [*evaluation.results, *(each for each in evaluation.not_evaluated if each.hidden)]
    missing = any(each.benchmark in named and not each.hidden for each in evaluation.not_evaluated)
    errors = [each.errors for each in evaluation.results] + [each.errors for each in evaluation.not_evaluated]
    return missing or not answered or any(errors)


def _run(seed: int | None) -> dict[str, Any]:
    """What made the report: the command, without where it wrote, and the toolkit's commit."""
    return {"command": command_line(), "commit": commit(), "seed": seed}


def _results(evaluation: Evaluation | None, folder: Path) -> dict[str, Any]:
    entries = benchmark_entries(evaluation, folder) if evaluation else {}
    return {
        "benchmarks": entries,
        "averages": averages(entries),
        "not_evaluated": msgspec.to_builtins(evaluation.not_evaluated) if evaluation else [],
        "submissions": evaluation.submissions if evaluation else [],
        "model": evaluation.model if evaluation else None,
        "dtype": evaluation.settings.evaluation.dtype if evaluation else None,
    }


def _training(lines: list[dict[str, Any]], config: RunConfig) -> dict[str, Any]:
    """The last step's line of the training log without what was measured, and which step the model is of."""
    steps = [line for line in lines if "loss" in line]
    last = {name: value for name, value in steps[-1].items() if name not in MEASURED} if steps else {}
    best = next((line["best_step"] for line in reversed(lines) if "best_step" in line), None)
    if not config.evaluation.every or best is None:
        return last
    evaluation = next(line for line in lines if line["step"] == best and "best_step" in line)
    reached = {name: value for name, value in evaluation.items() if name not in ("step", "best_step")}
    return {**last, "model_of_step": best, **reached}


def _warnings(folder: Path) -> list[str]:
    """What the run warned of, each once: one that went on repeats itself."""
    log = folder / "run.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return list(dict.fromkeys(line.removeprefix(WARNING) for line in lines if line.startswith(WARNING)))


def _write(folder: Path, report: dict[str, Any]) -> Path:
    place = folder / "report"
    write_files(place, contents(report), report)
    return place
