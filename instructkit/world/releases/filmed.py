"""MSVD-QA, MSRVTT-QA and iVQA in miniature: films of a few seconds, and what changes in them."""

from __future__ import annotations

import csv
import io
import random
import string
from collections.abc import Callable
from typing import Any

from instructkit.world.facts import HELD_OUT, VALUES
from instructkit.world.questions import Question, ask_change
from instructkit.world.release import Release, side_of, ten_answers
from instructkit.world.scene import Film

COLUMNS = ["video_id", "start", "end", "question", "answer1", "answer2", "answer3", "answer4", "answer5", "type"]


def write_msvd(release: Release) -> None:
    """What appears or leaves; clips are AVI files, numbered by `youtube_mapping.txt`."""
    mapping = []
    first = 0
    for split, count in _counts(release).items():
        entries = []
        for number in range(count):
            question = release.draw(split, number, side_of(split), _asker("msvd_qa", split, number))
            stem = f"{_youtube_id(release.rng(split, number))}_0_{_film(question).seconds}"
            mapping.append(f"{stem} vid{first + 1}")
            entries.append(
                {"answer": question.answer, "id": first, "question": _plain(question), "video_id": first + 1}
            )
            release.note(f"{split}/{first}", question, "film")
            release.film(f"YouTubeClips/{stem}.avi", _film(question))
            first += 1
        entries += release.flawed(split, entries)
        release.write_json(f"{split}_qa.json", entries)
    release.write_text("youtube_mapping.txt", mapping)


def write_msrvtt(release: Release) -> None:
    """What colour a thing turns and where one moves."""
    first = 0
    for split, count in _counts(release).items():
        entries = []
        for number in range(count):
            question = release.draw(split, number, side_of(split), _asker("msrvtt_qa", split, number))
            about = {"category_id": 0, "video_id": first}
            entries.append({"answer": question.answer, "id": first, "question": _plain(question), **about})
            release.note(f"{split}/{first}", question, "film")
            release.film(f"videos/video{first}.mp4", _film(question))
            first += 1
        entries += release.flawed(split, entries)
        release.write_json(f"{split}_qa.json", entries)


def write_ivqa(release: Release) -> None:
    """All changes, five answers each, some cells empty; the clip is the whole video."""
    for split, count in _counts(release).items():
        records: list[dict[str, Any]] = []
        for number in range(count):
            question = release.draw(split, number, side_of(split), _asker("ivqa", split, number))
            rng = release.rng(split, number)
            name = _youtube_id(rng)
            answers = [text if text in question.values else "" for text in ten_answers(rng, question, 5)]
            cells = [name, 0, _film(question).seconds, question.text, *answers, 1]
            records.append(dict(zip(COLUMNS, cells, strict=True)))
            release.note(f"{split}/{name}/{number + 1}", question, "film")
            release.film(f"video/{name}.mp4", _film(question))
        lines = io.StringIO()
        rows = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
        rows.writeheader()
        rows.writerows([*records, *release.flawed(split, records)])
        release.write_text(f"{split}.csv", lines.getvalue().splitlines())


def _counts(release: Release) -> dict[str, int]:
    return {"train": max(12, release.size.other), "val": release.size.other, "test": release.size.benchmark}


def _asker(name: str, split: str, number: int) -> Callable[[random.Random], Question]:
    """What draws a question; the training ones go through all answers, as they are the vocabulary to rank."""
    facts = HELD_OUT[name].facts
    if split != "train":
        return lambda rng: ask_change(rng, rng.choice(facts))
    pairs = {answer: fact for fact in facts for answer in VALUES[fact]}
    answer = list(pairs)[number % len(pairs)]
    return lambda rng: ask_change(rng, pairs[answer], answer)


def _plain(question: Question) -> str:
    return question.text.lower()


def _film(question: Question) -> Film:
    assert isinstance(question.scene, Film)
    return question.scene


def _youtube_id(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_letters + string.digits, k=11))
