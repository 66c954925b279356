"""The README's commands for the mini-world, run as they stand in a fresh folder."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADING = "## All 26 datasets without 300 GB of pictures"


@pytest.mark.full
def test_from_the_world_to_thirteen_scores(tmp_path: Path) -> None:
    block = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text().split(HEADING)[1], re.DOTALL)
    assert block is not None
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    done = subprocess.run(["bash", "-ec", block[1]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rejects = {
        f"{path.parent.parent.name}/{path.parent.name}": len(path.read_text().splitlines())
        for path in (tmp_path / "data" / "world").glob("*/*/rejected.jsonl")
    }
    planted = {"vqav2/train": 2, "web_capfilt/train": 4}
    assert {name: count for name, count in rejects.items() if count} == planted
    report = json.loads((tmp_path / "runs" / "world" / "report" / "report.json").read_text())
    assert len(report["benchmarks"]) == 13
    assert report["averages"]["held_out"]["value"] is not None
    assert report["not_evaluated"] == []
    assert report["training"]["step"] == 20
