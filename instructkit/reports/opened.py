"""A report that was written, opened in Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from instructkit.errors import UserError
from instructkit.evaluation.responses import Response, ResponseLog
from instructkit.evaluation.run import benchmark_folder
from instructkit.reports.report import last_lines, read_report
from instructkit.runs.ranks import Ranks


class Report:
    """The report of a run.

    Example:
        >>> report = ik.Report("runs/easy_vqa")
        >>> report.scores
        {'easy_vqa': 96.9}
        >>> report.content["benchmarks"]["easy_vqa"]["interval"]
        [96.5, 97.3]

    A notebook shows its Markdown.

    Attributes:
        folder: of the run.
        content: all of `report.json`.

    Raises:
        UserError: the folder holds no report.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.content: dict[str, Any] = read_report(self.folder)

    @property
    def scores(self) -> dict[str, float]:
        """Score of each benchmark, 0 to 100 (CIDEr times 100)."""
        return {name: entry["value"] for name, entry in self.content["benchmarks"].items()}

    def answers(self, benchmark: str) -> list[Response]:
        """Every answer to a benchmark, in the order of its split, with prompt, scores and what was expected.

        Example:
            >>> [(each.prompt, each.text, each.expected) for each in report.answers("easy_vqa")][:3]

        Raises:
            UserError: the run holds no answers to it.
        """
        log = ResponseLog(benchmark_folder(self.folder, benchmark), Ranks())
        if not log.path.is_file():
            names = ", ".join(self.content["benchmarks"]) or "none"
            raise UserError(f"{log.path}: missing; this run has answers to {names}")
        return log.responses(answer.example for answer in log.answers())

    @property
    def html(self) -> Path:
        """The report for people."""
        return self.folder / "report" / "report.html"

    @property
    def markdown(self) -> str:
        """The same as Markdown."""
        return (self.folder / "report" / "report.md").read_text(encoding="utf-8")

    def _repr_markdown_(self) -> str:
        return self.markdown

    def __repr__(self) -> str:
        return "\n".join(last_lines(self.folder))
