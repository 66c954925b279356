"""Lessons for the LLM, before it reads text about the world: to copy a word, then to look one up, then to judge.

    Questions about one picture. The picture was made at sea: top left a big red striped ball; ... What color is the
    ball? red What pattern does the ball have? striped ...

To copy and to look up are learned all at once or not at all. In ordinary text, where a sign can say any of 132 things
and a thing be one of 12 kinds, an LLM of 1.2M parameters still names after 20M tokens what is in a picture, and not
what was asked for. With three things of three kinds and colours it finds the colour of a kind after 70 steps of 16
documents, and with all values and six things 140 steps later. What it has learned for one fact it does not do for
another one. So there is a lesson for each, first with few values, then with all. When it has found things by kind,
colour, pattern and place, most of the rest takes 15 to 230 steps a lesson; yes/no about all facts, and numbers, take
more than 300. A quarter of each lesson repeats earlier ones, which it would forget.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from instructkit.prompts.described import in_words
from instructkit.world.captions import describe, describe_signs
from instructkit.world.documents import PICTURE, Document, with_answers
from instructkit.world.facts import KNOWN, SEEN, SIGNED, VALUES
from instructkit.world.questions import WORDINGS, Question, ask_about, ask_variously, refer, verify_as
from instructkit.world.scene import BACKGROUNDS, KINDS, NUMBERS, SIZES, WORDS, Scene, Thing, colours_of, draw

SIGNS = "Facts of one picture."
"""What a document about signs begins with."""
ASKED = 10
"""Questions of a document; of few things the same ones come again."""
TWICE = 2
"""How often a document about signs tells each."""
COMMON = 10
"""Words, and numbers, that half of the documents about signs keep to."""
KEPT = 4
"""One document in so many repeats an earlier lesson that had all values."""


@dataclass(frozen=True)
class Lesson:
    """What some documents ask for.

    Attributes:
        documents: their number, in the text of the tiny world.
        by: what a thing is called by; nothing for a lesson about signs.
        facts: what is asked for.
        values: how many kinds, colours, patterns and places there are, at most.
        things: fewest and most of a picture.
        also: what half of the questions ask instead: for a `number` or a `relation`, for what is printed, or whether
            something is `so`.
    """

    documents: int
    by: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    values: int = len(KINDS)
    things: tuple[int, int] = (3, 6)
    also: tuple[str, ...] = ()


CALLED = ("kind", "colour", "texture", "place")


def _lessons() -> Iterator[Lesson]:
    yield Lesson(90)
    yield from _wider(("kind",), "colour", (45, 3, 3), (25, 4, 4), (30, 6, 6), (45,))
    yield from _wider(("kind",), "texture", (65, 4, 3), (25,))
    yield from _wider(("kind",), "size", (35, 4, 3), (15,))
    yield from _wider(("kind",), "place", (55, 4, 3), (45,))
    yield Lesson(40, ("kind",), SEEN)
    yield from _wider(("colour",), "kind", (55, 3, 3), (55,))
    yield from _wider(("texture",), "kind", (55, 4, 3), (15,))
    yield from _wider(("place",), "kind", (30, 3, 3), (45,))
    yield from _wider(("colour",), "texture", (60, 4, 3))
    yield from (Lesson(number, (by,), SEEN) for by, number in (("colour", 80), ("texture", 60), ("place", 60)))
    yield Lesson(80, CALLED, (*SEEN, *KNOWN), things=(1, 6))
    yield from _wider(("kind",), "colour", (120, 3, 3), (60,), also=("so",))
    yield Lesson(100, CALLED, (*SEEN, "shape", "category"), also=("so",))
    yield from _wider(("kind",), "place", (90, 4, 3), (40,), also=("relation",))
    yield from _wider(("kind",), "colour", (60, 4, 3), also=("number",))
    yield Lesson(100, CALLED, (*SEEN, *KNOWN), also=("so", "relation", "number"))
    yield from _rest()


def _rest() -> Iterator[Lesson]:
    """What was not learned the first time comes again, when a thing is found by all that it is called by."""
    yield from (Lesson(number, ("place",), (fact,)) for fact, number in (("texture", 42), ("size", 27)))
    yield from (Lesson(number, ("texture",), (fact,)) for fact, number in (("place", 16), ("size", 6)))
    yield Lesson(58, CALLED, SEEN)
    yield from _wider(("relation",), "kind", (21, 4, 3), (18,))
    yield Lesson(36, ("relation",), SEEN)
    yield from _wider(("kind",), "place", (46, 4, 3), (59,), also=("relation",))
    yield from _wider(("kind",), "colour", (21, 3, 3), (15,), also=("so",))
    yield from (
        Lesson(number, ("kind",), (fact,), also=("so",))
        for fact, number in (("texture", 42), ("place", 39), ("size", 13))
    )
    yield Lesson(29, ("colour",), ("kind",), also=("so",))
    yield Lesson(128, CALLED, SEEN, also=("so",))
    yield from _wider(("kind",), "colour", (128, 4, 3), (128,), also=("number",))
    yield from (Lesson(number, by, KNOWN) for by, number in ((("kind",), 7), (("place", "texture"), 8)))
    yield from _wider(("kind",), "colour", (41, 4, 3), (77,), also=SIGNED)
    yield Lesson(6, CALLED, SEEN, also=SIGNED)
    yield Lesson(91, ("kind",), ("place",), also=("relation",))
    yield Lesson(60, ("kind",), ("place",), things=(5, 6), also=("relation",))
    yield from _wider(("kind",), "colour", (57, 4, 3), also=("number",))
    yield Lesson(104, ("kind",), ("colour",), things=(4, 6), also=("number",))
    yield Lesson(20, ("place",), SEEN, also=("so",))
    yield Lesson(20, CALLED, (*SEEN, *KNOWN), also=("so", "relation", "number", *SIGNED))


def _wider(
    by: tuple[str, ...], fact: str, *steps: tuple[int, int, int] | tuple[int], also: tuple[str, ...] = ()
) -> Iterator[Lesson]:
    """Lessons in one fact, each with more values than the one before: documents, and values and things if few."""
    for documents, *few in steps:
        if few:
            values, things = few
            yield Lesson(documents, by, (fact,), values, (things, things), also)
        else:
            yield Lesson(documents, by, (fact,), also=also)


LESSONS = tuple(_lessons())
_ENDS = tuple(accumulate(lesson.documents for lesson in LESSONS))
DOCUMENTS = _ENDS[-1]
"""Documents of all lessons in the text of the tiny world."""


def document(seed: int, number: int, count: int) -> Document:
    """A document of the lessons.

    Args:
        seed: what it is drawn from.
        number: its place, lesson by lesson.
        count: number of all; each lesson has its share.
    """
    stage = next(stage for stage, end in enumerate(_ENDS) if number * DOCUMENTS < end * count)
    return draw(seed, "text/lesson", number, "train", partial(_of_lesson, stage=stage))


def again(seed: int, number: int) -> Document:
    """A document that repeats some lesson, behind all of them."""
    return draw(seed, "text/again", number, "train", _again)


def _again(rng: random.Random) -> Document:
    return _about_things(rng, rng.choice(_of_all_values(LESSONS)), len(LESSONS))


def _of_all_values(lessons: Sequence[Lesson]) -> list[Lesson]:
    """Those about things that come with all values."""
    return [lesson for lesson in lessons if lesson.by and lesson.values == len(KINDS)]


def _of_lesson(rng: random.Random, stage: int) -> Document:
    """A document of a lesson, or of one before it."""
    given = LESSONS[stage]
    earlier = _of_all_values(LESSONS[:stage])
    if given.by and earlier and rng.randrange(KEPT) == 0:
        given = rng.choice(earlier)
    return _about_things(rng, given, stage) if given.by else _about_signs(rng, stage)


def _about_signs(rng: random.Random, stage: int) -> Document:
    """What two signs say; half of the documents keep to a few words and numbers."""
    most = COMMON if rng.randrange(2) else None
    signs = tuple(rng.sample((rng.choice(WORDS[:most]).lower(), rng.choice(NUMBERS[:most])), 2))
    named = ["number:" if sign.isdigit() else "word:" for sign in signs]
    said = [*zip(("the left sign:", "the right sign:", *named), signs * 2, strict=True)] * TWICE
    rng.shuffle(said)
    text, told = with_answers(in_words([SIGNS], describe_signs(signs)), [(what, f"{sign};") for what, sign in said])
    return Document(text, told, "lesson", list(SIGNED), stage=stage)


def _about_things(rng: random.Random, lesson: Lesson, stage: int) -> Document:
    """Questions about a few things."""
    meant: list[tuple[Thing, str]] = []
    while not meant:
        scene = _few(rng, lesson)
        meant = [(thing, by) for by in lesson.by for thing in scene.things if refer(rng, scene, thing, by) is not None]
    lines: list[tuple[str, str]] = []
    while len(lines) < ASKED:
        thing, by = rng.choice(meant)
        question = _question(rng, scene, lesson, thing, by)
        if question is not None:
            lines.append((question.text, question.answer))
    text, told = with_answers(in_words([PICTURE], describe(scene)), lines)
    facts = [*lesson.facts, *(fact for fact in lesson.also if fact != "so")]
    return Document(text, told, "lesson", facts, scene.digests, stage=stage)


def _question(rng: random.Random, scene: Scene, lesson: Lesson, thing: Thing, by: str) -> Question | None:
    """One of the lesson; None if what was drawn cannot be asked of the picture."""
    fact = rng.choice([fact for fact in lesson.facts if fact != by])
    also = rng.choice(lesson.also) if lesson.also and rng.randrange(2) else None
    if also is None:
        return ask_about(rng, scene, thing, fact, by)
    if also == "so":
        return verify_as(rng, scene, thing, fact, by, rng.choice(WORDINGS))
    return ask_variously(rng, scene, also)


def _few(rng: random.Random, lesson: Lesson) -> Scene:
    """A picture that keeps to a few values."""
    count, few = rng.randint(*lesson.things), lesson.values
    kinds, cells = rng.sample(list(KINDS)[:few], count), rng.sample(range(9)[:few], count)
    things = [
        Thing(
            kind,
            rng.choice(colours_of(kind)[:few]),
            rng.choice(SIZES),
            rng.choice(VALUES["texture"][:few]),
            cell,
        )
        for kind, cell in zip(kinds, cells, strict=True)
    ]
    signs: list[str] = []
    if set(lesson.also) & set(SIGNED):
        most = COMMON if few < len(KINDS) else None
        signs = [rng.choice(rng.choice((WORDS, NUMBERS))[:most]) for _ in range(2)]
    return Scene(tuple(things), rng.choice(BACKGROUNDS), tuple(signs))
