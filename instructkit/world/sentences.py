"""Sentences about a picture, in two parts: what they are about, and what is told of it.

    The ball is | big, red and striped, in the top left.
    The red thing is | a big striped ball in the top left.
    The left sign says | honey.
    The number of dotted things is | 2.

In the second stage of pre-training LLM and Q-Former read the first part, and the LLM tells the second: so the Q-Former
learns to look for something before it has read an instruction.
"""

from __future__ import annotations

import random

from instructkit.world.captions import describe_signs
from instructkit.world.facts import SEEN, SIGNED, VALUES, value
from instructkit.world.questions import refer
from instructkit.world.scene import Scene, Thing, article_of

BY = ("kind", "kind", "colour", "texture", "place", "place", "relation")
"""What a thing is called by, some as often as two others."""
FACTS = (*SEEN, "number", *SIGNED)
"""What is told."""


def tell(rng: random.Random, scene: Scene) -> tuple[str, str, tuple[str, ...]]:
    """A sentence that is true of a picture: its parts, and the facts that it tells."""
    chosen = rng.randrange(8)
    if chosen == 0 and scene.signs:
        return of_sign(scene, rng.randrange(len(scene.signs)))
    if chosen == 1:
        return of_number(rng, scene)
    while True:
        thing, by = rng.choice(scene.things), rng.choice(BY)
        target = refer(rng, scene, thing, by)
        if target is not None:
            return f"{target.words[0].upper()}{target.words[1:]} is", _of_thing(thing, by), SEEN


def _of_thing(thing: Thing, by: str) -> str:
    """All that is to be seen of it but what it is called by."""
    where = "" if by == "place" else f"in the {thing.place}"
    if by == "kind":
        return f"{thing.size}, {thing.colour} and {thing.texture}, {where}."
    words = " ".join(value(thing, fact) for fact in ("size", "colour", "texture", "kind") if fact != by)
    return f"{article_of(words)} {words} {where}".rstrip() + "."


def of_sign(scene: Scene, place: int) -> tuple[str, str, tuple[str, ...]]:
    """What a sign says, by its place among the signs."""
    words, sign = describe_signs(scene.signs).split(". ")[place].rstrip(".").rsplit(" ", 1)
    return words, f"{sign}.", (SIGNED[sign.isdigit()],)


def of_number(rng: random.Random, scene: Scene) -> tuple[str, str, tuple[str, ...]]:
    """How many things have a colour or a pattern, seldom none."""
    fact = rng.choice(("colour", "texture"))
    named = value(rng.choice(scene.things), fact) if rng.randrange(4) else rng.choice(VALUES[fact])
    count = sum(value(thing, fact) == named for thing in scene.things)
    return f"The number of {named} things is", f"{count}.", ("number",)
