"""What a report is made of; `html.py` and `markdown.py` write it out. Texts are plain: nothing in them is markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple


class Heading(NamedTuple):
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


class Line(NamedTuple):
    """A paragraph, which may begin with a few words in bold; `kind` is "", "soft" or "warn"."""

    text: str
    bold: str = ""
    kind: str = ""


class Table(NamedTuple):
    """A table; columns in `numbers` stand to the right. Under `folded`, a page shows that line until it is clicked."""

    head: list[str]
    rows: list[list[str]]
    numbers: tuple[int, ...] = ()
    folded: str = ""


class Code(NamedTuple):
    """A block of text as it is."""

    text: str
    language: str = ""


class Figure(NamedTuple):
    """A plot as SVG with what it shows; Markdown has the table in its place, or nothing."""

    caption: str
    svg: str
    table: Table | None = None


class Figures(NamedTuple):
    """Figures side by side."""

    figures: list[Figure]


class Cases(NamedTuple):
    """Examples of a benchmark with what the model answered: cards with pictures on a page, a table in Markdown.

    `data` holds the manifests, which say where the pictures lie.
    """

    entry: dict[str, Any]
    data: dict[str, Any]


class Card(NamedTuple):
    """A picture with lines about it, the first of which stand out; `good` colours its edge, None leaves it plain.

    Each of `maps`, shares of attention by row and column, shows the picture once more: what has little of it is pale.
    """

    picture: Path
    bold: str
    lines: list[str]
    good: bool | None
    maps: tuple[list[list[float]], ...] = ()


class Cards(NamedTuple):
    """Pictures side by side on a page, a table in Markdown."""

    cards: list[Card]


Block = Heading | Line | Table | Code | Figures | Cases | Cards
