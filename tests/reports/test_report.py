"""The report of an evaluation in its three forms."""

from __future__ import annotations

import base64
import copy
import re
from html.parser import HTMLParser
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from instructkit.data.dataset import load_examples
from instructkit.prompts.protocols import load_protocol
from instructkit.reports.html import html
from instructkit.reports.markdown import fenced, markdown, table
from tests.reports.conftest import Written

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Notes what a page loads and which tags are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.pictures: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href") and value:
                (self.pictures if value.startswith("data:image/jpeg;base64,") else self.loads).append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}>"


def test_the_data_of_a_benchmark(written: Written) -> None:
    entry = written.json["benchmarks"]["easy_vqa"]
    protocol = load_protocol("easy_vqa")
    assert (entry["metric"], entry["n"], entry["protocol_version"]) == ("exact_match", 40, protocol.version)
    assert entry["available"] == len(load_examples(written.world.data / "easy_vqa" / "test"))
    assert entry["protocol"]["instruction"] == protocol.instruction
    assert entry["published"][0]["value"] == 67.0
    assert 0 <= entry["interval"][0] <= entry["value"] <= entry["interval"][1] <= 100
    assert len(entry["spread"]) == 2
    assert sum(row["n"] for row in entry["calibration"]["bins"]) == 40


def test_the_blind_baseline_by_hand(written: Written) -> None:
    root = written.world.data / "easy_vqa"
    asked: dict[str | None, list[str]] = {}
    for example in load_examples(root / "train"):
        asked.setdefault(example.question, []).append(example.answers[0])
    right = []
    for example in load_examples(root / "test"):
        known = asked.get(example.question, [""])
        right.append(max(dict.fromkeys(known), key=known.count) == example.answers[0])
    assert written.json["benchmarks"]["easy_vqa"]["blind_baseline"] == pytest.approx(100 * sum(right) / len(right))
    assert written.json["benchmarks"]["msvd_qa"]["blind_baseline"] is None


def test_what_was_not_evaluated_and_why(written: Written) -> None:
    (missing,) = written.json["not_evaluated"]
    assert (missing["benchmark"], missing["role"]) == ("gqa", "held-out")
    for text in (missing["reason"], written.markdown, written.html):
        assert "gqa/testdev is not converted" in text


def test_no_average_without_all_of_its_benchmarks(written: Written) -> None:
    average = written.json["averages"]["held_out"]
    assert average["value"] is None
    assert len(average["benchmarks"]) == 13
    assert set(average["missing"]) == set(average["benchmarks"]) - {"hatefulmemes", "nocaps", "msvd_qa"}
    assert "3 of its 13 benchmarks scored" in written.markdown
    assert "those in per cent" not in written.markdown


def test_what_a_result_depends_on_is_told(written: Written) -> None:
    report = written.json
    assert report["model"].startswith("sha256:")
    assert set(report["versions"]) >= {"python", "torch", "transformers", "instructkit"}
    assert set(report["data"]) == {
        "easy_vqa/test",
        "hatefulmemes/dev_seen",
        "nocaps/val",
        "msvd_qa/test",
        "msvd_qa/train",
        "msvd_qa/val",
    }
    assert report["config"]["evaluation"]["limit"] == 40
    assert "output" not in report["config"]
    for manifest in report["data"].values():
        for file in manifest["files"]:
            assert file["sha256"][:12] in written.markdown
            assert file["sha256"][:12] in written.html


def test_prompts_stand_there_byte_for_byte(written: Written) -> None:
    text = 'This is an image with: \\"{{ context }}\\" written on it. Is it hateful? Answer:'
    assert text in written.markdown
    assert text.replace('"', "&quot;") in written.html


def test_the_page_is_whole_and_loads_nothing(written: Written) -> None:
    page = Page(written.html)
    assert page.open == []
    assert page.loads == []
    assert "script" not in page.tags
    assert not re.search(r"url\(|@import", written.html)
    assert page.tags.count("svg") >= 1 + 4 + 3 + 4


def test_pictures_are_those_of_the_examples(written: Written) -> None:
    report = written.json
    cases = [case for entry in report["benchmarks"].values() for case in entry["cases"]]
    page = Page(written.html)
    assert len(page.pictures) == len(cases)
    (case,) = [case for case in cases if case["example"].startswith("hatefulmemes")][:1]
    alt = f'alt="{case["example"]}" src="data:image/jpeg;base64,'
    data = written.html.split(alt)[1].split('"')[0]
    shown = Image.open(BytesIO(base64.b64decode(data)))
    root = report["data"]["hatefulmemes/dev_seen"]["media_root"]
    original = Image.open(f"{root}/{case['images'][0]}").convert("RGB")
    assert shown.width > 100
    middle: Any = shown.getpixel((shown.width // 2, shown.height // 2))
    wanted: Any = original.getpixel((original.width // 2, original.height // 2))
    assert all(abs(a - b) < 12 for a, b in zip(middle, wanted, strict=True))


def test_right_is_right(written: Written) -> None:
    for entry in written.json["benchmarks"].values():
        for case in entry["cases"]:
            if entry["metric"] in ("exact_match", "top1", "roc_auc"):
                assert case["right"] == (case["text"] in case["expected"])
    cases = written.json["benchmarks"]["easy_vqa"]["cases"]
    assert len([case for case in cases if not case["right"]]) == 4


def hostile(report: dict[str, Any]) -> dict[str, Any]:
    report = copy.deepcopy(report)
    text = '<script>alert(1)</script> | `a` ``` "q" & \n new'
    for entry in report["benchmarks"].values():
        for case in entry["cases"]:
            case.update(
                prompt=text, text=text, expected=[text], candidates=[{"text": text, "score": 0, "probability": 1}]
            )
        entry.update(prompt=text, title=text, groups={text: [1.0, 2]}, errors={text: text})
        entry["protocol"].update(notes=text, instruction=text, group_by=text)
        for each in (*entry["spread"], *entry["published"]):
            each.update(dict.fromkeys(("wording", "instruction", "model", "source"), text))
    report["not_evaluated"][0].update(title=text, reason=text)
    report["config"]["model"] = text
    return report


def test_any_text_is_shown_as_text(written: Written) -> None:
    report = hostile(written.json)
    page = Page(html(report))
    assert page.open == []
    assert "script" not in page.tags
    lines = markdown(report).splitlines()
    widths = {}
    for number, line in enumerate(lines):
        if line.startswith("| ") and not lines[number - 1].startswith("| "):
            width = line.replace("\\|", "").count("|")
        if line.startswith("| "):
            assert line.replace("\\|", "").count("|") == width, line
            widths[number] = width
    assert len(widths) > 20


def test_fences_are_longer_than_what_they_hold() -> None:
    assert fenced("a ```` b", "yaml") == ["`````yaml", "a ```` b", "`````"]
    assert fenced("plain") == ["```", "plain", "```"]


def test_cells_of_a_table() -> None:
    assert table(["a", "b"], [["x|y", "two\nlines"]]) == ["| a | b |", "| --- | --- |", "| x\\|y | two lines |"]
