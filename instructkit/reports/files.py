"""The three files that every report is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from instructkit.files import write_atomically, writing
from instructkit.reports.blocks import Block
from instructkit.reports.html import page
from instructkit.reports.markdown import text


def write_files(place: Path, blocks: Sequence[Block], found: Any) -> None:
    """Write `report.html` and `report.md` for people, and `report.json`.

    Args:
        place: the folder, made if missing.
        blocks: what people read.
        found: what the JSON holds.

    Raises:
        UserError: the disk refuses.
    """
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        write_atomically(place / "report.html", page(blocks))
        write_atomically(place / "report.md", text(blocks))
        write_atomically(place / "report.json", msgspec.json.format(msgspec.json.encode(found)) + b"\n")
