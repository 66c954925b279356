"""The notebook's cells run from the first to the last on what a run leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from instructkit.reports.report import write_evaluation_report
from tests.evaluation.world import ROOT, World

NOTEBOOK = json.loads((ROOT / "notebooks" / "look_inside.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_it_is_kept_without_what_it_put_out() -> None:
    assert {cell["id"] for cell in NOTEBOOK["cells"]} == {f"cell-{n}" for n in range(len(NOTEBOOK["cells"]))}
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_every_cell_runs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    world.benchmark("easy_vqa")
    run = tmp_path / "runs" / "easy_vqa"
    write_evaluation_report(world.evaluate("easy_vqa", run, limit=30).settings)
    shutil.copytree(world.model(), run / "model")
    (tmp_path / "data").symlink_to(world.data)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")  # where Jupyter starts it
    shown: list[Any] = []
    names: dict[str, Any] = {"display": shown.append}
    for cell in CELLS:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)

    told = capsys.readouterr().out
    question = names["example"].question
    assert len([line for line in told.splitlines() if question in line and " -> " in line]) >= 4
    (labelled,) = [line for line in told.splitlines() if line.startswith("labels:")]
    assert names["prompts"][0].target in labelled
    maps = names["maps"]
    assert maps[0].shape == maps[1].shape == (names["height"], names["width"])
    assert all(0 < each.sum() < 1 for each in maps)
    assert (maps[0] - maps[1]).abs().max() > 1e-4
    assert len([line for line in told.splitlines() if "   (right: " in line]) == len(names["same_picture"]) > 1
    assert f"{len(names['wrong']):,} of 30 wrong" in told
    assert all(isinstance(picture, Image.Image) for picture in shown)
    assert len(shown) == 1 + min(3, len(names["wrong"]))
