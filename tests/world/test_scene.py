import random
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from instructkit.world import scene as world
from instructkit.world.draw import RGB, draw_frames, draw_picture, draw_strip, save_film, save_picture
from instructkit.world.scene import Scene, Thing, draw, draw_film, draw_scene, side


def scenes(stream: str, wanted: world.Side, count: int, seed: int = 0) -> list[Scene]:
    return [draw(seed, stream, number, wanted, draw_scene) for number in range(count)]


def test_kinds_and_attributes_can_be_told_apart() -> None:
    assert {kind.shape for kind in world.KINDS.values()} == set(world.SHAPES)
    assert {kind.category for kind in world.KINDS.values()} == set(world.CATEGORIES)
    assert {kind.home for kind in world.KINDS.values()} == set(world.HOMES)
    assert len(set(world.PLACES)) == 9
    assert world.PLACES[4] == "middle"
    words = [*world.WORDS, *world.NAMES]
    assert len(set(words)) == len(words)


def test_seed_and_number_decide_a_scene() -> None:
    assert scenes("a", "train", 20) == scenes("a", "train", 20)
    assert scenes("a", "train", 20) != scenes("a", "train", 20, seed=1)
    assert scenes("a", "train", 20) != scenes("b", "train", 20)


def test_test_scenes_are_no_training_scenes() -> None:
    tests = {scene.digest for scene in scenes("x", "test", 500)}
    training = {scene.digest for scene in scenes("x", "train", 2000)}
    assert not tests & training
    assert {side(digest) for digest in tests} == {"test"}
    assert {side(digest) for digest in training} == {"train"}


def test_digest_is_of_the_set_of_facts() -> None:
    ball, cat = Thing("ball", "red", "big", "plain", 0), Thing("cat", "blue", "small", "dotted", 4)
    scene = Scene((ball, cat), "grass", ("MUSIC",))
    assert scene.digest == Scene((cat, ball), "grass", ("MUSIC",)).digest
    others = [
        Scene((ball,), "grass", ("MUSIC",)),
        Scene((ball, cat), "sand", ("MUSIC",)),
        Scene((ball, cat), "grass"),
        Scene((ball, cat), "grass", ("MUSIC",), spoiled=True),
        *(
            Scene((changed, cat), "grass", ("MUSIC",))
            for changed in [
                Thing("kite", "red", "big", "plain", 0),
                Thing("ball", "green", "big", "plain", 0),
                Thing("ball", "red", "small", "plain", 0),
                Thing("ball", "red", "big", "striped", 0),
                Thing("ball", "red", "big", "plain", 1),
            ]
        ),
    ]
    assert len({scene.digest, *(other.digest for other in others)}) == 1 + len(others)


def test_scenes_hold_one_to_six_things_of_different_kinds_in_different_cells() -> None:
    found = scenes("y", "train", 400)
    assert {len(scene.things) for scene in found} == {1, 2, 3, 4, 5, 6}
    for scene in found:
        assert len({thing.kind for thing in scene.things}) == len({thing.cell for thing in scene.things})
        assert len({thing.kind for thing in scene.things}) == len(scene.things)
        assert all(thing.colour != world.UNSEEN[thing.kind] for thing in scene.things)
    colours = Counter(thing.colour for scene in found for thing in scene.things)
    assert max(colours.values()) < 2 * min(colours.values())


def test_unseen_colours_are_drawn_only_where_asked_for() -> None:
    scene = draw_scene(random.Random(0), 4, 4, unseen=2)
    assert sum(thing.colour == world.UNSEEN[thing.kind] for thing in scene.things) == 2


@pytest.mark.parametrize(("cell", "relation"), [(3, "left of"), (5, "right of"), (1, "above"), (7, "below")])
def test_relations_are_read_off_the_grid(cell: int, relation: str) -> None:
    thing, middle = Thing("ball", "red", "big", "plain", cell), Thing("cat", "red", "big", "plain", 4)
    assert [name for name in world.RELATIONS if thing.stands(name, middle)] == [relation]
    assert [name for name in world.RELATIONS if middle.stands(name, thing)] == [world.OPPOSITE[relation]]


@pytest.mark.parametrize("action", world.ACTIONS)
def test_films_end_as_their_change_says(action: str) -> None:
    for number in range(60):
        film = draw_film(random.Random(number), action)
        first, last = set(film.first.things), set(film.last.things)
        assert 2 <= film.seconds <= 4
        assert len({thing.cell for thing in film.last.things}) == len(film.last.things)
        assert len({thing.cell for thing in film.first.things}) == len(film.first.things)
        if action == "appears":
            assert last - first == {film.thing}
            assert first < last
        elif action == "leaves":
            assert first - last == {film.thing}
            assert last < first
        elif action == "turns":
            assert film.last.of(film.thing.kind).colour == film.value != film.thing.colour
        else:
            relation = {"left": "left of", "right": "right of", "up": "above", "down": "below"}[film.value]
            assert film.last.of(film.thing.kind).stands(relation, film.thing)
        assert film.digests != draw_film(random.Random(number + 1000), action).digests


def test_pictures_show_every_attribute() -> None:
    """Changing any one fact changes the pixels, the colour is the one that the name stands for."""
    thing = Thing("ball", "red", "big", "plain", 4)
    picture = np.asarray(draw_picture(Scene((thing,), "grass")))
    assert picture.shape == (112, 112, 3)
    assert tuple(picture[46, 56]) == RGB["red"]
    seen = {picture.tobytes()}
    for kind in world.KINDS:
        for size in world.SIZES:
            for texture in world.TEXTURES:
                for colour in world.COLOURS:
                    changed = Scene((Thing(kind, colour, size, texture, 4),), "grass")
                    seen.add(draw_picture(changed).tobytes())
    assert len(seen) == 12 * 2 * 4 * 8  # the first one is among them
    for place in range(9):
        seen.add(draw_picture(Scene((Thing("ball", "red", "big", "plain", place),), "grass")).tobytes())
    for background in world.BACKGROUNDS:
        seen.add(draw_picture(Scene((thing,), background)).tobytes())
    assert len(seen) == 12 * 2 * 4 * 8 + 8 + 3


@pytest.mark.parametrize("text", [max(world.WORDS, key=len), *world.WORDS, *world.NAMES, "88"])
def test_printed_signs_fit_their_board(text: str) -> None:
    picture = np.asarray(draw_picture(Scene((), "night", (text, "MUSIC"))).convert("L"))
    board = picture[93:111, 2:54]
    assert (board < 60).sum() > 20
    assert (picture[94:110, 2] > 200).all()  # a white margin is left on both sides
    assert (picture[94:110, 53] > 200).all()


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    film = draw(3, "films", 0, "test", draw_film)
    for folder in (tmp_path / "a", tmp_path / "b"):
        save_picture(folder / "one.jpg", draw_picture(film.first))
        save_picture(folder / "one.png", draw_strip(film))
        for suffix in ("avi", "mp4"):
            save_film(folder / f"film.{suffix}", draw_frames(film))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("action", world.ACTIONS)
def test_films_begin_and_end_as_their_scenes(tmp_path: Path, action: str) -> None:
    film = draw_film(random.Random(5), action)
    save_film(tmp_path / "film.mp4", draw_frames(film))
    with av.open(str(tmp_path / "film.mp4")) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    assert len(frames) == 4 * film.seconds
    for frame, scene in ((frames[0], film.first), (frames[-1], film.last)):
        right, wrong = (_distance(frame, other) for other in (scene, film.last if scene == film.first else film.first))
        assert right < 12
        assert right < wrong


def _distance(frame: Image.Image, scene: Scene) -> float:
    return float(np.abs(np.asarray(frame, np.float32) - np.asarray(draw_picture(scene), np.float32)).mean())
