"""Miniature releases: made-up ones in a real layout, marked by a ledger of what their examples ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from instructkit.data.examples import Example
from instructkit.data.readers import RawRecord, read_json
from instructkit.sources import Reading

MINIATURE = "miniature.json"
"""The ledger, in the folder of a release: example id -> further `meta`. A release that has one is a miniature."""


def is_miniature(raw: Path) -> bool:
    """Whether the release in a folder is a made-up one."""
    return (raw / MINIATURE).is_file()


def with_ledger(reading: Reading, raw: Path) -> Reading:
    """The reading of a miniature, its examples' `meta` extended by the ledger.

    Raises:
        UserError: the ledger is not such a file.
    """
    ledger = read_json(raw / MINIATURE, dict[str, dict[str, str]])
    convert = reading.convert

    def convert_with_ledger(record: RawRecord) -> list[Example]:
        examples = convert(record)
        for example in examples:
            example.meta = {**example.meta, **ledger.get(example.id, {})}
        return examples

    return replace(reading, convert=convert_with_ledger, files=[*reading.files, raw / MINIATURE])
