from __future__ import annotations

from pathlib import Path

from instructkit.data.examples import Example
from tests.sources import converted, sample
from tests.sources.test_llava_conversation import conversation, write_conversations

# LLaVA-Instruct detailed descriptions in miniature: one turn each.
LONG = " ".join(f"There is a lantern numbered {number}." for number in range(1, 31))
RECORDS = [
    conversation(81, "<image>\nDescribe the scene in full.", LONG),
    conversation(82, "Tell me all that you see.\n<image>", "A narrow lane.\n\nBicycles lean against a wall."),
]


def write(root: Path) -> None:
    """Write the release."""
    write_conversations(root, "detail_23k.json", RECORDS)


def test_long_descriptions_keep_their_length_and_case(tmp_path: Path) -> None:
    write(tmp_path)
    examples, rejected = converted("llava_detail", tmp_path, "train")
    assert rejected == []
    assert examples == [
        Example(
            id="llava_detail/train/000000000081/0/1",
            images=["train2017/000000000081.jpg"],
            question="Describe the scene in full.",
            answers=[LONG],
        ),
        Example(
            id="llava_detail/train/000000000082/1/1",
            images=["train2017/000000000082.jpg"],
            question="Tell me all that you see.",
            answers=["A narrow lane.\n\nBicycles lean against a wall."],
        ),
    ]
    assert len(examples[0].answers[0].split()) == 180


def test_authentic_record_by_hand() -> None:
    examples, rejected = converted("llava_detail", sample("llava_instruct/reconstructed"), "train")
    assert rejected == []
    (plaza,) = examples
    assert plaza.id == "llava_detail/train/000000442786/0/1"
    assert plaza.question == "What do you see happening in this image?"
    assert plaza.answers[0].startswith("The scene depicts a lively plaza area")
    assert plaza.answers[0].endswith("a bustling plaza on a nice day.")
    assert len(plaza.answers[0].split()) > 50
