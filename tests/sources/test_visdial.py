from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit import sources
from instructkit.data.examples import Example, Turn
from instructkit.errors import UserError
from tests.sources import converted, sample, write_json, write_picture

# Visual Dialog v1.0 in miniature: two dialogs a split, ten rounds each, 100 candidates out of 120 answers.
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


def dialog_of(image_id: int) -> dict[str, Any]:
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
    whole = dialog_of(image_id)
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
        dialogs = [open_dialog(31, 4), open_dialog(42, 1)] if split == "test" else [dialog_of(31), dialog_of(42)]
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


# Round r (from 0) of picture 31 has the 100 answers from 31 + 7 r on, candidate 10 r + 3 is right: answer 34 + 17 r.
HISTORY_OF_31 = [
    Turn("is there a dog in the picture", "i see 34 of them"),
    Turn("is there a cat in the picture", "i see 51 of them"),
    Turn("is there a tree in the picture", "i see 68 of them"),
    Turn("is there a boat in the picture", "i see 85 of them"),
    Turn("is there a hat in the picture", "i see 102 of them"),
    Turn("is there a door in the picture", "no, none"),
    Turn("how many people are there", "i see 16 of them"),
    Turn("is it day or night", "i see 33 of them"),
    Turn("what is the man holding", "i see 50 of them"),
]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def edit(raw: Path, change: Any, split: str = "val") -> None:
    path = raw / f"visdial_1.0_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_first_round_by_hand(raw: Path) -> None:
    examples, rejected = converted("visdial", raw, "val")
    assert rejected == []
    assert examples[0] == Example(
        id="visdial/val/31/1",
        images=["VisualDialog_val2018/VisualDialog_val2018_000000000031.jpg"],
        question="is there a dog in the picture",
        answers=["i see 34 of them"],
        choices=[
            *[f"i see {number} of them" for number in range(31, 110)],
            *["yes", "no", "day", "a rope", "it is", "not really", "a few", "i can't tell", "only one", "no, none"],
            *[f"i see {number} of them" for number in range(11)],
        ],
        choice=3,
        references=["a man pulls a boat up the shore"],
        meta={"round": "1"},
    )


def test_each_round_has_its_own_question_answer_and_history(raw: Path) -> None:
    examples, _ = converted("visdial", raw, "val")
    first = examples[:10]
    assert [example.id for example in first] == [f"visdial/val/31/{number}" for number in range(1, 11)]
    assert [example.history for example in first] == [HISTORY_OF_31[:number] for number in range(10)]
    assert [example.question for example in first[:9]] == [turn.question for turn in HISTORY_OF_31]
    assert [example.answers for example in first[:9]] == [[turn.answer] for turn in HISTORY_OF_31]
    assert [example.choice for example in first] == [3, 13, 23, 33, 43, 53, 63, 73, 83, 93]
    assert first[9].answers == ["i see 67 of them"]
    assert len({id(example.history) for example in examples}) == 20
    assert len({id(example.choices) for example in examples}) == 20


def test_dialogs_do_not_mix(raw: Path) -> None:
    last = converted("visdial", raw, "val")[0][-1]
    assert last.id == "visdial/val/42/10"
    assert last.question == "is there a tree in the picture"
    assert last.references == ["two cats asleep on a blue chair"]
    assert len(last.history) == 9
    assert last.history[0] == Turn("is anybody smiling", "i see 45 of them")


def test_dense_relevances_belong_to_the_annotated_round_alone(raw: Path) -> None:
    examples, _ = converted("visdial", raw, "val")
    annotated = [example for example in examples if example.relevance]
    assert [example.id for example in annotated] == ["visdial/val/31/5"]
    assert annotated[0].relevance == [0.0] * 43 + [1.0, 0.4] + [0.0] * 55
    assert annotated[0].choice == 43


def test_without_dense_annotations_a_warning_says_what_is_lost(raw: Path) -> None:
    (raw / "visdial_1.0_val_dense_annotations.json").unlink()
    reading = sources.module("visdial").read(raw, "val")
    assert len(reading.warnings) == 1
    assert "NDCG" in reading.warnings[0]
    assert not any(example.relevance for example in converted("visdial", raw, "val")[0])


def test_the_test_set_asks_for_the_last_round_only(raw: Path) -> None:
    examples, rejected = converted("visdial", raw, "test")
    assert rejected == []
    assert [example.id for example in examples] == ["visdial/test/31/4", "visdial/test/42/1"]
    assert examples[0].history == HISTORY_OF_31[:3]
    assert (examples[0].answers, examples[0].choice, len(examples[0].choices)) == ([], None, 100)
    assert examples[1].history == []
    assert examples[1].images == ["VisualDialog_test2018/VisualDialog_test2018_000000000042.jpg"]


def test_train_pictures_are_found_in_both_folders_of_coco(raw: Path) -> None:
    examples, _ = converted("visdial", raw, "train")
    assert examples[0].images == ["train2014/COCO_train2014_000000000031.jpg"]
    assert examples[10].images == ["val2014/COCO_val2014_000000000042.jpg"]
    assert all((raw / example.images[0]).is_file() for example in examples)


def test_train_without_the_folder_that_tells_is_an_error(raw: Path) -> None:
    (raw / "val2014" / "COCO_val2014_000000000042.jpg").unlink()
    (raw / "val2014").rmdir()
    with pytest.raises(UserError, match="val2014: not here"):
        converted("visdial", raw, "train")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gt_index": 4}, "round 1: gt_index 4 points at another answer than answer 34"),
        ({"gt_index": 100}, "Expected `int` <= 99 - at `$.dialog[0].gt_index`"),
        ({"gt_index": None}, "round 1 has no answer or no gt_index"),
        ({"answer": 120}, "120 is beyond the 120 answers of the file"),
        ({"answer": None}, "round 1 has no answer or no gt_index"),
        ({"question": 12}, "12 is beyond the 12 questions of the file"),
        ({"question": -1}, "Expected `int` >= 0 - at `$.dialog[0].question`"),
        ({"answer_options": [1] * 99}, "Expected `array` of length >= 100 - at `$.dialog[0].answer_options`"),
        ({"answer_options": None}, "round 1 has no answer_options"),
        ({"answer_options": [500] * 100}, "500 is beyond the 120 answers of the file"),
    ],
)
def test_a_broken_round_rejects_its_dialog_with_the_reason(raw: Path, change: dict[str, Any], reason: str) -> None:
    edit(raw, lambda content: content["data"]["dialogs"][0]["dialog"][0].update(change))
    examples, rejected = converted("visdial", raw, "val")
    assert {example.id.split("/")[2] for example in examples} == {"42"}
    assert [(reject.record, reject.reason) for reject in rejected] == [("data.dialogs[0]", reason)]


def test_a_round_that_is_used_as_history_only_needs_its_answer(raw: Path) -> None:
    edit(raw, lambda content: content["data"]["dialogs"][0]["dialog"][1].update(answer=None), "test")
    examples, rejected = converted("visdial", raw, "test")
    assert [example.id for example in examples] == ["visdial/test/42/1"]
    assert rejected[0].reason == "round 2 has no answer"


def test_blank_entries_of_the_lists_reject_the_dialogs_that_use_them(raw: Path) -> None:
    edit(raw, lambda content: content["data"]["questions"].__setitem__(0, " "))
    _, rejected = converted("visdial", raw, "val")
    assert [(reject.record, reject.reason) for reject in rejected] == [
        ("data.dialogs[0]", "entry 0 of questions is blank")
    ]


def test_dense_annotations_that_do_not_fit_reject_the_dialog(raw: Path) -> None:
    dense = [{"image_id": 31, "round_id": 5, "gt_relevance": [0.5] * 99}]
    (raw / "visdial_1.0_val_dense_annotations.json").write_text(json.dumps(dense))
    examples, rejected = converted("visdial", raw, "val")
    assert len(examples) == 10
    assert rejected[0].reason == "dense annotation of round 5 with 99 values does not fit"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.update(split="train"), "version 1.0 of train, not 1.0 of val"),
        (lambda content: content.update(version="0.9"), "version 0.9 of val2018"),
        (
            lambda content: content["data"].pop("answers"),
            r"visdial_1\.0_val\.json: Object missing required field `answers` - at `\$\.data`",
        ),
    ],
)
def test_another_file_under_the_name_is_an_error(raw: Path, change: Any, words: str) -> None:
    edit(raw, change)
    with pytest.raises(UserError, match=words):
        converted("visdial", raw, "val")


@pytest.mark.parametrize("content", [b"", b'{"version": "1.0", "split": "val2018", "data": {"questions": ["a'])
def test_a_file_that_breaks_off_is_an_error(raw: Path, content: bytes) -> None:
    (raw / "visdial_1.0_val.json").write_bytes(content)
    with pytest.raises(UserError, match=r"visdial_1\.0_val\.json: .* is it the right file, and whole"):
        converted("visdial", raw, "val")


@pytest.fixture
def authentic(tmp_path: Path) -> Path:
    for ending in (".json", "_dense_annotations.json"):
        name = sample("visdial") / f"visdial_1.0_val{ending}".replace(".json", "_crowdsourced.json")
        (tmp_path / f"visdial_1.0_val{ending}").symlink_to(name)
    return tmp_path


def test_authentic_excerpt_converts_whole(authentic: Path) -> None:
    examples, rejected = converted("visdial", authentic, "val")
    assert rejected == []
    assert len({example.id for example in examples}) == len(examples) == 970
    assert all(len(example.choices) == 100 for example in examples)
    assert sum(bool(example.relevance) for example in examples) == 97


def test_authentic_history_against_a_plain_reading(authentic: Path) -> None:
    data = json.loads((authentic / "visdial_1.0_val.json").read_text())["data"]
    examples = iter(converted("visdial", authentic, "val")[0])
    for dialog in data["dialogs"]:
        spoken: list[tuple[str, str]] = []
        for entry in dialog["dialog"]:
            example = next(examples)
            assert [(turn.question, turn.answer) for turn in example.history] == spoken
            question, answer = data["questions"][entry["question"]], data["answers"][entry["answer"]]
            assert (example.question, example.answers) == (question.strip(), [answer.strip()])
            spoken.append((question.strip(), answer.strip()))


def test_authentic_relevances_fit_the_round_they_are_given_to(authentic: Path) -> None:
    """Annotators nearly always call the dialog's own answer right; a round off by one would lose that."""
    annotated = [example for example in converted("visdial", authentic, "val")[0] if example.relevance]
    own = [example.relevance[example.choice] for example in annotated if example.choice is not None]
    assert sum(own) / len(own) > 0.5


def test_authentic_record_by_hand(authentic: Path) -> None:
    example = converted("visdial", authentic, "val")[0][5]
    assert example.id == "visdial/val/239030/6"
    assert example.images == ["VisualDialog_val2018/VisualDialog_val2018_000000239030.jpg"]
    assert example.references == ["a nokia tablet pc in a keyboard dock"]
    assert (example.question, example.answers, example.choice) == ("what is 1 other object", ["cell"], 54)
    assert (example.choices[0], example.choices[54]) == ("yes", "cell")
    assert [place for place, value in enumerate(example.relevance) if value] == [54]
    assert len(example.history) == 5
    assert example.history[3] == Turn("what color is the table", "white")
    assert example.history[4].answer == "yes"
