"""Answers about many photos: a folder of them, or JSON lines without answers, to CSV or JSON lines."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from instructkit.data.examples import Example
from instructkit.data.media import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from instructkit.data.readers import UNDECODABLE, RawRecord, json_lines
from instructkit.errors import UserError
from instructkit.evaluation.asked import LINES, example_about, example_of, line_of
from instructkit.evaluation.responses import Response
from instructkit.prompts.protocols import Protocol

COLUMNS = ("id", "prompt", "answer", "score", "error")
_REPLIES = {"answers", "references", "choice", "relevance", "rationales", "meta"}
"""Fields that say what is right, or that reports group by; they are read where a prompt has them."""


class Asking(NamedTuple):
    """What is to be answered.

    Attributes:
        examples: in order, with ids that differ.
        notes: what is not read, in lines for people.
    """

    examples: list[Example]
    notes: list[str]


def read_questions(place: Path, question: str | None, protocol: Protocol, candidates: Sequence[str] | None) -> Asking:
    """The questions of a folder of photos, or of a `.jsonl` file.

    Every picture and video in a folder and below is asked the one question. A line of a file holds `image`, `images` or
    `video` (relative to the file), `instruction` or `question`, perhaps `id`, and, for a protocol that reads them,
    other fields of `Example` such as `context` or `choices`.

    Args:
        place: folder or file.
        question: for a folder, and for lines that have none.
        protocol: how they are asked.
        candidates: to be ranked.

    Raises:
        UserError: there is nothing to ask about, or a line does not fit; the message names file and line.
    """
    if place.is_dir():
        return _photos(place, question, protocol, candidates)
    alone: Counter[str] = Counter()
    examples = []
    for record in json_lines(place):
        try:
            examples.append(_example(record, place.parent, question, protocol, candidates, alone))
        except (UserError, msgspec.ValidationError, *UNDECODABLE) as error:
            raise UserError(f"{place}, {record.key}: {error}") from error
    if not examples:
        raise UserError(f"{place}: holds no line")
    for name, count in Counter(example.id for example in examples).items():
        if count > 1:
            raise UserError(f"{place}: {count} lines have the id {name!r}; give each its own, or none")
    keys = ", ".join(f"{key} ({count:,} lines)" for key, count in sorted(alone.items()))
    return Asking(examples, [f"{place}: keys that are not read: {keys}"] if alone else [])


def _photos(folder: Path, question: str | None, protocol: Protocol, candidates: Sequence[str] | None) -> Asking:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    photos = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES]
    if not photos:
        raise UserError(f"{folder}: no picture or video in this folder or below")
    examples = [
        example_about([path], example_of(question, protocol, candidates, str(path.relative_to(folder))))
        for path in photos
    ]
    others = len(files) - len(photos)
    return Asking(examples, [f"{folder}: {others:,} files that are no photos are left out"] if others else [])


def _example(
    record: RawRecord,
    root: Path,
    question: str | None,
    protocol: Protocol,
    candidates: Sequence[str] | None,
    alone: Counter[str],
) -> Example:
    line = msgspec.json.decode(record.data, type=dict[str, Any])
    known = set(Example.__struct_fields__) - (_REPLIES - set(protocol.compiled.fields))
    alone.update(line.keys() - known - {"image", "instruction"})
    fields = {key: line[key] for key in line.keys() & known}
    if "image" in line:
        fields["images"] = [line["image"]]
    if "instruction" in line:
        fields["question"] = line["instruction"]
    number = line.get("id", record.key)
    example = msgspec.convert({**fields, "id": str(number)}, Example)
    words = example.question
    if words is None and not any(getattr(example, name) for name in LINES):
        words = question
    if words is not None or not any(getattr(example, name) for name in LINES):
        example = msgspec.structs.replace(example, **{"question": None, **line_of(words, protocol, example.id)})
    asked = example_of(example, protocol, candidates, example.id)
    media = [*example.images, *([example.video] if example.video else [])]
    return example_about([root / path for path in media], msgspec.structs.replace(asked, id=example.id))


def prediction(response: Response) -> dict[str, Any]:
    """What is written about one answer: id, prompt, answer, score and candidates where it ranked, cut, error."""
    found: dict[str, Any] = {"id": response.example}
    if response.error is not None:
        return {**found, "error": response.error}
    found |= {"prompt": response.prompt, "answer": response.text}
    if response.ranked:
        found |= {"score": response.ranked[0][1], "ranked": response.ranked}
    return {**found, "cut": response.cut} if response.cut else found


def csv_lines(predictions: Iterable[dict[str, Any]]) -> Iterator[str]:
    """CSV with a header, a line an answer; of ranked candidates the best one and its score."""
    yield _csv_line(COLUMNS)
    for each in predictions:
        yield _csv_line([each.get(column, "") for column in COLUMNS])


def json_rows(predictions: Iterable[dict[str, Any]]) -> Iterator[str]:
    """JSON lines, one an answer."""
    for each in predictions:
        yield msgspec.json.encode(each).decode() + "\n"


def _csv_line(cells: Sequence[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()
