"""What a picture is looked at for: the beginning of a sentence, or a question, and the facts that it leaves open.

    The ball is                         big, red, striped, top left
    The thing left of the cat is        big, red, striped, top left, ball
    The left sign says                  h, o, n, e, y
    The number of red things is         2
    What color is the ball?             red
    Is the ball above the cat?          no

An image encoder and a Q-Former learn them from labels, before they tell of pictures through an LLM, as BLIP's image
encoder has learned ImageNet's. Each fact is one of a few values. Questions are those of the LLM's text, in their own
words, in those of VQAv2's prompt or in those of a training template, as tuning will ask them. No look is what a
held-out benchmark asks of a picture: none is a statement, and no question names a thing by how it stands to another.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from string import ascii_lowercase, digits
from typing import NamedTuple

from instructkit.world.facts import KNOWN, SEEN, SIGNED, VALUES, value
from instructkit.world.questions import ask_about, ask_variously, refer, relate
from instructkit.world.scene import NUMBERS, WORDS, Scene
from instructkit.world.sentences import of_number, of_sign
from instructkit.world.text import in_open_words

LETTERS, DIGITS = (max(len(sign) for sign in signs) for signs in (WORDS, NUMBERS))
VALUES_OF: Mapping[str, tuple[str, ...]] = {
    **{fact: VALUES[fact] for fact in SEEN},
    **{f"letter {place + 1}": tuple(ascii_lowercase) for place in range(LETTERS)},
    **{f"digit {place + 1}": tuple(digits) for place in range(DIGITS)},
    "number": tuple(str(count) for count in range(7)),
    "relation": ("no", "yes"),
    **{fact: VALUES[fact] for fact in KNOWN},
}
"""The facts, with all their values. A sign is looked at letter by letter: all at once it is one of 132."""
BY = ("kind", "colour", "texture", "place", "relation")
THINGS = 2
"""Looks of a picture at a thing, each by another of `BY`."""
QUESTIONS = 6
"""Drawn for a picture; some cannot be asked of it."""
ASKED = (*SEEN, *SEEN, *KNOWN, "relation", "relation", "number", *SIGNED)
"""What questions ask for, some of it more often."""
TRIES = 4


class Look(NamedTuple):
    """A look at a picture.

    Attributes:
        text: what the Q-Former reads.
        facts: what is true, by fact.
    """

    text: str
    facts: dict[str, str]


def looks_of(rng: random.Random, scene: Scene) -> list[Look]:
    """Looks at a picture: at some of its things, its signs and the number of things, and some questions."""
    looks = [look for by in rng.sample(BY, THINGS) if (look := _thing(rng, scene, by)) is not None]
    for place in range(len(scene.signs)):
        given, told, _ = of_sign(scene, place)
        looks.append(Look(given, _spelled(told.rstrip("."))))
    given, told, _ = of_number(rng, scene)
    looks.append(Look(given, {"number": told.rstrip(".")}))
    asked = [_question(rng, scene) for _ in range(QUESTIONS)]
    return [*looks, *(look for look in asked if look is not None)]


def _thing(rng: random.Random, scene: Scene, by: str) -> Look | None:
    """A thing that is meant by some of what is true of it; None if chance finds none."""
    for _ in range(TRIES):
        thing = rng.choice(scene.things)
        if (target := refer(rng, scene, thing, by)) is not None:
            facts = {fact: value(thing, fact) for fact in SEEN if fact != by}
            return Look(f"{target.words[0].upper()}{target.words[1:]} is", facts)
    return None


def _question(rng: random.Random, scene: Scene) -> Look | None:
    """A question; None if what was drawn cannot be asked of the picture."""
    fact = rng.choice([fact for fact in ASKED if fact != "relation" or len(scene.things) > 1])
    if fact in (*SEEN, *KNOWN):
        question = ask_about(rng, scene, rng.choice(scene.things), fact)
    elif fact == "relation":
        question = relate(rng, scene)
    else:
        question = ask_variously(rng, scene, fact)
    if question is None:
        return None
    words = in_open_words(rng, question) if rng.randrange(4) else question.text
    return Look(words, _spelled(question.answer) if fact in SIGNED else {fact: question.answer})


def _spelled(sign: str) -> dict[str, str]:
    sort = "digit" if sign.isdigit() else "letter"
    return {f"{sort} {place}": letter for place, letter in enumerate(sign, 1)}
