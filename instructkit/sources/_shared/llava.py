"""The layout of LLaVA-Instruct-150K: a JSON list of conversations about one COCO picture each, in turns.

All turns are kept: each reply becomes an example, with the turns before it as its history, in the case and length that
it was written in.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from instructkit.data.examples import Example, Turn
from instructkit.data.folders import media_folder
from instructkit.data.readers import RawRecord, Reject, json_list, require
from instructkit.sources import Reading, Source, Split
from instructkit.sources._shared.fields import Key, PictureName, Text

TAG = "<image>"
_TAG_AT_EITHER_END = re.compile(rf"\A\s*{TAG}\s*|\s*{TAG}\s*\Z")


class Message(msgspec.Struct):
    """What one side says."""

    speaker: Literal["human", "gpt"] = msgspec.field(name="from")
    value: Text


class Record(msgspec.Struct):
    """One conversation: human and gpt in turn; the first question has `<image>` before or behind it."""

    id: Key
    image: PictureName
    conversations: Annotated[list[Message], msgspec.Meta(min_length=2)]


def llava_source(name: str, title: str, file: str, conversations: str) -> Source:
    """The facts of one of the three files.

    Args:
        name: name of the source.
        title: how papers write it.
        file: name of the file.
        conversations: the authors' rounded number of conversations, for the note.
    """
    return Source(
        name=name,
        title=title,
        task="llava",
        role="held-in",
        split="train",
        splits={
            "train": Split(
                (file,),
                note=f"the authors count conversations (about {conversations}), not turns; each turn is an example",
            )
        },
        images="train2017/{image}",
        tree=f"""\
llava/
├── {file}
└── train2017/000000033471.jpg ...    (COCO 2017, also in images/ or coco/; or --images COCO)""",
        licence="CC BY 4.0, CC BY-NC 4.0 at first; made with GPT-4, so OpenAI's terms of use apply",
        home="https://llava-vl.github.io",
        record=Record,
        citation="Liu et al. 2023, arXiv:2304.08485",
    )


def read_conversations(source: str, raw: Path, split: str, file: str) -> Reading:
    """Read one of the three files."""
    path = require(raw, file)
    return Reading(
        "conversations", [path], json_list(path), converter(f"{source}/{split}"), media_folder(raw, "images", "coco")
    )


def converter(prefix: str) -> Callable[[RawRecord], list[Example]]:
    """The conversion of one conversation; ids are `prefix/<record's id>/<its position>/<turn from 1>`."""
    decode = msgspec.json.Decoder(Record).decode

    def convert(raw: RawRecord) -> list[Example]:
        record = decode(raw.data)
        turns = _turns(record.conversations)
        return [
            Example(
                id=f"{prefix}/{record.id}/{raw.key}/{number}",
                images=[f"train2017/{record.image}"],
                question=turn.question,
                answers=[turn.answer],
                history=turns[: number - 1],
            )
            for number, turn in enumerate(turns, 1)
        ]

    return convert


def _turns(messages: list[Message]) -> list[Turn]:
    """Pair questions with replies.

    Raises:
        Reject: human and gpt do not take turns, or `<image>` stands where no picture can be meant.
    """
    speakers = [message.speaker for message in messages]
    if speakers != ["human", "gpt"] * (len(messages) // 2):
        raise Reject(f"human and gpt do not take turns: {', '.join(speakers)}")
    values = [message.value for message in messages]
    values[0] = _TAG_AT_EITHER_END.sub("", values[0], count=1)
    if not values[0].strip():
        raise Reject(f"the first question is nothing but {TAG}")
    if any(TAG in value for value in values):
        raise Reject(f"{TAG} stands elsewhere than once before or behind the first question")
    return [Turn(question.strip(), reply) for question, reply in zip(values[::2], values[1::2], strict=True)]
