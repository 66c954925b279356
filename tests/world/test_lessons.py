"""The lessons: what each asks for, that its answers are true of what it tells, and that they get harder one by one."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from instructkit.world.documents import Document
from instructkit.world.facts import KNOWN
from instructkit.world.lessons import ASKED, COMMON, DOCUMENTS, LESSONS, TWICE, Lesson, again, document
from instructkit.world.scene import KINDS, NUMBERS, PLACES, TEXTURES, WORDS, Thing, side
from tests.world.test_text import things

SIGNS = re.compile(r"Facts of one picture\. The left sign says (\w+)\. The right sign says (\w+)\. (.*);")
PLACE = "|".join(sorted(PLACES, key=len, reverse=True))
SHEET = re.compile(r"Questions about one picture\. (The picture was made [a-z ]+: [^.]+\.) (.*)")
ABOUT_SIGNS, ABOUT_THINGS = (
    [number for number, lesson in enumerate(LESSONS) if bool(lesson.by) is so] for so in (False, True)
)
TIMES = 10


@pytest.fixture(scope="module")
def lessons() -> list[list[Document]]:
    found: list[list[Document]] = [[] for _ in LESSONS]
    for number in range(DOCUMENTS * TIMES):
        drawn = document(0, number, DOCUMENTS * TIMES)
        found[drawn.stage].append(drawn)
    assert [len(documents) for documents in found] == [lesson.documents * TIMES for lesson in LESSONS]
    return found


def answers(drawn: Document) -> list[str]:
    return [drawn.text[start:end].strip() for start, end in drawn.told or []]


def asked(drawn: Document) -> list[str]:
    """What a document asks, each up to its answer."""
    found = SHEET.fullmatch(drawn.text)
    assert found is not None, drawn.text
    ranges = drawn.told or []
    ends = [found.start(2), *(end for _, end in ranges)]
    return [drawn.text[end:start].strip() for end, (start, _) in zip(ends, ranges, strict=False)]


@pytest.mark.parametrize("number", ABOUT_SIGNS)
def test_a_lesson_about_signs_says_again_what_is_printed(lessons: list[list[Document]], number: int) -> None:
    seen, common = set(), 0
    for drawn in lessons[number]:
        found = SIGNS.fullmatch(drawn.text)
        assert found is not None, drawn.text
        left, right, said = found.groups()
        word, figure = (left, right) if right.isdigit() else (right, left)
        assert word.upper() in WORDS
        assert figure in NUMBERS
        lines = [f"the left sign: {left}", f"the right sign: {right}", f"word: {word}", f"number: {figure}"]
        assert sorted(said.split("; ")) == sorted(lines * TWICE)
        assert answers(drawn) == [f"{line.split()[-1]};" for line in said.split("; ")]
        seen |= {word, figure}
        common += WORDS.index(word.upper()) < COMMON and NUMBERS.index(figure) < COMMON
    assert len(seen) > 0.95 * (len(WORDS) + len(NUMBERS))
    assert 0.45 < common / len(lessons[number]) < 0.57


def check(text: str, question: str, answer: str, facts: tuple[str, ...]) -> str:
    """Check an answer by the description in the text; returns what sort of question it answers."""
    if match := re.search(r'True or false\? "The (.+?) is (.+)\."', question):
        question, answer = f"Is the {match[1]} {match[2]}?", {"true": "yes", "false": "no"}[answer]
    there, signs = list(things(text).values()), dict(re.findall(r"The (left|right) sign says (\w+)\.", text))
    if match := re.search(
        r"(?:Which|What) (word|number) (?:is on the (left|right) sign|is printed|can you read)", question
    ):
        fitting = [
            said
            for side, said in signs.items()
            if match[2] in (None, side) and said.isdigit() == (match[1] == "number")
        ]
        assert fitting == [answer]
        return "word" if match[1] == "word" else "figure"
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
        assert answer in [true[fact] for fact in facts if fact in true], question
        return "look up"
    called = rf"thing in the (?:{PLACE})|thing (?:left of|right of|above|below) the \w+|\w+ thing|\w+"
    said = re.sub(rf".*Is the (?:{called})(?= )", "", question)
    named = re.sub(r"^ (?:in the |a kind of |an? )?", "", said).removesuffix("?")
    assert answer == ("yes" if named in true.values() else "no"), question
    return f"so, {answer}"


def meant(there: list[Thing], question: str) -> Thing:
    """The one thing that a question names, by its kind, its place, or a word that is true of it alone."""
    if match := re.search(r"the thing (left of|right of|above|below) the (\w+)", question):
        (other,) = (thing for thing in there if thing.kind == match[2])
        (thing,) = (thing for thing in there if thing.stands(match[1], other))
    elif match := re.search(rf"the thing in the ({PLACE})", question):
        (thing,) = (thing for thing in there if thing.place == match[1])
    elif match := re.search(r"the (\w+) thing", question):
        (thing,) = (thing for thing in there if match[1] in (thing.colour, thing.texture))
    else:
        (thing,) = (thing for thing in there if f"the {thing.kind}" in question)
    return thing


@pytest.mark.parametrize("number", ABOUT_THINGS)
def test_a_lesson_about_things_is_true_of_them_and_keeps_to_its_values(
    lessons: list[list[Document]], number: int
) -> None:
    """But for the quarter of its documents that repeats earlier lessons."""
    taught, own = LESSONS[number], 0
    sorts = Counter[str]()
    used: dict[str, set[str]] = {"kind": set(), "colour": set(), "texture": set()}
    for drawn in lessons[number]:
        there = list(things(drawn.text).values())
        assert all(side(digest) == "train" for digest in drawn.digests)
        told = answers(drawn)
        assert len(told) == ASKED
        for question, answer in zip(asked(drawn), told, strict=True):
            sort = check(drawn.text, question, answer, tuple(drawn.facts))
            sorts[sort] += 1
        if drawn.facts != [*taught.facts, *(fact for fact in taught.also if fact != "so")]:
            continue
        own += 1
        assert len(there) <= 6
        for fact, values in used.items():
            values |= {getattr(thing, fact) for thing in there}
    assert own > 0.6 * len(lessons[number])
    assert {sort.partition(",")[0] for sort in sorts} >= {"look up", *taught.also}
    assert all(
        0.3 < sorts[f"{sort}, yes"] / sorts[f"{sort}, no"] < 3 for sort in taught.also if sort in ("so", "relation")
    )
    assert used["kind"] >= set(list(KINDS)[: taught.values])
    assert used["texture"] >= set(TEXTURES[: taught.values])
    if not any(before.values == len(KINDS) and before.facts == taught.facts for before in LESSONS[:number]):
        assert used["kind"] == set(list(KINDS)[: taught.values]), "none of these repeats an earlier lesson"
        assert used["texture"] == set(TEXTURES[: taught.values])
        assert len(used["colour"]) <= taught.values + 1 or taught.values > 4


def test_a_fact_comes_with_few_values_before_it_comes_with_all(lessons: list[list[Document]]) -> None:
    seen: dict[tuple[object, ...], Lesson] = {}
    for taught in LESSONS:
        before = seen.setdefault((taught.by, taught.facts, taught.also), taught)
        assert before.values <= taught.values
        assert before.things[1] <= taught.things[1]
    skills = [
        (skill, taught)
        for taught in LESSONS
        for skill in (("by", *taught.by), ("also", *taught.also))
        if len(skill) == 2
    ]
    begun = dict(reversed(skills))
    assert len(begun) == 8, begun
    assert all(taught.values < len(KINDS) for taught in begun.values())
    first, last = (things(lessons[number][0].text) for number in (1, -1))
    assert len(first) == 3
    assert set(first) == set(list(KINDS)[:3])
    assert 3 <= len(last) <= 6


def test_a_quarter_of_a_lesson_repeats_earlier_ones(lessons: list[list[Document]]) -> None:
    for taught, documents in list(zip(LESSONS, lessons, strict=True))[2:]:
        earlier = {tuple(lesson.facts) for lesson in LESSONS} - {taught.facts}
        repeated = sum(tuple(drawn.facts) in earlier for drawn in documents)
        assert repeated < 0.35 * len(documents)
    size = next(number for number, taught in enumerate(LESSONS) if taught.facts == ("size",))
    assert any(drawn.facts == ["colour"] for drawn in lessons[size])


def test_the_text_behind_them_repeats_all_that_have_all_values() -> None:
    seen = set()
    for number in range(400):
        drawn = again(0, number)
        assert drawn.stage == len(LESSONS)
        facts = tuple(drawn.facts)
        for question, answer in zip(asked(drawn), answers(drawn), strict=True):
            check(drawn.text, question, answer, facts)
        seen.add(facts)
    assert seen == {
        (*lesson.facts, *(fact for fact in lesson.also if fact != "so"))
        for lesson in LESSONS
        if lesson.by and lesson.values == len(KINDS)
    }


def test_a_document_is_the_same_every_time() -> None:
    assert [document(0, number, DOCUMENTS) for number in range(0, DOCUMENTS, 50)] == [
        document(0, number, DOCUMENTS) for number in range(0, DOCUMENTS, 50)
    ]
    assert document(0, 150, DOCUMENTS) != document(1, 150, DOCUMENTS)


@pytest.mark.parametrize("count", [2, 100, DOCUMENTS, DOCUMENTS * 3 // 2])
def test_each_lesson_has_its_share_of_any_number(count: int) -> None:
    stages = [document(0, number, count).stage for number in range(count)]
    assert stages == sorted(stages)
    for stage, lesson in enumerate(LESSONS):
        assert abs(stages.count(stage) - lesson.documents * count / DOCUMENTS) < 1
