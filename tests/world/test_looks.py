"""Looks at a picture: each reads what means one thing, and has the facts that are true of it."""

from __future__ import annotations

import random
import re
from collections import Counter

from instructkit.world.facts import SEEN
from instructkit.world.looks import BY, VALUES_OF, looks_of
from instructkit.world.scene import RELATIONS, draw_scene
from tests.world.test_sentences import SIGNS, meant
from tests.world.test_text import ATTRIBUTES


def test_facts_of_every_look_are_true_and_leave_out_what_is_read() -> None:
    used = Counter[str]()
    for number in range(800):
        rng = random.Random(number)
        scene = draw_scene(rng, 1, 6, SIGNS if number % 2 else ())
        for text, facts in looks_of(rng, scene):
            assert all(value in VALUES_OF[fact] for fact, value in facts.items())
            if match := re.fullmatch(r"The number of (\w+) things is", text):
                fitting = [thing for thing in scene.things if match[1] in (thing.colour, thing.texture)]
                assert facts == {"number": str(len(fitting))}
                used["number"] += 1
            elif match := re.fullmatch(r"The (left|right) sign says", text):
                sign = SIGNS[match[1] == "right"].lower()
                assert "".join(facts.values()) == sign
                assert list(facts) == [f"{'digit' if sign.isdigit() else 'letter'} {n + 1}" for n in range(len(sign))]
                used["sign"] += 1
            elif match := re.search(rf"Is the (\w+) ({'|'.join(RELATIONS)}) the (\w+)\?", text):
                stands = scene.of(match[1]).stands(match[2], scene.of(match[3]))
                assert facts == {"relation": "yes" if stands else "no"}
                used[f"relation {facts['relation']}"] += 1
            elif (match := re.fullmatch(r"The (.+) is", text)) is None:
                (fact,) = {re.sub(r" \d$", "", fact) for fact in facts}
                used[f"asked {fact}"] += 1
                pattern = ATTRIBUTES.get(fact)
                if pattern and (found := re.search(pattern, text)):
                    thing = scene.of(next(filter(None, found.groups())))
                    assert facts == {fact: getattr(thing, fact)}
                    used["asked of a kind"] += 1
            else:
                by, (thing,) = meant(scene, match[1])
                assert facts == {fact: getattr(thing, fact) for fact in SEEN if fact != by}
                used[by] += 1
    asked = {re.sub(r" \d$", "", fact) for fact in VALUES_OF} - {"relation"}
    assert set(used) == {*BY, "number", "sign", "relation yes", "relation no", "asked of a kind"} | {
        f"asked {fact}" for fact in asked
    }
    assert min(used.values()) > 50


def test_no_look_asks_what_a_held_out_benchmark_asks() -> None:
    """GQA names things by how they stand to another, VSR states how two things stand."""
    related = rf"(?:{'|'.join(RELATIONS)}) the "
    checked = 0
    for number in range(400):
        rng = random.Random(number)
        for text, _ in looks_of(rng, draw_scene(rng, 2, 6, SIGNS)):
            if re.search(related, text) and re.fullmatch(rf"The thing {related}\w+ is", text) is None:
                assert re.search(rf"Is the \w+ {related}\w+\?", text), text
                checked += 1
            assert "true or false" not in text.lower()
    assert checked > 100
