"""What models and strangers write stands in the Markdown reports as text, never as markup."""

from __future__ import annotations

import copy
from html.parser import HTMLParser
from typing import Any

import pytest
from markdown_it import MarkdownIt

from instructkit.reports.compare import compared
from instructkit.reports.markdown import markdown, table, text

PAYLOADS = [
    "<script>alert(1)</script>",
    '<iframe src="http://evil/"></iframe>',
    "![t](http://evil/track.png)",
    "[click](javascript:alert(1))",
    "<http://evil/>",
    "http://evil/ and www.evil.example and me@evil.example",
    "`<img src=x>` ``",
    "a | b \\| c \\",
    "*star* _line_ __wide__ ~~gone~~",
    "one\ntwo\r\n\n# head",
    "[ref]: http://evil/ 'x'",
    "&lt;b&gt; &amp; &#60;",
    "![a][b] \\![c](d) \\<b>",
    "- [x] item",
]
TAGS = {"h1", "h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "pre", "code", "strong"}


class Page(HTMLParser):
    """The tags of a page, and the text of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.inside = False
        self.feed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data


@pytest.mark.parametrize("payload", PAYLOADS)
def test_head_and_cells_show_a_text_as_it_is(payload: str) -> None:
    lines = "\n".join(table(["name", payload], [[payload, "right"], ["left", payload]]))
    page = Page(lines)
    shown = " ".join(payload.split())
    assert page.cells == ["name", shown, shown, "right", "left", shown]
    assert page.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    assert "://" not in lines  # what some viewers make a link of
    assert "www." not in lines


NAMED = ("errors", "groups", "details", "versions", "data", "training", "losses", "watched")
"""Parts of a report whose keys are names."""


def infected(value: Any, payload: str, named: bool = False) -> Any:
    """A part of a report with every text, and every key that is a name, replaced."""
    if isinstance(value, dict):
        return {
            (f"{payload} {number}" if named else key): infected(each, payload, key in NAMED)
            for number, (key, each) in enumerate(value.items())
        }
    if isinstance(value, list):
        return [infected(each, payload) for each in value]
    return payload if isinstance(value, str) else value


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_of_a_report_becomes_markup(written, payload: str) -> None:
    report = written.json
    report["benchmarks"]["gqa"] = copy.deepcopy(report["benchmarks"]["easy_vqa"])
    report["benchmarks"]["easy_vqa"]["errors"] = {"name": "reason"}
    report["curve"] = {
        "losses": {"all datasets": [[1, 2.0]], "a": [[1, 2.0]]},
        "speed": [[1, 2.0]],
        "watched": {"b": [[1, 2.0]]},
        "lines_per_point": 1,
    }
    bad = infected({**report, "submissions": ["a.json"]}, payload)
    assert Page(markdown(bad)).tags <= TAGS
    reports = {f"{payload} {number}": copy.deepcopy(bad) for number in (1, 2)}
    reports[f"{payload} 2"]["config"]["extra"] = payload
    entry = next(iter(reports[f"{payload} 2"]["benchmarks"].values()))
    entry["protocol_version"] = 99
    assert Page(text(compared(reports))).tags <= TAGS
