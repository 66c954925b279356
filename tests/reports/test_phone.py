"""The page as a browser lays it out on a phone: the scores are in view, nothing is cut, nothing sticks out."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from instructkit.reports.blocks import Block
from instructkit.reports.compare import compared
from instructkit.reports.contents import contents
from instructkit.reports.html import page
from tests.reports.conftest import Written

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

WIDTH = 390
LONG = "the_longest_name_of_a_dataset_that_anybody_has_ever_given/WITH_WIDE_LETTERS_MMMMMMWWWWWW and words"
MEASURE = """<script>
const box = (each) => each.getBoundingClientRect();
const said = (each) => each.textContent.slice(0, 60);
const out = (each, around) => box(each).left < box(around).left - 1 || box(each).right > box(around).right + 1
  || box(each).top < box(around).top - 1 || box(each).bottom > box(around).bottom + 1;
const all = (what) => [...document.querySelectorAll(what)];
parent.document.body.setAttribute("data-measured", JSON.stringify({
  width: innerWidth,
  page: document.documentElement.scrollWidth,
  scores: [...document.querySelector("table").rows].slice(1).map((row) => box(row.cells[1]).right),
  cut: all("svg text").filter((text) => out(text, text.ownerSVGElement)).map(said),
  small: all("svg").filter((svg) => box(svg).width < svg.viewBox.baseVal.width - 1).map((svg) => svg.ariaLabel),
  hidden: all("h1, h2, h3, p, figcaption, pre, td, th, summary")
    .filter((each) => each.scrollWidth > each.clientWidth + 1 && each.clientWidth > 0).map(said),
  wide: all("body *").filter((each) => !each.closest(".wide") && box(each).right > innerWidth)
    .map((each) => `${each.tagName} ${said(each)}`),
}));
</script></body>"""


def measured(blocks: list[Block], folder: Path) -> dict[str, Any]:
    """What a browser says of a page in a frame of a phone's width; its own window is never that small."""
    path = folder / "frame.html"
    inside = escape(page(blocks).replace("</body>", MEASURE))
    path.write_text(f'<meta charset="utf-8"><body><iframe width="{WIDTH}" height="844" srcdoc="{inside}"></iframe>')
    words = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    # The scrollbar would take its part of the width, as it does on no phone.
    words += ["--hide-scrollbars", "--dump-dom", path.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    (found,) = re.findall(r'data-measured="([^"]*)"', done.stdout)
    values: dict[str, Any] = json.loads(unescape(found))
    assert values["width"] == WIDTH
    return values


def long_names(report: dict[str, Any]) -> dict[str, Any]:
    """The report with long names wherever a label is made of one, and a curve over many datasets."""
    report = copy.deepcopy(report)
    for entry in report["benchmarks"].values():
        entry["title"] = LONG
        for row in entry["published"]:
            row["model"] = f"{row['model']} {LONG}"
        for each in entry["spread"]:
            each["wording"] = LONG
    points = [[step, 100 / step] for step in range(1, 120, 7)]
    report["curve"] = {
        "losses": {f"{LONG} {number}": points for number in range(5)},
        "speed": [[step, 123456.7 * step] for step, _ in points],
        "watched": {LONG: points},
        "lines_per_point": 1,
    }
    return report


@pytest.mark.parametrize("names", ["as they are", "long"])
def test_on_a_phone(names: str, written: Written, tmp_path: Path) -> None:
    report = written.json if names == "as they are" else long_names(written.json)
    found = measured(contents(report), tmp_path)
    assert len(found["scores"]) == 4
    assert max(found["scores"]) < WIDTH
    assert found["page"] == WIDTH, found["wide"]
    assert found["cut"] == []
    assert found["small"] == []
    assert found["hidden"] == []


def test_a_comparison_on_a_phone(written: Written, tmp_path: Path) -> None:
    found = measured(compared({"first": written.json, LONG: long_names(written.json)}), tmp_path)
    assert max(found["scores"]) < WIDTH
    assert found["page"] == WIDTH, found["wide"]
    assert found["cut"] == found["small"] == found["hidden"] == []


def test_what_is_cut_is_seen(written: Written, tmp_path: Path) -> None:
    blocks = contents(written.json)
    (figures,) = [block for block in blocks[:6] if hasattr(block, "figures")]
    figure = figures.figures[0]
    bad = figure.svg.replace('text-anchor="start">', f'text-anchor="start">{LONG}', 1)
    figures.figures[0] = figure._replace(svg=bad)
    assert measured(blocks, tmp_path)["cut"]
