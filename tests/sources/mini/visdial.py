"""Visual Dialog v1.0 in miniature: two dialogs a split, ten rounds each, 100 candidates out of 120 answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.mini import write_json, write_picture

QUESTIONS = [f"is there a {thing} in the picture" for thing in ("dog", "cat", "tree", "boat", "hat", "door")] + [
    "how many people are there",
    "is it day or night",
    "what is the man holding",
    "is the photo in color",
    "are there clouds",
    "is anybody smiling",
]
ANSWERS = [f"i see {number} of them" for number in range(110)] + [
    "yes",
    "no",
    "day",
    "a rope",
    "it is",
    "not really",
    "a few",
    "i can't tell",
    "only one",
    "no, none",
]
CAPTIONS = {31: "a man pulls a boat up the shore", 42: "two cats asleep on a blue chair"}
ROUNDS = 10


def options(first: int) -> list[int]:
    """100 different places of the pool of answers, from `first` on."""
    return [(first + step) % len(ANSWERS) for step in range(100)]


def dialog(image_id: int) -> dict[str, Any]:
    """A dialog; round r asks question r (from the end for the second picture), its answer is candidate 10 r + 3."""
    rounds = []
    for number in range(ROUNDS):
        candidates = options(image_id + 7 * number)
        rounds.append(
            {
                "answer": candidates[10 * number + 3],
                "gt_index": 10 * number + 3,
                "question": number if image_id == 31 else len(QUESTIONS) - 1 - number,
                "answer_options": candidates,
            }
        )
    return {"image_id": image_id, "dialog": rounds, "caption": CAPTIONS[image_id]}


def open_dialog(image_id: int, rounds: int) -> dict[str, Any]:
    """A dialog of the test set: earlier rounds have no candidates, the last one no answer."""
    whole = dialog(image_id)
    earlier = [{"question": entry["question"], "answer": entry["answer"]} for entry in whole["dialog"][: rounds - 1]]
    last = whole["dialog"][rounds - 1]
    return {**whole, "dialog": [*earlier, {key: last[key] for key in ("question", "answer_options")}]}


def relevance() -> list[float]:
    """Relevances of one round: the right candidate, the one behind it in part, nothing else."""
    values = [0.0] * 100
    values[43], values[44] = 1.0, 0.4
    return values


def write(root: Path) -> None:
    """Write the release; the dense annotations are of round 5 of picture 31."""
    for split, name in {"train": "train", "val": "val2018", "test": "test2018"}.items():
        dialogs = [open_dialog(31, 4), open_dialog(42, 1)] if split == "test" else [dialog(31), dialog(42)]
        data = {"questions": QUESTIONS, "answers": ANSWERS, "dialogs": dialogs}
        write_json(root / f"visdial_1.0_{split}.json", {"version": "1.0", "split": name, "data": data})
        if split != "train":
            for number in CAPTIONS:
                folder = f"VisualDialog_{name}"
                write_picture(root / folder / f"{folder}_{number:012d}.jpg", number)
    dense = [{"image_id": 31, "round_id": 5, "gt_relevance": relevance()}]
    write_json(root / "visdial_1.0_val_dense_annotations.json", dense)
    write_picture(root / "train2014" / "COCO_train2014_000000000031.jpg", 31)
    write_picture(root / "val2014" / "COCO_val2014_000000000042.jpg", 42)
