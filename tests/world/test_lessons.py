"""The lessons: what each asks for, that its answers are true of what it tells, and that they get harder one by one."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from instructkit.world.facts import KNOWN
from instructkit.world.lessons import ASKED, LESSONS, TWICE, write_lesson
from instructkit.world.scene import COLOURS, KINDS, NUMBERS, PLACES, TEXTURES, WORDS, Thing, side
from tests.world.test_text import things

SIGNS = re.compile(r"Facts of one picture\. The left sign says (\w+)\. The right sign says (\w+)\. (.*);")
PLACE = "|".join(sorted(PLACES, key=len, reverse=True))
SHEET = re.compile(r"Questions about one picture\. (The picture was made [a-z ]+: [^.]+\.) (.*)")
ABOUT_SIGNS, ABOUT_THINGS = (
    [number for number, lesson in enumerate(LESSONS) if bool(lesson.by) is so] for so in (False, True)
)


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("lessons")
    found = []
    for number, lesson in enumerate(LESSONS):
        assert write_lesson(folder / f"{number}.jsonl", number) == lesson.documents
        found.append([json.loads(line) for line in (folder / f"{number}.jsonl").read_text().splitlines()])
    return found


def answers(document: dict[str, Any]) -> list[str]:
    return [document["text"][start:end].strip() for start, end in document["told"]]


@pytest.mark.parametrize("number", ABOUT_SIGNS)
def test_a_lesson_about_signs_says_again_what_is_printed(lessons: list[list[dict[str, Any]]], number: int) -> None:
    few = LESSONS[number].values
    seen, common = set(), 0
    for document in lessons[number]:
        found = SIGNS.fullmatch(document["text"])
        assert found is not None, document["text"]
        left, right, said = found.groups()
        word, figure = (left, right) if right.isdigit() else (right, left)
        assert word.upper() in WORDS
        assert figure in NUMBERS
        lines = [f"the left sign: {left}", f"the right sign: {right}", f"word: {word}", f"number: {figure}"]
        assert sorted(said.split("; ")) == sorted(lines * TWICE)
        assert answers(document) == [f"{line.split()[-1]};" for line in said.split("; ")]
        seen |= {word, figure}
        common += WORDS.index(word.upper()) < few and NUMBERS.index(figure) < few
    assert len(seen) > 0.95 * (len(WORDS) + len(NUMBERS))
    assert 0.45 < common / len(lessons[number]) < 0.57


def check(there: list[Thing], question: str, answer: str, facts: tuple[str, ...]) -> str:
    """Check an answer; returns what sort of question it answers."""
    if match := re.search(r"Is the (\w+) (left of|right of|above|below) the (\w+)\?", question):
        one, other = (next(thing for thing in there if thing.kind == match[place]) for place in (1, 3))
        rows, columns = one.cell // 3 - other.cell // 3, one.cell % 3 - other.cell % 3
        stands = {"left of": columns < 0, "right of": columns > 0, "above": rows < 0, "below": rows > 0}[match[2]]
        assert answer == ("yes" if stands else "no")
        return f"relation, {answer}"
    if match := re.search(r"How many (?:things are )?(\w+)", question):
        assert answer == str(sum(match[1] in (thing.colour, thing.texture) for thing in there))
        return "number"
    thing = meant(there, question)
    true = {fact: getattr(thing, fact) for fact in ("kind", "colour", "size", "texture", "place")}
    true |= {fact: getattr(KINDS[thing.kind], fact) for fact in KNOWN}
    if answer not in ("yes", "no"):
        assert answer in [true[fact] for fact in facts], question
        return "look up"
    said = re.sub(rf".*Is the (?:thing in the (?:{PLACE})|\w+ thing|\w+)(?= )", "", question)
    named = re.sub(r"^ (?:in the |a kind of |an? )?", "", said).removesuffix("?")
    assert answer == ("yes" if named in true.values() else "no"), question
    return f"so, {answer}"


def meant(there: list[Thing], question: str) -> Thing:
    """The one thing that a question names, by its kind, its place, or a word that is true of it alone."""
    if match := re.search(rf"the thing in the ({PLACE})", question):
        (thing,) = (thing for thing in there if thing.place == match[1])
    elif match := re.search(r"the (\w+) thing", question):
        (thing,) = (thing for thing in there if match[1] in (thing.colour, thing.texture))
    else:
        (thing,) = (thing for thing in there if f"the {thing.kind}" in question)
    return thing


@pytest.mark.parametrize("number", ABOUT_THINGS)
def test_a_lesson_about_things_is_true_of_them_and_keeps_to_its_values(
    lessons: list[list[dict[str, Any]]], number: int
) -> None:
    lesson = LESSONS[number]
    sorts = Counter[str]()
    used: dict[str, Counter[str]] = {"kind": Counter(), "colour": Counter(), "texture": Counter()}
    for document in lessons[number]:
        found = SHEET.fullmatch(document["text"])
        assert found is not None, document["text"]
        there = list(things(found[1]).values())
        assert lesson.things[0] <= len(there) <= lesson.things[1]
        assert all(side(digest) == "train" for digest in document["digests"])
        told = answers(document)
        asked = re.findall(r"[^?]+\?", found[2])
        assert len(told) == len(asked) == ASKED
        for question, answer in zip(asked, told, strict=True):
            sort = check(there, question.strip().removeprefix(told[0]), answer, lesson.facts)
            sorts[sort] += 1
        for fact, counts in used.items():
            counts.update(getattr(thing, fact) for thing in there)
    assert {sort.partition(",")[0] for sort in sorts} == {"look up", *lesson.also}
    assert all(0.3 < sorts[f"{sort}, yes"] / sorts[f"{sort}, no"] < 3 for sort in lesson.also if sort != "number")
    assert set(used["kind"]) == set(list(KINDS)[: lesson.values])
    assert len(used["colour"]) <= max(lesson.values + 1, 3) or lesson.values >= len(COLOURS)
    assert set(used["texture"]) == set(TEXTURES[: lesson.values])


def test_lessons_get_harder_one_by_one() -> None:
    for yes_or_no in (False, True):
        lessons = [lesson for lesson in LESSONS if lesson.by and bool(lesson.also) is yes_or_no]
        for before, after in pairwise(lessons):
            assert before.values <= after.values
            assert before.things[1] <= after.things[1]
            assert len(before.by) * len(before.facts) <= len(after.by) * len(after.facts)
        assert lessons[-1].values == len(KINDS)


def test_a_lesson_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_lesson(tmp_path / name, 1)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
