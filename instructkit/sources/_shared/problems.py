"""The layout that IconQA and ScienceQA share: problems by id, and apart from them the ids of each split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from instructkit.data.readers import RawRecord, Reject, read_json
from instructkit.errors import UserError

_NO_PROBLEM = b"null"


def problems(problems_file: Path, splits_file: Path, split: str) -> Iterator[RawRecord]:
    """The problems of a split, in the order of its ids, the id as the record's key.

    An id that `problems.json` does not have comes out as well and is rejected by `problem_bytes`.

    Args:
        problems_file: `problems.json`.
        splits_file: `pid_splits.json`.
        split: its key there.

    Raises:
        UserError: a file is not such a file, the key is missing, or an id stands there twice.
    """
    splits = read_json(splits_file, dict[str, list[str]])
    if split not in splits:
        raise UserError(f"{splits_file}: no key {split!r}, only {', '.join(splits)}; is it the right file?")
    if len(set(splits[split])) < len(splits[split]):
        raise UserError(f"{splits_file}: {split!r} lists an id twice; fetch it again")
    found = read_json(problems_file, dict[str, msgspec.Raw])
    for pid in splits[split]:
        yield RawRecord(problems_file.name, pid, bytes(found[pid]) if pid in found else _NO_PROBLEM)


def problem_bytes(record: RawRecord) -> bytes:
    """The JSON of a problem.

    Raises:
        Reject: the split lists an id that has no problem.
    """
    if record.data == _NO_PROBLEM:
        raise Reject("pid_splits.json lists this id, problems.json has no such problem")
    return record.data
