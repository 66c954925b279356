"""`report/report.json` of a run and its Markdown form: scores, baselines, prompts, settings, versions, data."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import yaml

from instructkit import sources
from instructkit.config import RunConfig, to_dict
from instructkit.evaluation.benchmark import Result, blind_baseline
from instructkit.examples import load_examples, read_manifest, write_atomically
from instructkit.protocols import Protocol, load_protocol
from instructkit.training.setup import splits_of

PACKAGES = ("instructkit", "torch", "transformers", "deepspeed", "peft", "datasets", "evaluate", "pyarrow", "pillow")


def write_report(config: RunConfig, folder: Path, identity: dict[str, Any]) -> Path:
    """Write `folder/report/report.json` and `report.md` from the results in `folder/evaluation`.

    Args:
        config: settings of the run.
        folder: of the run.
        identity: what `finished_report` recognises the run by.
    """
    report = {
        "benchmarks": {name: _benchmark(config, folder, name) for name in config.evaluation.benchmarks},
        "training": _training(folder),
        "config": to_dict(config),
        "versions": versions(),
        "data": {name: msgspec.to_builtins(read_manifest(Path(config.data.root) / name)) for name in splits_of(config)},
        "identity": identity,
    }
    place = folder / "report"
    place.mkdir(exist_ok=True)
    write_atomically(place / "report.md", markdown(report))
    write_atomically(place / "report.json", msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    return place


def finished_report(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether the folder holds the report of a run with the same settings and data."""
    path = folder / "report" / "report.json"
    if not path.is_file():
        return False
    saved = msgspec.json.decode(path.read_bytes()).get("identity")
    return bool(saved == msgspec.json.decode(msgspec.json.encode(identity)))


def last_lines(folder: Path) -> list[str]:
    """What a person wants to read last: each benchmark's score beside its baseline, and where the report lies."""
    report = msgspec.json.decode((folder / "report" / "report.json").read_bytes())
    lines = []
    for entry in report["benchmarks"].values():
        beside = f" (blind baseline {entry['blind_baseline']:.1f})" if entry.get("blind_baseline") is not None else ""
        lines.append(f"reached   {entry['title']}: {entry['metric']} {entry['value']:.2f} on {entry['n']:,}{beside}")
    return [*lines, f"report    {folder / 'report' / 'report.md'} and report.json"]


def versions() -> dict[str, str]:
    """Versions of Python, this toolkit and the libraries that results depend on."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        "# Report",
        "",
        "| benchmark | metric | score | examples | blind | published |",
        "|---|---|---|---|---|---|",
    ]
    for entry in report["benchmarks"].values():
        rows = "; ".join(_row(row) for row in entry["published"]) or "-"
        blind = f"{entry['blind_baseline']:.1f}" if entry["blind_baseline"] is not None else "-"
        part = "" if entry["n"] == entry["available"] else f" of {entry['available']:,}"
        lines.append(
            f"| {entry['title']} (protocol v{entry['protocol_version']}) | {entry['metric']} | "
            f"**{entry['value']:.2f}** | {entry['n']:,}{part} | {blind} | {rows} |"
        )
    lines += ["", "Scores are 0 to 100. Blind: every question answered with its most frequent training answer."]
    lines += _protocols(report) + _facts(report)
    return "\n".join(lines) + "\n"


def _benchmark(config: RunConfig, folder: Path, name: str) -> dict[str, Any]:
    result = msgspec.json.decode((folder / "evaluation" / name / "result.json").read_bytes(), type=Result)
    protocol = load_protocol(name)
    entry: dict[str, Any] = msgspec.to_builtins(result)
    entry["published"] = msgspec.to_builtins(protocol.published)
    entry["protocol"] = {
        key: value for key, value in msgspec.to_builtins(protocol).items() if key not in ("published", "benchmark")
    }
    entry["blind_baseline"] = _blind(config, protocol)
    return entry


def _blind(config: RunConfig, protocol: Protocol) -> float | None:
    """The blind baseline, where the run trained on the same source and each question has one right answer."""
    train = sources.source(protocol.source).split
    trained = {entry.split("/")[0] for entry in config.data.train}
    if protocol.source not in trained or train == protocol.split or protocol.metric not in ("exact_match", "top1"):
        return None
    root = Path(config.data.root) / protocol.source
    return blind_baseline(load_examples(root / train), load_examples(root / protocol.split))


def _training(folder: Path) -> dict[str, Any]:
    """Last line of the training log."""
    lines = (folder / "log.jsonl").read_bytes().splitlines()
    return dict(msgspec.json.decode(lines[-1])) if lines else {}


def _row(row: dict[str, Any]) -> str:
    return f"{row['model']} {row['value']:.1f}{'' if row['verified'] else ' (unverified)'}"


def _protocols(report: dict[str, Any]) -> list[str]:
    lines = ["", "## Protocols", ""]
    for entry in report["benchmarks"].values():
        protocol = entry["protocol"]
        lines += [f"**{entry['title']}**, {protocol['source']}/{protocol['split']}, {protocol['mode']}:", "", "```"]
        lines += [protocol["instruction"], "```"]
        if protocol["mode"] == "rank":
            lines.append(f"Candidates: {_candidates(protocol['candidates'])}; score: {protocol['score']}.")
        lines += [protocol["notes"], ""]
    return lines


def _candidates(candidates: Any) -> str:
    if isinstance(candidates, str):
        return f"field `{candidates}`"
    return ", ".join(each if isinstance(each, str) else "/".join(each) for each in candidates)


def _facts(report: dict[str, Any]) -> list[str]:
    lines = ["## Data", "", "| split | examples | rejected | published | layout | files |", "|---|---|---|---|---|---|"]
    for name, manifest in report["data"].items():
        files = ", ".join(f"{file['path']} `{file['sha256'][:12]}`" for file in manifest["files"])
        published = f"{manifest['published']:,}" if manifest["published"] is not None else "-"
        lines.append(
            f"| {name} | {manifest['examples']:,} | {manifest['rejected']:,} | {published} | {manifest['layout']} | "
            f"{files} |"
        )
    lines += ["", "## Last step of training", "", "```"]
    lines += [f"{key}: {value}" for key, value in report["training"].items()]
    lines += [
        "```",
        "",
        "## Settings",
        "",
        "```yaml",
        yaml.safe_dump(report["config"], sort_keys=False).rstrip(),
        "```",
    ]
    lines += ["", "## Versions", "", ", ".join(f"{name} {number}" for name, number in report["versions"].items())]
    return lines
