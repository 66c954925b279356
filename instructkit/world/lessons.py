"""Lessons for the LLM, before it reads text about the world: to copy a word, then to look one up.

    Questions about one picture. The picture was made at sea: top left a big red striped ball; ... What color is the
    ball? red What is the striped thing? ball ...

To copy and to look up are learned all at once or not at all. In ordinary text, where a sign can say any of 132 things
and a thing be one of 16 kinds, an LLM of 1.2M parameters names for long what is in a picture, and not what was asked
for. With three things of three kinds and colours it finds the colour of a kind after 150 steps of 16 documents, and
with all values and six things soon after that. So each lesson asks for a little more than the one before.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from instructkit.files import write_stream, writing
from instructkit.prompts.described import in_words
from instructkit.world.captions import describe, describe_signs
from instructkit.world.facts import KNOWN, SEEN, VALUES
from instructkit.world.lists import HEAD
from instructkit.world.questions import ask_about, ask_of, refer, verify_as
from instructkit.world.scene import BACKGROUNDS, KINDS, NUMBERS, SIZES, WORDS, Scene, Thing, colours_of, draw
from instructkit.world.text import PICTURE, Document, with_answers

ASKED = 10
"""Questions of a document; of few things the same ones come again."""
TWICE = 2
"""How often a document about signs tells each."""


class Lesson(NamedTuple):
    """What some documents ask for.

    Attributes:
        documents: their number.
        values: how many kinds, colours, patterns and places there are, at most; of words and numbers, too.
        things: fewest and most of a picture.
        by: what a thing is called by; nothing for a lesson about signs.
        facts: what is asked for.
        also: what half of the questions ask instead: for a `number` or a `relation`, or whether something is `so`.
    """

    documents: int
    values: int
    things: tuple[int, int] = (0, 0)
    by: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


CALLED = ("kind", "colour", "texture", "place")
LESSONS = (
    Lesson(4_000, 10),
    Lesson(4_000, 3, (3, 3), ("kind",), ("colour",)),
    Lesson(4_000, 3, (3, 3), ("colour",), ("kind",)),
    Lesson(4_000, 3, (3, 3), ("texture",), ("kind",)),
    Lesson(4_000, 3, (3, 3), ("place",), ("kind",)),
    Lesson(8_000, 3, (3, 3), CALLED, SEEN),
    Lesson(4_000, 4, (4, 4), CALLED, SEEN),
    Lesson(8_000, 6, (4, 6), CALLED, SEEN),
    Lesson(12_000, len(KINDS), (1, 6), CALLED, (*SEEN, *KNOWN)),
    Lesson(4_000, 3, (3, 3), ("kind",), ("colour",), ("so",)),
    Lesson(4_000, 3, (3, 3), CALLED, SEEN, ("so", "relation")),
    Lesson(12_000, len(KINDS), (2, 6), CALLED, (*SEEN, *KNOWN), ("so", "relation", "number")),
)


def write_lesson(out: Path, number: int, seed: int = 0) -> int:
    """Write the documents of a lesson, one a line, in the format of `world.text`; returns their number.

    Raises:
        UserError: the file cannot be written.
    """
    lesson = LESSONS[number]
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    make = partial(_about_things, lesson=lesson) if lesson.by else partial(_about_signs, lesson=lesson)
    documents = (draw(seed, f"text/lesson-{number}", place, "train", make) for place in range(lesson.documents))
    write_stream(out, (msgspec.json.encode(document).decode() + "\n" for document in documents))
    return lesson.documents


def _about_signs(rng: random.Random, lesson: Lesson) -> Document:
    """What two signs say; half of the documents keep to a few words and numbers."""
    most = lesson.values if rng.randrange(2) else None
    word, number = rng.choice(WORDS[:most]).lower(), rng.choice(NUMBERS[:most])
    signs = tuple(rng.sample((word, number), 2))
    said = [("the left sign:", signs[0]), ("the right sign:", signs[1]), ("word:", word), ("number:", number)] * TWICE
    rng.shuffle(said)
    text, told = with_answers(in_words([HEAD], describe_signs(signs)), [(what, f"{sign};") for what, sign in said])
    return Document(text, told, "lesson", ["word", "figure"])


def _about_things(rng: random.Random, lesson: Lesson) -> Document:
    """Questions about a few things."""
    meant: list[tuple[Thing, str]] = []
    while not meant:
        scene = _few(rng, lesson)
        meant = [(thing, by) for by in lesson.by for thing in scene.things if refer(rng, scene, thing, by) is not None]
    lines: list[tuple[str, str]] = []
    while len(lines) < ASKED:
        thing, by = rng.choice(meant)
        fact = rng.choice([fact for fact in lesson.facts if fact != by])
        also = rng.choice(lesson.also) if lesson.also and rng.randrange(2) else None
        if also is None:
            question = ask_about(rng, scene, thing, fact, by)
        elif also == "so":
            question = verify_as(rng, scene, thing, fact, by)
        else:
            question = ask_of(rng, scene, also)
        if question is not None:
            lines.append((question.text, question.answer))
    text, told = with_answers(in_words([PICTURE], describe(scene)), lines)
    return Document(
        text, told, "lesson", [*lesson.facts, *(fact for fact in lesson.also if fact != "so")], scene.digests
    )


def _few(rng: random.Random, lesson: Lesson) -> Scene:
    """A picture that keeps to a few values."""
    count, few = rng.randint(*lesson.things), lesson.values
    kinds, cells = rng.sample(list(KINDS)[:few], count), rng.sample(range(9)[: max(few, 2)], count)
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
    return Scene(tuple(things), rng.choice(BACKGROUNDS))
