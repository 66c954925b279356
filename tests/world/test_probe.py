"""The linear probe of an image encoder: it reads what features tell plainly, and guesses where they tell nothing."""

from __future__ import annotations

import torch

from instructkit.world.scene import NUMBERS, WORDS
from tests.benchmarks.probe import NONE, right, scenes_of, tasks_of, train

FACTS = {"background", "place", "kind", "colour", "size", "texture", "word", "figure"}


def test_answers_are_those_of_the_scenes() -> None:
    scenes = scenes_of("train", 60)
    tasks = tasks_of(scenes)
    assert {task.fact for task in tasks} == FACTS
    for number, scene in enumerate(scenes):
        asked = [task for task in tasks if task.wanted[number] != NONE]
        assert sum(task.fact == "texture" for task in asked) == len(scene.things)
        signs = {task.fact: int(task.wanted[number]) for task in asked if task.fact in ("word", "figure")}
        said = {WORDS[signs["word"]], NUMBERS[signs["figure"]]} if signs else set()
        assert said == set(scene.signs)


def test_features_that_tell_everything_are_read_and_noise_is_not() -> None:
    seen, asked = tasks_of(scenes_of("train", 600)), tasks_of(scenes_of("test", 200))

    def told(tasks):
        wanted = [task.wanted.clamp(min=0) * (task.wanted != NONE) for task in tasks]
        return torch.cat([torch.eye(task.answers)[each] for each, task in zip(wanted, tasks, strict=True)], dim=1)

    found = right(train(30 * told(seen), seen, 60), 30 * told(asked), asked)
    assert min(found[fact] for fact in FACTS - {"word", "figure"}) > 99, found
    noise = right(train(torch.randn(600, 50), seen, 20), torch.randn(200, 50), asked)
    assert noise["kind"] < 20
    assert noise["texture"] < 35
