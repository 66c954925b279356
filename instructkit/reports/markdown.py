"""A report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from instructkit.reports import words
from instructkit.reports.blocks import Block, Cards, Cases, Code, Figures, Heading, Line, Table
from instructkit.reports.contents import contents


def markdown(report: dict[str, Any]) -> str:
    """The report for people, in plain text."""
    return text(contents(report))


def text(blocks: Sequence[Block]) -> str:
    """Blocks with an empty line between them."""
    return "\n\n".join("\n".join(lines) for lines in map(_block, blocks) if lines) + "\n"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table; head and cells may hold any text, which is shown as it is."""
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def plain(text: str) -> str:
    """A text in one line that Markdown and HTML show as it is: answers and names come from models and strangers."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_\[\]!|~#])", r"\\\1", line)
    # No address of the text becomes a link, as some viewers make them.
    return re.sub(r"(?i)(:)(?=//)|(?<=www)(\.)|(@)", lambda found: f"&#{ord(found[0])};", line)


def fenced(text: str, language: str = "") -> list[str]:
    """A block of text as it is, whatever backticks it holds."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}{language}", text, fence]


def _block(block: Block) -> list[str]:
    match block:
        case Heading(text, level):
            return [f"{'#' * level} {plain(text)}"]
        case Line(text, bold, _):
            begin = f"**{plain(bold)}**" if bold else ""
            return [_paragraph(begin + (" " if begin and text[:1].isspace() else "") + plain(text))]
        case Table(head, rows):
            return table(head, rows)
        case Code(text, language):
            return fenced(text, language)
        case Figures(figures):
            shown = [[plain(each.caption), "", *table(*each.table[:2]), ""] for each in figures if each.table]
            return [line for lines in shown for line in lines][:-1]
        case Cases(entry, _):
            return table(["", "example", "prompt", "answer", "expected"], [_case(case) for case in entry["cases"]])
        case Cards(cards):
            return table(["picture", "", "more"], [[str(c.picture), c.bold, "; ".join(c.lines)] for c in cards])


def _paragraph(line: str) -> str:
    """A line that begins no list."""
    return re.sub(r"^(\s*)([-+]|\d+[.)])(?=\s)", lambda found: f"{found[1]}{found[2][:-1]}\\{found[2][-1]}", line)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(map(plain, cells)) + " |"


def _case(case: dict[str, Any]) -> list[str]:
    cut = f" (cut for {words.readers(case['cut'])})" if case.get("cut") else ""
    return [
        "right" if case["right"] else "wrong",
        case["example"],
        (words.literal(case["prompt"]) if case["prompt"] else words.asked(case)) + cut,
        words.hits(case) if "hits" in case else words.literal(case["text"]),
        "; ".join(case["expected"]),
    ]
