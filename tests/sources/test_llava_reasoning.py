from __future__ import annotations

from pathlib import Path

from instructkit.data.examples import Example
from tests.sources import converted, sample
from tests.sources.test_llava_conversation import conversation, write_conversations

# LLaVA-Instruct complex reasoning in miniature: one turn each.
RECORDS = [
    conversation(91, "Why might the road be closed?\n<image>", "A tree lies across it, so cars cannot pass."),
    conversation(92, "<image>\nWhat should the sailor do next?", "He should reef the sail, since the wind is rising."),
]


def write(root: Path) -> None:
    """Write the release."""
    write_conversations(root, "complex_reasoning_77k.json", RECORDS)


def test_the_tag_goes_whether_it_stands_before_or_behind(tmp_path: Path) -> None:
    write(tmp_path)
    examples, rejected = converted("llava_reasoning", tmp_path, "train")
    assert rejected == []
    assert examples == [
        Example(
            id="llava_reasoning/train/000000000091/0/1",
            images=["train2017/000000000091.jpg"],
            question="Why might the road be closed?",
            answers=["A tree lies across it, so cars cannot pass."],
        ),
        Example(
            id="llava_reasoning/train/000000000092/1/1",
            images=["train2017/000000000092.jpg"],
            question="What should the sailor do next?",
            answers=["He should reef the sail, since the wind is rising."],
        ),
    ]


def test_authentic_record_by_hand() -> None:
    examples, rejected = converted("llava_reasoning", sample("llava_instruct/reconstructed"), "train")
    assert rejected == []
    (frisbee,) = examples
    assert frisbee.images == ["train2017/000000215677.jpg"]
    assert str(frisbee.question).startswith("What skill set might")
    assert str(frisbee.question).endswith("frisbee trick?")
    assert frisbee.answers[0].startswith("To perform the frisbee trick")
    assert frisbee.history == []
