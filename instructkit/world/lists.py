"""Lists of what is true of a scene: short lines, nearly every word of which follows from the description before it.

A question spends a dozen tokens to ask for one fact; a line of a list tells seven. An LLM that reads lists learns from
far fewer tokens to find in a description what a few words mean.
"""

from __future__ import annotations

import random

from instructkit.world.facts import KNOWN, SEEN, VALUES, VERIFIED, value
from instructkit.world.questions import refer, verify_of
from instructkit.world.scene import RELATIONS, Scene

HEAD = "Facts of one picture."
"""What a list begins with."""
LINES = 10
"""Of a list, at most; scenes of one or two things have fewer."""
TOLD = ("size", "colour", "texture", "kind", "place", *KNOWN)
"""The order in which a line tells the facts of a thing."""
_DRAWS = 40


def list_of(rng: random.Random, scene: Scene) -> tuple[list[tuple[str, str]], list[str]]:
    """The lines of a list about a scene, each as what it asks and what it tells, and the facts that they tell."""
    lines: dict[tuple[str, str], tuple[str, ...]] = {}
    for _ in range(_DRAWS):
        if len(lines) == LINES:
            break
        draw = rng.choices((_thing, _verdict, _beside, _number, _sign), (10, 4, 3, 2, 4))[0]
        if (line := draw(rng, scene)) is not None:
            asked, words, told = line
            lines.setdefault((asked, words), told)
    return list(lines), list(dict.fromkeys(fact for told in lines.values() for fact in told))


_Line = tuple[str, str, tuple[str, ...]]


def _thing(rng: random.Random, scene: Scene) -> _Line | None:
    """All about a thing but what it is called by."""
    by = rng.choice((*SEEN, "relation"))
    thing = rng.choice(scene.things)
    target = refer(rng, scene, thing, by)
    if target is None:
        return None
    told = tuple(fact for fact in TOLD if fact != by)
    return f"{target.words}:", " ".join(value(thing, fact) for fact in told), told


def _verdict(rng: random.Random, scene: Scene) -> _Line | None:
    """Whether something is true of a thing."""
    fact = rng.choice(VERIFIED)
    question = verify_of(rng, scene, fact, "{} is {}:")
    return None if question is None else (question.text.lower(), question.answer, (fact,))


def _beside(rng: random.Random, scene: Scene) -> _Line | None:
    """What stands in a relation to a thing, cell by cell."""
    other, relation = rng.choice(scene.things), rng.choice(RELATIONS)
    found = sorted((thing for thing in scene.things if thing.stands(relation, other)), key=lambda thing: thing.cell)
    kinds = " ".join(thing.kind for thing in found)
    return f"{relation} the {other.kind}:", kinds or "nothing", ("relation",)


def _number(rng: random.Random, scene: Scene) -> _Line | None:
    fact = rng.choice(("colour", "texture"))
    named = value(rng.choice(scene.things), fact)
    count = str(sum(value(thing, fact) == named for thing in scene.things))
    return (f"{named} things:", count, ("number",)) if count in VALUES["number"] else None


def _sign(rng: random.Random, scene: Scene) -> _Line | None:
    if len(scene.signs) != 2:
        return None
    place = rng.randrange(2)
    sign = scene.signs[place]
    fact = "figure" if sign.isdigit() else "word"
    named = rng.choice((f"the {'left' if place == 0 else 'right'} sign", "number" if fact == "figure" else "word"))
    return f"{named}:", sign.lower(), (fact,)
