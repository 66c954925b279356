"""The linear probe of an image encoder: it reads what features tell plainly, and guesses where they tell nothing."""

from __future__ import annotations

import torch

from instructkit.world.scene import COLOURS, KINDS, NUMBERS, WORDS
from tests.benchmarks.probe import CELLS, SIGNS, probes_of, right, scenes_of

SIDE, WIDTH = 7, 150


def plain_maps(scenes):
    """Feature maps in which the middle patch of a cell or a sign has one feature for each thing that is true there."""
    maps = torch.zeros(len(scenes), SIDE, SIDE, WIDTH)
    for number, scene in enumerate(scenes):
        for thing in scene.things:
            patch = maps[number, int(CELLS[thing.cell].row * SIDE), int(CELLS[thing.cell].column * SIDE)]
            patch[[list(KINDS).index(thing.kind), 20 + COLOURS.index(thing.colour)]] = 1
        for place, sign in zip(SIGNS, scene.signs, strict=False):
            patch = maps[number, int(place.row * SIDE), int(place.column * SIDE)]
            patch[30 + (NUMBERS.index(sign) if sign.isdigit() else 90 + WORDS.index(sign) % 30)] = 1
    return maps


def test_what_features_tell_plainly_is_read_and_what_they_do_not_tell_is_guessed() -> None:
    seen, asked = (
        probes_of(scenes, plain_maps(scenes)) for scenes in (scenes_of("train", 800), scenes_of("test", 200))
    )
    assert set(seen) == {"background", "place", "kind", "colour", "size", "texture", "word", "figure"}
    found = {fact: right(seen[fact], asked[fact], 20) for fact in ("place", "kind", "colour", "size", "texture")}
    assert min(found[fact] for fact in ("place", "kind", "colour")) > 98, found
    assert 40 < found["size"] < 60, found
    assert 18 < found["texture"] < 32, found


def test_each_question_has_the_answer_of_its_scene() -> None:
    scenes = scenes_of("train", 80)
    probes = probes_of(scenes, plain_maps(scenes))
    assert sum(probes["place"].wanted) == len(probes["kind"].wanted) == sum(len(scene.things) for scene in scenes)
    assert len(probes["word"].wanted) == len(probes["figure"].wanted) == sum(bool(scene.signs) for scene in scenes)
    for fact, first in (("kind", 0), ("colour", 20)):
        middle = probes[fact].rows.unflatten(1, (9, WIDTH))[:, 4, first : first + 20 - 8 * (fact == "colour")]
        assert torch.equal(middle.argmax(1), probes[fact].wanted)
