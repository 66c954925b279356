"""Captions that the trials of CapFilt exchange are false of their picture, by what the captions' words say."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest

from instructkit.world.captions import ROTATE, full_caption
from instructkit.world.scene import COLOURS, KINDS, Scene, Thing, draw_scene
from tests.benchmarks.capfilt_world import exchange, is_true, scenes_of, web_pairs

MENTION = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(KINDS)})\b")
RED_BALL = Thing("ball", "red", "big", "plain", 4)
BLUE_CAT = Thing("cat", "blue", "small", "plain", 0)


def words_fit(text: str, scene: Scene) -> bool:
    """Whether each thing that a caption mentions is in the scene, and the ground is its own, by its words alone."""
    mentioned = MENTION.findall(text)
    assert mentioned
    there = {(thing.colour, thing.kind) for thing in scene.things}
    return scene.background in text and all(each in there for each in mentioned)


def test_exchanged_captions_are_false_and_the_others_true() -> None:
    scenes = scenes_of("exchanged", "test", 500)
    pairs = web_pairs(scenes, 0.4, seed=1)
    assert sum(pair.exchanged for pair in pairs) == 200
    assert len({pair.name for pair in pairs}) == 500
    assert [words_fit(pair.text, scene) for pair, scene in zip(pairs, scenes, strict=True)] == [
        not pair.exchanged for pair in pairs
    ]


def test_what_is_true_is_told_from_the_words_alike() -> None:
    """On scenes of one or two things of few kinds, where many captions fit several pictures."""
    rng = random.Random(2)
    scenes = [
        replace(
            scene,
            background="sea",
            things=tuple(
                replace(thing, kind=kind, colour=rng.choice(COLOURS[:2]))
                for thing, kind in zip(scene.things, KINDS, strict=False)
            ),
        )
        for scene in (draw_scene(rng, 1, 3) for _ in range(60))
    ]
    fits = [(is_true(teller, seen), teller, seen) for teller in scenes for seen in scenes if teller is not seen]
    assert 50 < sum(fit for fit, *_ in fits) < len(fits) / 2
    for fit, teller, seen in fits:
        assert fit == words_fit(full_caption(teller, rng.randrange(ROTATE)), seen)


def test_a_caption_of_another_picture_that_is_true_here_does_not_count() -> None:
    ball, both = Scene((RED_BALL,), "sea"), Scene((RED_BALL, BLUE_CAT), "sea")
    assert is_true(ball, both)
    assert not is_true(both, ball), "there is no cat"
    assert not is_true(Scene((replace(RED_BALL, colour="blue"),), "sea"), both)
    assert not is_true(replace(ball, background="grass"), both)
    with pytest.raises(ValueError, match="false of it"):
        exchange([ball, both], 1.0, seed=0)
