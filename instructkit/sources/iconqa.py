"""IconQA: questions about drawings, with texts to choose from, pictures to choose from, or a blank to fill.

The release holds every problem twice, in `problems.json` and as a folder of its own; either is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from instructkit.data.examples import Example
from instructkit.data.readers import RawRecord, Reject, require
from instructkit.errors import UserError
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared.fields import Natural, PictureName, Text
from instructkit.sources._shared.problems import problem_bytes, problems


class Record(msgspec.Struct):
    """One problem; `answer` is an index into `choices`, or the text that fills the blank."""

    question: Text
    answer: Natural | Text
    ques_type: Literal["choose_txt", "choose_img", "fill_in_blank"]
    grade: str
    label: str
    choices: Annotated[list[str], msgspec.Meta(max_length=26)] = []
    image: PictureName = "image.png"
    split: str | None = None


_FILES = ("problems.json", "pid_splits.json")
_FOLDERS = ("iconqa/{part}/{kind}", "{part}/{kind}", "{kind}")
_COUNTS = {
    "choose_txt": {"train": 18_946, "val": 6_316, "test": 6_316},
    "choose_img": {"train": 34_603, "val": 11_535, "test": 11_535},
    "fill_in_blank": {"train": 10_913, "val": 3_638, "test": 3_638},
}

SOURCE = Source(
    name="iconqa",
    title="IconQA",
    task="visual_reasoning",
    role="held-out",
    split="choose_txt_test",
    splits={
        f"{kind}_{part}": Split(
            tuple(" | ".join([name, *(folder.format(part=part, kind=kind) for folder in _FOLDERS)]) for name in _FILES),
            published=count,
        )
        for kind, counts in _COUNTS.items()
        for part, count in counts.items()
    },
    images="iconqa/{split}/{ques_type}/{pid}/image.png, beside it choice_0.png ... for choose_img",
    tree="""\
iconqa/                                (iconqa_data/ of the release)
├── problems.json
├── pid_splits.json
└── iconqa/{train,val,test}/{choose_txt,choose_img,fill_in_blank}/{pid}/
    ├── data.json                      (enough without problems.json; also {choose_txt,...}/{pid}/ without a split)
    ├── image.png
    └── choice_0.png ...               (choose_img)""",
    licence="CC BY-NC-SA 4.0",
    home="https://iconqa.github.io",
    record=Record,
    citation="Lu et al. 2021, arXiv:2110.13214",
)

_decode = msgspec.json.Decoder(Record).decode


def read(raw: Path, split: str) -> Reading:
    """Read one kind of problem, `{choose_txt,choose_img,fill_in_blank}_{train,val,test}`."""
    kind, _, part = split.rpartition("_")
    problems_file, splits_file = (raw / name for name in _FILES)
    if problems_file.is_file() and splits_file.is_file():
        folder, files = f"iconqa/{part}/{kind}", [problems_file, splits_file]
        records, layout = problems(problems_file, splits_file, split), "problems.json"
    else:
        folder = _problem_folder(raw, part, kind)
        files = sorted((raw / folder).glob("*/data.json"), key=lambda path: (len(path.parent.name), path.parent.name))
        if not files:
            raise UserError(f"{raw / folder}: no problem here (*/data.json); fetch the release again")
        records, layout = _folders(files, folder), f"a folder each problem, {folder}"

    def convert(raw_record: RawRecord) -> list[Example]:
        record = _decode(problem_bytes(raw_record))
        if record.ques_type != kind or record.split not in (None, part):
            raise Reject(f"listed for {split}, but it is of {record.ques_type}_{record.split}")
        return [_example(record, f"iconqa/{split}", folder, raw_record.key)]

    return Reading(layout, files, records, convert, raw)


def _problem_folder(raw: Path, part: str, kind: str) -> str:
    """Where the folders of problems of one kind lie, relative to `raw`."""
    candidates = [folder.format(part=part, kind=kind) for folder in _FOLDERS]
    found = require(raw, *candidates, *_FILES)
    if found.name in _FILES:  # the file beside it is missing
        for name in _FILES:
            require(raw, name)
    return found.relative_to(raw).as_posix()


def _folders(files: list[Path], folder: str) -> Iterator[RawRecord]:
    for path in files:
        yield RawRecord(f"{folder}/{path.parent.name}/data.json", path.parent.name, path.read_bytes())


def _example(record: Record, prefix: str, folder: str, pid: str) -> Example:
    example = Example(
        id=f"{prefix}/{pid}",
        images=[f"{folder}/{pid}/{record.image}"],
        question=record.question.strip(),
        meta={"ques_type": record.ques_type, "grade": record.grade, "skill": record.label},
    )
    if record.ques_type == "fill_in_blank":
        if not isinstance(record.answer, str) or record.choices:
            raise Reject("a blank to fill has no choices, and its answer is a text")
        example.answers = [record.answer]
        return example
    if not isinstance(record.answer, int) or record.answer >= len(record.choices):
        raise Reject(f"answer {record.answer!r} is no index into {len(record.choices)} choices")
    example.choices = record.choices
    if record.ques_type == "choose_img":
        example.images += [f"{folder}/{pid}/{msgspec.convert(name, PictureName)}" for name in record.choices]
        example.choices = [f"picture {number}" for number in range(1, len(record.choices) + 1)]
    example.choice = record.answer
    example.answers = [example.choices[record.answer]]
    return example
