"""VQAv2, OK-VQA, A-OKVQA and VizWiz in miniature: open questions with ten answers each."""

from __future__ import annotations

import random
from typing import Any

from instructkit.world.facts import HELD_IN, HELD_OUT
from instructkit.world.questions import Question, ask, options, polite, verify
from instructkit.world.release import Release, side_of, ten_answers

PLANTED_IDS = 2_000_000_000
"""Above all other ids of questions."""

LICENSE = {"url": "http://creativecommons.org/licenses/by/4.0/", "name": "Creative Commons Attribution 4.0"}


def ask_any(rng: random.Random) -> Question:
    """A question of VQAv2: open, or one in four of those about what is to be seen to be answered with yes or no."""
    fact = rng.choice(HELD_IN["vqav2"].facts)
    if fact in ("kind", "colour", "size", "texture", "place", "shape") and rng.randrange(4) == 0:
        return verify(rng, fact)
    return ask(rng, fact)


def write_vqav2(release: Release) -> None:
    """Questions and annotations of train and val, questions alone of the test sets."""
    size = release.size
    counts = {
        "train2014": size.training(200),
        "val2014": size.benchmark,
        "test-dev2015": size.other,
        "test2015": size.other,
    }
    names = {"train2014": "train", "val2014": "val", "test-dev2015": "test-dev", "test2015": "test"}
    for subset, count in counts.items():
        split, folder = names[subset], subset.replace("test-dev", "test")
        first = 1 if subset != "test-dev2015" else 1_000_001
        questions, annotations = [], []
        for number in range(count):
            question = release.draw(split, number, side_of(split), ask_any)
            image_id = first + number
            entry = {"image_id": image_id, "question": question.text, "question_id": 1000 * image_id}
            questions.append(entry)
            answers = ten_answers(release.rng(split, number), question)
            annotations.append(_annotation(entry, question, answers))
            release.note(f"{split}/{entry['question_id']}", question, "open")
            release.picture(f"{folder}/COCO_{folder}_{image_id:012}.jpg", question.scene)
        if not subset.startswith("test"):
            _plant(release, split, questions, annotations)
        head = {"info": {"version": "2.0"}, "license": LICENSE, "data_type": "mscoco", "data_subtype": subset}
        name = f"v2_OpenEnded_mscoco_{subset}_questions.json"
        release.write_json(name, {**head, "task_type": "Open-Ended", "questions": questions})
        if not subset.startswith("test"):
            release.write_json(f"v2_mscoco_{subset}_annotations.json", {**head, "annotations": annotations})


def write_okvqa(release: Release) -> None:
    """Questions that need what everybody knows about a kind of thing."""
    for split, count in {"train": release.size.training(12), "val": release.size.benchmark}.items():
        questions, annotations = [], []
        for number in range(count):
            question = release.draw(split, number, side_of(split), _ask_known)
            image_id = 1 + number
            entry = {"image_id": image_id, "question": question.text, "question_id": 10 * image_id + 5}
            questions.append(entry)
            answers = ten_answers(release.rng(split, number), question)
            annotations.append(_annotation(entry, question, answers, raw=True))
            release.note(f"{split}/{entry['question_id']}", question, "open")
            folder = f"{split}2014"
            release.picture(f"{folder}/COCO_{folder}_{image_id:012}.jpg", question.scene)
        _plant(release, split, questions, annotations)
        head = {"license": LICENSE, "data_subtype": f"{split}2014", "data_type": "mscoco"}
        release.write_json(f"OpenEnded_mscoco_{split}2014_questions.json", {**head, "questions": questions})
        release.write_json(f"mscoco_{split}2014_annotations.json", {**head, "annotations": annotations})


def write_aokvqa(release: Release) -> None:
    """The same facts, with four options, rationales and direct answers."""
    size = release.size
    for split, count in {"train": size.training(16), "val": size.benchmark, "test": size.other}.items():
        records = []
        for number in range(count):
            question = release.draw(split, number, side_of(split), _ask_known)
            rng = release.rng(split, number)
            choices = options(rng, question, 4)
            key = f"{split}{number:017}"
            record: dict[str, Any] = {
                "split": split,
                "image_id": 1 + number,
                "question_id": key,
                "question": question.text,
                "choices": choices,
            }
            if split != "test":
                record["correct_choice_idx"] = choices.index(question.answer)
                record["direct_answers"] = ten_answers(rng, question)
                record["difficult_direct_answer"] = number % 5 == 0
                record["rationales"] = _rationales(question)
            records.append(record)
            release.note(f"{split}/{key}", question, "options")
            release.picture(f"{split}2017/{1 + number:012}.jpg", question.scene)
        records += release.flawed(split, records)
        release.write_json(f"aokvqa_v1p0_{split}.json", records)


def write_vizwiz(release: Release) -> None:
    """Questions as people ask who do not see the picture, some of which is too blurred to answer."""
    size = release.size
    for split, count in {"train": size.other, "val": size.benchmark, "test": size.other}.items():
        entries = []
        for number in range(count):
            question = release.draw(split, number, side_of(split), _ask_politely)
            name = f"VizWiz_{split}_{number:08}.jpg"
            entry: dict[str, Any] = {"image": name, "question": question.text}
            if split != "test":
                answers = ten_answers(release.rng(split, number), question)
                entry["answers"] = [{"answer": text, "answer_confidence": "yes"} for text in answers]
                answerable = question.answer != "unanswerable"
                entry["answer_type"] = "other" if answerable else "unanswerable"
                entry["answerable"] = int(answerable)
            entries.append(entry)
            release.note(f"{split}/{name.removesuffix('.jpg')}", question, "spoken")
            release.picture(f"{split}/{name}", question.scene)
        entries += release.flawed(split, entries)
        release.write_json(f"{split}.json", entries)


def _plant(release: Release, split: str, questions: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    """Add bad pairs of a question and its annotation, under ids of their own."""
    for number, flaw in enumerate(release.plant(split, len(questions))):
        for part in (questions, annotations):
            change = {key: value for key, value in flaw.change.items() if key in part[number]}
            part.append({**part[number], "question_id": part[number]["question_id"] + PLANTED_IDS, **change})


def _ask_known(rng: random.Random) -> Question:
    return ask(rng, rng.choice(HELD_IN["okvqa"].facts))


def _ask_politely(rng: random.Random) -> Question:
    return polite(rng, ask(rng, rng.choice(HELD_OUT["vizwiz"].facts)))


def _annotation(entry: dict[str, Any], question: Question, answers: list[str], raw: bool = False) -> dict[str, Any]:
    """An entry of `annotations`; `raw` as OK-VQA has them."""
    kind = "number" if question.fact == "number" else "yes/no" if question.values == ("yes", "no") else "other"
    given = [
        {"answer": text, "answer_confidence": "yes", "answer_id": place, **({"raw_answer": text} if raw else {})}
        for place, text in enumerate(answers, 1)
    ]
    return {
        "question_type": "one" if raw else " ".join(question.text.lower().split()[:2]),
        "multiple_choice_answer": question.answer,
        "answers": given,
        "image_id": entry["image_id"],
        "answer_type": kind,
        "question_id": entry["question_id"],
    }


def _rationales(question: Question) -> list[str]:
    said = "lives or lies at" if question.fact == "home" else "is of the group"
    return [f"Such a thing {said}: {question.answer}.", "The picture shows what it is.", "One knows it."]
