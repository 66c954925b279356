from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from instructkit.config.read import evaluation_settings
from instructkit.reports.report import write_evaluation_report
from tests.evaluation.world import World

BENCHMARKS = "easy_vqa,hatefulmemes,nocaps,msvd_qa,gqa"


class Written(NamedTuple):
    run: Path
    world: World

    @property
    def json(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.run / "report" / "report.json").read_text())
        return content

    @property
    def html(self) -> str:
        return (self.run / "report" / "report.html").read_text()

    @property
    def markdown(self) -> str:
        return (self.run / "report" / "report.md").read_text()


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The report of some benchmarks, one of which is not converted."""
    torch.set_num_threads(1)
    world = World(tmp_path_factory.mktemp("world"))
    world.split("easy_vqa", "train")
    for name in BENCHMARKS.split(",")[:-1]:
        world.benchmark(name)
    run = tmp_path_factory.mktemp("run")
    world.evaluate(BENCHMARKS, run, limit=40, spread=2)
    write_evaluation_report(evaluation_settings(world.settings(BENCHMARKS, run, limit=40, spread=2)))
    return Written(run, world)
