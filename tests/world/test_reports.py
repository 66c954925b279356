"""The report of an evaluation on miniatures says so, and puts no published number beside their scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructkit.config.read import evaluation_settings
from instructkit.reports.report import last_lines, write_evaluation_report
from instructkit.world.build import WRITERS
from instructkit.world.release import SIZES, Release
from tests.evaluation.world import World

PUBLISHED = "InstructBLIP FlanT5-XL"


@pytest.fixture
def world(tmp_path: Path) -> World:
    """GQA from the mini-world, VSR as if it were the published one."""
    found = World(tmp_path / "world")
    for name in ("gqa", "vsr"):
        release = Release(found.root / "raw" / name, name, 0, SIZES["tiny"])
        WRITERS[name](release)
        release.finish()
    (found.root / "raw" / "vsr" / "miniature.json").unlink()
    found.benchmark("gqa")
    found.benchmark("vsr")
    return found


def test_a_miniature_stands_beside_no_published_number(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    world.evaluate("gqa,vsr", run, limit=4)
    write_evaluation_report(evaluation_settings(world.settings("gqa,vsr", run, limit=4)))
    text, page = ((run / "report" / name).read_text() for name in ("report.md", "report.html"))
    told = "In miniature: GQA. Pictures, films and questions are made up"
    assert told in text
    assert told in page
    assert any(told in line for line in last_lines(run))
    head, *rows = ([c.strip() for c in line.split("|")] for line in text.splitlines() if line.startswith("| "))
    column = head.index(PUBLISHED)
    figures = {row[1]: row[column] for row in rows if row[1] in ("GQA", "VSR")}
    assert figures == {"GQA": "-", "VSR": "64.8"}
    assert "| gqa/testdev | 12 | 0 | miniature |" in text
    assert "| vsr/test | 12 | 0 | 1,222 |" in text
    of_gqa, of_vsr = page.split("<h2>GQA</h2>")[1].split("<h2>VSR</h2>")
    assert "ublished" not in of_gqa
    assert PUBLISHED in of_vsr.split("<h2>Data</h2>")[0]
