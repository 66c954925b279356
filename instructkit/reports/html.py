"""A report as one HTML page: style, plots and pictures stand in the page itself, so it can be mailed and kept."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from instructkit.errors import UserError
from instructkit.reports import words
from instructkit.reports.blocks import Block, Card, Cards, Cases, Code, Figures, Heading, Line, Table
from instructkit.reports.contents import contents
from instructkit.reports.pictures import attended_uri, data_uri

Clip = tuple[float | None, float | None]


def html(report: dict[str, Any]) -> str:
    """The report for people, with plots and pictures.

    The pictures are read from the media folders that the report's manifests name.
    """
    return page(contents(report))


def page(blocks: Sequence[Block]) -> str:
    """A whole page; its title is the first heading."""
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    title = next(block.text for block in blocks if isinstance(block, Heading))
    body = "\n".join(filter(None, map(_block, blocks)))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Line(text, bold, kind):
            begin = f"<b>{escape(bold)}</b>" if bold else ""
            return f"<p{_class(kind)}>{begin}{escape(text)}</p>"
        case Table():
            return _table(block)
        case Code(text, _):
            return f"<pre>{escape(text)}</pre>"
        case Figures(figures):
            shown = [f"<figure><figcaption>{escape(each.caption)}</figcaption>{each.svg}</figure>" for each in figures]
            return f'<div class="figures">{"".join(shown)}</div>'
        case Cases(entry, data):
            return _cases(entry, data)
        case Cards(cards):
            return '<div class="cases">' + "\n".join(map(_card, cards)) + "</div>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _table(block: Table) -> str:
    def cells(tag: str, row: list[str]) -> str:
        kinds = [_class("number" if index in block.numbers else "") for index in range(len(row))]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    lines = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in block.rows)
    kind = "" if block.numbers else "texts"
    shown = f'<div class="wide"><table{_class(kind)}><tr>{cells("th", block.head)}</tr>\n{lines}</table></div>'
    return f"<details><summary>{escape(block.folded)}</summary>{shown}</details>" if block.folded else shown


def _cases(entry: dict[str, Any], data: dict[str, Any]) -> str:
    protocol = entry["protocol"]
    root = Path(data[f"{protocol['source']}/{protocol['split']}"]["media_root"])
    names = ("Better half", "Worse half") if entry["metric"] == "cider" else ("Right", "Wrong")
    parts = []
    for title, right in zip(names, (True, False), strict=True):
        cards = [_case(case, protocol["frames"], root) for case in entry["cases"] if case["right"] == right]
        if cards:
            parts.append(f'<h3>{title}</h3><div class="cases">' + "\n".join(cards) + "</div>")
    return "\n".join(parts)


def _card(card: Card) -> str:
    picture = _looks(card) if card.maps else _picture([card.picture], card.picture.name)
    lines = [f"<p><b>{escape(card.bold)}</b></p>", *(f'<p class="soft">{escape(line)}</p>' for line in card.lines)]
    kind = {True: " right", False: " wrong", None: ""}[card.good]
    return f'<div class="case{kind}">{picture}<div>{"".join(lines)}</div></div>'


def _looks(card: Card) -> str:
    """The picture, and beside it what the queries look at."""
    name = escape(card.picture.name)
    try:
        shown = [data_uri([card.picture], 1), *(attended_uri(card.picture, each) for each in card.maps)]
    except UserError as error:
        return f'<div class="warn">{escape(str(error))}</div>'
    return '<div class="looks">' + "".join(f'<img alt="{name}" src="{each}">' for each in shown) + "</div>"


def _picture(paths: list[Path], name: str, frames: int = 1, clip: Clip = (None, None)) -> str:
    try:
        return f'<img alt="{escape(name)}" src="{data_uri(paths, frames, clip)}">'
    except UserError as error:
        return f'<div class="warn">{escape(str(error))}</div>'


def _case(case: dict[str, Any], frames: int, root: Path) -> str:
    picture = _picture([root / path for path in case["images"]], case["example"], frames, tuple(case["clip"]))
    cut = f' <span class="warn">(cut for {escape(words.readers(case["cut"]))})</span>' if case.get("cut") else ""
    lines = [f"<p>{escape(words.asked(case))}{cut}</p>", f"<p><b>{escape(case['text']) or '(nothing)'}</b></p>"]
    if case["candidates"]:
        ranked = "; ".join(f"{each['text']} {100 * each['probability']:.0f}%" for each in case["candidates"])
        lines.append(f'<p class="soft">ranked: {escape(ranked)}</p>')
    if "hits" in case:
        lines.append(f'<p class="soft">found: {escape(words.hits(case))}</p>')
    expected = "; ".join(case["expected"][:5])
    lines.append(
        f'<p class="soft">expected: {escape(expected)}</p><p class="soft"><code>{escape(case["example"])}</code></p>'
    )
    return f'<div class="case {"right" if case["right"] else "wrong"}">{picture}<div>{"".join(lines)}</div></div>'
