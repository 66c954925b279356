"""GQA, Visual Spatial Reasoning, IconQA and ScienceQA in miniature: to be reasoned about, with options or without."""

from __future__ import annotations

import random
from typing import Any

from instructkit.world.facts import HELD_OUT
from instructkit.world.questions import Question, ask, ask_number, ask_relation, options, verify
from instructkit.world.release import Release, side_of

KINDS_OF_PROBLEM = ("choose_txt", "choose_img", "fill_in_blank")
LECTURE = "Things are sorted by what they have in common. Each kind of thing has its group and its place in the world."
HINTS = {
    "category": (
        "A museum puts things into groups.",
        "Every thing has a group.",
        "Someone tidies up and sorts things.",
    ),
    "home": ("Every thing has its place in the world.", "Someone brings things back to where they belong."),
}


def write_gqa(release: Release) -> None:
    """Questions that name a thing by how it stands to another."""
    size = release.size
    counts = {"train": size.other, "val": size.other, "testdev": size.benchmark, "test": size.other}
    first = 1
    for split, count in counts.items():
        questions: dict[str, Any] = {}
        for number in range(count):
            question = release.draw(split, number, side_of(split), _ask_composed)
            key, image = str(90_000 + first), f"n{first}"
            first += 1
            entry: dict[str, Any] = {"question": question.text, "imageId": image, "isBalanced": True}
            if split != "test":
                kind = "verify" if question.values == ("yes", "no") else "query"
                entry["answer"] = question.answer
                entry["fullAnswer"] = f"It is {question.answer}."
                entry["types"] = {"structural": kind, "semantic": "rel", "detailed": f"rel_{question.fact}"}
                entry["groups"] = {"global": question.fact, "local": None}
            questions[key] = entry
            release.note(f"{split}/{key}", question, "compositional")
            release.picture(f"images/{image}.jpg", question.scene)
        bad = release.flawed(split, list(questions.values()))
        questions |= {str(80_000_000 + place): entry for place, entry in enumerate(bad)}
        release.write_json(f"{split}_balanced_questions.json", questions)


def write_vsr(release: Release) -> None:
    """Statements about how two things stand to each other, both versions."""
    size = release.size
    first = 1
    for version, prefix in (("zeroshot", ""), ("random", "random-")):
        counts = {"train": size.other, "dev": size.other, "test": size.other if prefix else size.benchmark}
        for part, count in counts.items():
            split = prefix + part
            lines = []
            for number in range(count):
                question = release.draw(split, number, side_of(split), _state)
                name = f"{first:012}.jpg"
                first += 1
                words = question.text.rstrip(".").split()
                lines.append(
                    {
                        "image": name,
                        "image_link": f"http://images.cocodataset.org/train2017/{name}",
                        "caption": question.text,
                        "label": int(question.answer == "yes"),
                        "relation": " ".join(words[3:-2]),
                        "subj": words[1],
                        "obj": words[-1],
                    }
                )
                release.note(f"{split}/{number + 1}", question, "statement")
                release.picture(f"images/{name}", question.scene)
            lines += release.flawed(split, lines)
            release.write_lines(f"splits/{version}/{part}.jsonl", lines)


def write_iconqa(release: Release) -> None:
    """Problems of all three kinds; where pictures are to be chosen, each option is a picture."""
    size = release.size
    problems: dict[str, Any] = {}
    splits: dict[str, list[str]] = {}
    for part in ("train", "val", "test"):
        for kind in KINDS_OF_PROBLEM:
            pids = splits[f"{kind}_{part}"] = []
            for number in range(size.benchmark if (kind, part) == ("choose_txt", "test") else size.other):
                pid = str(1 + len(problems))
                pids.append(pid)
                problems[pid] = _problem(release, kind, part, number, pid)
            _plant(release, f"{kind}_{part}", problems, pids)
    release.write_json("problems.json", problems)
    release.write_json("pid_splits.json", splits)


def write_scienceqa(release: Release) -> None:
    """Questions with a hint, options, a lecture and a solution; one in four has no picture and is left out later."""
    size = release.size
    problems: dict[str, Any] = {}
    splits: dict[str, list[str]] = {}
    for split, count in {"train": size.other, "val": size.other, "test": size.benchmark}.items():
        pids = splits[split] = []
        for number in range(count):
            if number % 3 == 0:
                pids.append(str(1 + len(problems)))
                problems[pids[-1]] = _problem_without_picture(split)
            pids.append(str(1 + len(problems)))
            question = release.draw(split, number, side_of(split), _ask_school)
            problems[pids[-1]] = _school_problem(question, release.rng(split, number), split)
            release.note(f"{split}/{pids[-1]}", question, "context")
            release.picture(f"images/{split}/{pids[-1]}/image.png", question.scene)
        _plant(release, split, problems, pids)
    release.write_json("problems.json", problems)
    release.write_json("pid_splits.json", {**splits, "minitest": splits["test"][:2]})


def _plant(release: Release, split: str, problems: dict[str, Any], pids: list[str]) -> None:
    """Add bad problems to a split, which lists its own in `pids`."""
    for problem in release.flawed(split, [problems[pid] for pid in pids if problems[pid].get("image", True)]):
        pids.append(str(1 + len(problems)))
        problems[pids[-1]] = problem


def _ask_composed(rng: random.Random) -> Question:
    fact = rng.choice(HELD_OUT["gqa"].facts)
    return verify(rng, fact, "relation") if rng.randrange(3) == 0 else ask(rng, fact, "relation")


def _state(rng: random.Random) -> Question:
    return ask_relation(rng, "{} is {} {}.")


def _ask_school(rng: random.Random) -> Question:
    return ask(rng, rng.choice(HELD_OUT["scienceqa"].facts))


def _problem(release: Release, kind: str, part: str, number: int, pid: str) -> dict[str, Any]:
    split, folder = f"{kind}_{part}", f"iconqa/{part}/{kind}/{pid}"
    rng = release.rng(split, number)
    entry: dict[str, Any] = {"ques_type": kind, "grade": "grade1", "split": part}
    if kind == "choose_txt":
        question = release.draw(split, number, side_of(split), lambda r: ask(r, r.choice(HELD_OUT["iconqa"].facts)))
        choices = options(rng, question, 4)
        entry |= {"choices": choices, "answer": choices.index(question.answer)}
    else:
        question = release.draw(split, number, side_of(split), ask_number)
        entry["answer"] = question.answer
    if kind == "choose_img":
        pictures = [question.scene] + [
            release.draw(f"{split}/{number}", place, side_of(split), ask_number).scene for place in range(2)
        ]
        right = rng.randrange(3)
        pictures.insert(right, pictures.pop(0))
        names = [f"choice_{place}.png" for place in range(3)]
        for name, scene in zip(names, pictures, strict=True):
            release.picture(f"{folder}/{name}", scene)
        entry |= {"choices": names, "answer": right}
    entry |= {"question": question.text, "label": question.fact}
    if kind == "choose_img":
        entry["question"] = "Which picture is the same as the first one?"
    release.write_json(f"{folder}/data.json", {key: value for key, value in entry.items() if key != "split"})
    release.note(f"{split}/{pid}", question, "pictures" if kind == "choose_img" else "options")
    release.picture(f"{folder}/image.png", question.scene)
    return entry


def _school_problem(question: Question, rng: random.Random, split: str) -> dict[str, Any]:
    choices = options(rng, question, 4)
    return {
        "question": question.text,
        "choices": choices,
        "answer": choices.index(question.answer),
        "hint": rng.choice(HINTS[question.fact]),
        "image": "image.png",
        "task": "closed choice",
        "grade": f"grade{rng.randint(1, 6)}",
        "subject": "natural science",
        "topic": "things",
        "category": question.fact,
        "skill": f"Tell the {question.fact}",
        "lecture": LECTURE,
        "solution": f"The picture shows what it is; the answer is {question.answer}.",
        "split": split,
    }


def _problem_without_picture(split: str) -> dict[str, Any]:
    question = {"question": "Which word is spelled right?", "choices": ["aple", "apple"], "answer": 1, "hint": ""}
    about = {"subject": "language science", "topic": "spelling", "category": "spelling", "skill": "Spell"}
    rest = {"image": None, "task": "closed choice", "grade": "grade2", "lecture": "", "solution": "", "split": split}
    return {**question, **about, **rest}
