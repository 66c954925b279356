"""The layout that VQA, VQAv2 and OK-VQA share: a file of questions and a file of annotations, joined by question id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from instructkit.data.examples import Example
from instructkit.data.readers import UNDECODABLE, RawRecord, Reject, json_member
from instructkit.sources._shared.fields import Natural, Text


class Question(msgspec.Struct, gc=False):
    """One entry of `questions`."""

    image_id: Natural
    question: Text
    question_id: Natural


class Answer(msgspec.Struct, gc=False):
    """One annotator's answer; its id is its place, its confidence is not read."""

    answer: str


class Annotation(msgspec.Struct, gc=False):
    """One entry of `annotations`: what ten annotators answered."""

    question_id: Natural
    image_id: Natural
    question_type: str
    answer_type: str
    answers: list[Answer]


class Record(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A question beside its annotation; one is missing where the other has no partner."""

    question: Question | None = None
    annotation: Annotation | None = None


class _Key(msgspec.Struct, gc=False):
    question_id: int


_decode_key = msgspec.json.Decoder(_Key).decode
_decode = msgspec.json.Decoder(Record).decode


def pair(questions: Path, annotations: Path | None) -> Iterator[RawRecord]:
    """Lay each annotation beside its question, in the order of the annotations, both still undecoded.

    What has no partner, or shares its partner with another, comes out alone and is rejected by `converter`. Without
    a file of annotations (test splits) all questions come out alone.

    Raises:
        UserError: a file is not such a release.
    """
    if annotations is None:
        for file, key, data in json_member(questions, "questions"):
            yield RawRecord(file, key, b'{"question":%b}' % data)
        return
    waiting: dict[int, RawRecord] = {}
    alone: list[RawRecord] = []
    for record in json_member(questions, "questions"):
        number = _question_id(record.data)
        if number is None or number in waiting:
            alone.append(record)
        else:
            waiting[number] = record
    for file, key, data in json_member(annotations, "annotations"):
        number = _question_id(data)
        question = waiting.pop(number, None) if number is not None else None
        if question is None:
            yield RawRecord(file, key, b'{"annotation":%b}' % data)
        else:
            yield RawRecord(file, key, b'{"question":%b,"annotation":%b}' % (question.data, data))
    for file, key, data in [*waiting.values(), *alone]:
        yield RawRecord(file, key, b'{"question":%b}' % data)


def converter(source: str, split: str, image: str, answered: bool) -> Callable[[RawRecord], list[Example]]:
    """The conversion of paired records.

    A blank answer stays in its place, since VQA accuracy is a mean over all ten; a record with nothing but blank
    answers is rejected.

    Args:
        source: name of the source.
        split: name of the split.
        image: format of the image path, with `{:012d}` for the image id.
        answered: whether the split has annotations.
    """
    prefix = f"{source}/{split}/"

    def convert(raw: RawRecord) -> list[Example]:
        record = _decode(raw.data)
        question, annotation = record.question, record.annotation
        if question is None:
            raise Reject("no question has this question_id, or another annotation has it too")
        example = Example(
            id=f"{prefix}{question.question_id}",
            images=[image.format(question.image_id)],
            question=question.question.strip(),
        )
        if annotation is None:
            if answered:
                raise Reject("no annotation has this question_id, or another question has it too")
            return [example]
        if annotation.question_id != question.question_id or annotation.image_id != question.image_id:
            raise Reject(f"annotated for image {annotation.image_id}, asked about image {question.image_id}")
        answers = [answer.answer for answer in annotation.answers]
        if not any(map(str.strip, answers)):
            raise Reject("no answer that is not blank")
        example.answers = answers
        example.meta = {"question_type": annotation.question_type, "answer_type": annotation.answer_type}
        return [example]

    return convert


def _question_id(data: bytes) -> int | None:
    """The question id of a record; None where it has none, which decoding it in full will explain."""
    try:
        return _decode_key(data).question_id
    except UNDECODABLE:
        return None
