"""The report of CapFilt shows what was counted, with pictures, and shows any text as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from instructkit.config.settings import CapFiltRun
from instructkit.errors import UserError
from instructkit.evaluation.capfilt.join import BINS, Pair, Shown, Tally
from instructkit.reports.capfilt import write_capfilt_report
from instructkit.reports.plots import histogram
from instructkit.reports.report import read_report
from tests.sources import write_picture


def tally(folder: Path) -> Tally:
    write_picture(folder / "1.jpg", 1)
    texts = [Pair("", "<b>two</b> | dogs", "web", 0.12345), Pair("", "one red ball", "synthetic", 0.75)]
    why = ["unmatched", ""]
    shown = [Shown(str(folder / name), texts, why, 0) for name in ("1.jpg", "gone.jpg")]
    return Tally(
        pictures=90,
        listed=100,
        repeated=8,
        unreadable=3,
        emptied=5,
        human=1234,
        kept={"web": 30, "synthetic": 60},
        dropped={"web": {"unmatched": 70, "repeat": 2, "unreadable": 3}, "synthetic": {"unmatched": 20}},
        kept_bins={"web": [0] * 19 + [30], "synthetic": [0] * 10 + [40] + [0] * 8 + [20]},
        dropped_bins={"web": [70] + [0] * 19, "synthetic": [0] * 9 + [20] + [0] * 10},
        shown={"web dropped": shown, "synthetic kept": [Shown(str(folder / "1.jpg"), texts, why, 1)]},
    )


def config(folder: Path) -> CapFiltRun:
    plain = {
        "output": str(folder),
        "data": {"web": ["cc3m"]},
        "captioner": {"model": "captioner"},
        "filter": {"model": "scorer"},
    }
    return msgspec.convert(plain, CapFiltRun)


def test_counts_noise_and_pictures_are_shown(tmp_path: Path) -> None:
    write_capfilt_report(config(tmp_path), tally(tmp_path), tmp_path)
    markdown = (tmp_path / "report" / "report.md").read_text()
    page = (tmp_path / "report" / "report.html").read_text()
    assert "| web | 105 | 30 | 70 | 2 | 3 | 70.0% |" in markdown
    assert "| synthetic | 80 | 60 | 20 | 0 | 0 | 25.0% |" in markdown
    assert "| human | 1,234 | 1,234 | - | - | - | - |" in markdown
    assert "1,324 pairs: 30 of the web, 60 synthetic, 1,234 written by people." in markdown
    assert "3 of 90 pictures cannot be read" in markdown
    assert "| 0.45 to 0.50 | 0 | 20 |" in markdown
    assert page.count("<img ") == 2
    assert "gone.jpg: no such picture" in page
    assert page.count("<svg ") == 2
    assert "<b>two</b> | dogs" not in page
    assert "&lt;b&gt;two&lt;/b&gt; | dogs (web, unmatched, 0.123)" in page
    assert len(re.findall('class="case wrong"', page)) == 2
    assert len(re.findall('class="case right"', page)) == 1
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["capfilt"]["noise"] == {"web": 0.7, "synthetic": 0.25}
    assert report["config"]["filter"]["model"] == "scorer"
    assert "output" not in report["config"]


def test_who_wants_benchmarks_is_told_that_it_has_none(tmp_path: Path) -> None:
    write_capfilt_report(config(tmp_path), tally(tmp_path), tmp_path)
    with pytest.raises(UserError, match=r"report\.json: is the report of CapFilt, which has no benchmarks"):
        read_report(tmp_path)


def test_a_report_without_a_filter_has_no_histogram_and_no_noise(tmp_path: Path) -> None:
    found = Tally(pictures=2, listed=2, kept={"web": 2, "synthetic": 2})
    write_capfilt_report(config(tmp_path), found, tmp_path)
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "| web | 2 | 2 | - |" in markdown
    assert "<svg" not in (tmp_path / "report" / "report.html").read_text()


def test_the_bars_of_a_histogram_stand_on_each_other() -> None:
    kept, dropped = [0] * BINS, [0] * BINS
    kept[3], dropped[3] = 30, 10
    bars = re.findall(
        r'<rect class="(\w+)" x="([\d.]+)" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"',
        histogram(kept, dropped, -1.0, 0.0, "texts"),
    )
    own, lost = [(float(x), float(y), float(high)) for _, x, y, high in bars if float(high)]
    assert own[0] == lost[0]
    assert own[1] == lost[1] + lost[2]
    assert own[2] == 3 * lost[2]
    assert own[1] + own[2] == 158
