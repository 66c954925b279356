from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit.data.examples import Example, Turn
from tests.sources import converted, sample, write_json, write_picture


# LLaVA-Instruct conversations in miniature: several turns, the image tag before or behind the first question.
def conversation(image_id: int, *values: str) -> dict[str, Any]:
    """A record of the release: human and gpt in turn."""
    return {
        "id": f"{image_id:012d}",
        "image": f"{image_id:012d}.jpg",
        "conversations": [
            {"from": "gpt" if place % 2 else "human", "value": value} for place, value in enumerate(values)
        ],
    }


RECORDS = [
    conversation(
        71,
        "What is the BAKER holding?\n<image>",
        "The baker, in a White apron, holds a tray of Buns.",
        "How many?",
        "Six.\n\nTwo of them are dark.",
        "Would you eat them?",
        "As a model I cannot eat, but they look fresh.",
    ),
    conversation(72, "<image>\nWhere was this taken?", "At a harbour."),
]


def write_conversations(root: Path, file: str, records: list[dict[str, Any]]) -> None:
    """Write one of the three files and its pictures."""
    write_json(root / file, records)
    for record in records:
        write_picture(root / "train2017" / record["image"], int(record["id"]))


def write(root: Path) -> None:
    """Write the release."""
    write_conversations(root, "conversation_58k.json", RECORDS)


FIRST = Turn("What is the BAKER holding?", "The baker, in a White apron, holds a tray of Buns.")
SECOND = Turn("How many?", "Six.\n\nTwo of them are dark.")
HARBOUR = Example(
    id="llava_conversation/train/000000000072/1/1",
    images=["train2017/000000000072.jpg"],
    question="Where was this taken?",
    answers=["At a harbour."],
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def test_every_reply_is_an_example_with_the_turns_before_it(raw: Path) -> None:
    examples, rejected = converted("llava_conversation", raw, "train")
    assert rejected == []
    assert examples == [
        Example(
            id="llava_conversation/train/000000000071/0/1",
            images=["train2017/000000000071.jpg"],
            question=FIRST.question,
            answers=[FIRST.answer],
        ),
        Example(
            id="llava_conversation/train/000000000071/0/2",
            images=["train2017/000000000071.jpg"],
            question=SECOND.question,
            answers=[SECOND.answer],
            history=[FIRST],
        ),
        Example(
            id="llava_conversation/train/000000000071/0/3",
            images=["train2017/000000000071.jpg"],
            question="Would you eat them?",
            answers=["As a model I cannot eat, but they look fresh."],
            history=[FIRST, SECOND],
        ),
        HARBOUR,
    ]
    assert len({id(example.history) for example in examples}) == 4


def test_the_same_picture_twice_gives_different_ids(raw: Path) -> None:
    (raw / "conversation_58k.json").write_text(json.dumps(RECORDS + RECORDS))
    examples, _ = converted("llava_conversation", raw, "train")
    assert len({example.id for example in examples}) == len(examples) == 8


HUMAN = {"from": "human", "value": "Where was it?\n<image>"}
GPT = {"from": "gpt", "value": "In a barn."}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conversations": [HUMAN]}, "Expected `array` of length >= 2 - at `$.conversations`"),
        ({"conversations": [GPT, HUMAN]}, "human and gpt do not take turns: gpt, human"),
        ({"conversations": [HUMAN, GPT, HUMAN]}, "human and gpt do not take turns: human, gpt, human"),
        ({"conversations": [HUMAN, GPT, GPT, HUMAN]}, "human and gpt do not take turns: human, gpt, gpt, human"),
        ({"conversations": [HUMAN, GPT, HUMAN, GPT]}, "<image> stands elsewhere"),
        ({"conversations": [HUMAN, {"from": "gpt", "value": "See <image>"}]}, "<image> stands elsewhere"),
        ({"conversations": [{"from": "human", "value": "<image>\nWhy?\n<image>"}, GPT]}, "<image> stands elsewhere"),
        ({"conversations": [{"from": "human", "value": "Is <image> red?"}, GPT]}, "<image> stands elsewhere"),
        (
            {"conversations": [{"from": "human", "value": "<image>\n"}, GPT]},
            "the first question is nothing but <image>",
        ),
        ({"conversations": [HUMAN, {"from": "gpt", "value": "\n"}]}, "Expected `str` matching regex"),
        ({"conversations": [HUMAN, {"from": "system", "value": "x"}]}, "Invalid enum value 'system'"),
        ({"image": "../000000000071.jpg"}, "Expected `str` matching regex"),
        ({"image": None}, "Expected `str`, got `null` - at `$.image`"),
        ({"id": "a/b"}, "Expected `str` matching regex"),
    ],
)
def test_broken_conversations_are_rejected_with_the_reason(raw: Path, change: dict[str, Any], reason: str) -> None:
    (raw / "conversation_58k.json").write_text(json.dumps([{**RECORDS[0], **change}, RECORDS[1]]))
    examples, rejected = converted("llava_conversation", raw, "train")
    assert examples == [HARBOUR]
    assert (rejected[0].file, rejected[0].record) == ("conversation_58k.json", "0")
    assert rejected[0].reason.startswith(reason)


def test_a_question_without_the_tag_is_kept(raw: Path) -> None:
    record = conversation(72, "Where was this taken?", "At a harbour.")
    (raw / "conversation_58k.json").write_text(json.dumps([RECORDS[0], record]))
    assert converted("llava_conversation", raw, "train")[0][-1] == HARBOUR


def test_authentic_record_by_hand() -> None:
    examples, rejected = converted("llava_conversation", sample("llava_instruct/reconstructed"), "train")
    assert rejected == []
    assert [example.id for example in examples] == [
        f"llava_conversation/train/000000033471/0/{number}" for number in (1, 2, 3)
    ]
    bus, back, road = examples
    assert str(bus.question).startswith("What are the colors of the bus")
    assert str(bus.question).endswith("in the image?")
    assert (bus.answers[0].split()[-3:], bus.history) == (["white", "and", "red."], [])
    assert back.history == [Turn(str(bus.question), bus.answers[0])]
    assert road.history == [*back.history, Turn(str(back.question), back.answers[0])]
    assert road.images == ["train2017/000000033471.jpg"]
