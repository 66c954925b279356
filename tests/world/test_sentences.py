"""Sentences in two parts: each is true of its picture, and what is given means one thing, by all that it can be."""

from __future__ import annotations

import random
import re
from collections import Counter

from instructkit.world.facts import SEEN
from instructkit.world.scene import RELATIONS, Scene, Thing, draw_scene
from instructkit.world.sentences import BY, FACTS, tell

SIGNS = ("HONEY", "42")


def meant(scene: Scene, words: str) -> tuple[str, list[Thing]]:
    """By what words mean something, and which things they can mean."""
    if match := re.fullmatch(r"thing in the (.+)", words):
        return "place", [thing for thing in scene.things if thing.place == match[1]]
    if match := re.fullmatch(rf"thing ({'|'.join(RELATIONS)}) the (.+)", words):
        return "relation", [thing for thing in scene.things if thing.stands(match[1], scene.of(match[2]))]
    if match := re.fullmatch(r"(.+) thing", words):
        by = "colour" if any(thing.colour == match[1] for thing in scene.things) else "texture"
        return by, [thing for thing in scene.things if match[1] in (thing.colour, thing.texture)]
    return "kind", [thing for thing in scene.things if thing.kind == words]


def test_every_sentence_is_true_and_means_one_thing() -> None:
    used = Counter[str]()
    told_of = Counter[str]()
    for number in range(3000):
        rng = random.Random(number)
        scene = draw_scene(rng, 1, 6, SIGNS if number % 2 else ())
        given, told, facts = tell(rng, scene)
        told_of.update(facts)
        if match := re.fullmatch(r"The number of (\w+) things is", given):
            fitting = [thing for thing in scene.things if match[1] in (thing.colour, thing.texture)]
            assert told == f"{len(fitting)}."
            used["number"] += 1
        elif match := re.fullmatch(r"The (left|right) sign says", given):
            assert told == f"{SIGNS[match[1] == 'right'].lower()}."
            assert facts == (("figure",) if match[1] == "right" else ("word",))
            used["sign"] += 1
        else:
            match = re.fullmatch(r"The (.+) is", given)
            assert match
            by, found = meant(scene, match[1])
            (thing,) = found
            words = set(re.findall(r"\w+", told)) - {"a", "an", "and", "in", "the"}
            wanted = {fact: getattr(thing, fact) for fact in SEEN if fact != by}
            assert words == {word for value in wanted.values() for word in value.split()}, (given, told)
            assert facts == SEEN
            used[by] += 1
    assert set(used) == {*BY, "number", "sign"}
    assert set(told_of) == set(FACTS)
    assert min(used.values()) > 100
