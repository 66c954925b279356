"""Scenes and films: what is in a picture, drawn by seed and number, so that every fact of it is known.

A scene holds one to six things of different kinds in the nine cells of a grid, a background and printed signs. The
digest of its facts decides whether it belongs to the tests or to training, so no scene is ever on both sides.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar


@dataclass(frozen=True)
class Kind:
    """What everybody knows about a kind of thing."""

    shape: str
    category: str
    home: str


KINDS = {
    "cat": Kind("round", "animal", "land"),
    "fish": Kind("long", "animal", "water"),
    "bird": Kind("pointed", "animal", "sky"),
    "apple": Kind("round", "fruit", "tree"),
    "banana": Kind("long", "fruit", "tree"),
    "pear": Kind("pointed", "fruit", "tree"),
    "boat": Kind("long", "vehicle", "water"),
    "car": Kind("square", "vehicle", "land"),
    "plane": Kind("pointed", "vehicle", "sky"),
    "ball": Kind("round", "toy", "land"),
    "kite": Kind("pointed", "toy", "sky"),
    "block": Kind("square", "toy", "land"),
}
SHAPES = ("round", "long", "pointed", "square")
CATEGORIES = ("animal", "fruit", "vehicle", "toy")
HOMES = ("land", "water", "sky", "tree")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "black", "white")
SIZES = ("small", "big")
TEXTURES = ("plain", "striped", "dotted", "checked")
BACKGROUNDS = ("grass", "sand", "sea", "night")
PLACES = tuple(
    " ".join(dict.fromkeys((row, column)))
    for row in ("top", "middle", "bottom")
    for column in ("left", "middle", "right")
)
"""Names of the nine cells, row by row; the one in the middle is called so once."""

_WORDS = (
    "BREAD BRUSH CANDY CLOUD DREAM EAGLE FIELD FLAME GHOST GRAPE HONEY HOTEL JUICE LEMON LIGHT MAGIC MAPLE MARCH"
    " METAL MONEY MOUSE MUSIC NORTH OCEAN OLIVE PAPER PARTY PIANO PLANT QUEEN RIVER ROBOT SHEEP SMILE SOUTH STONE"
    " STORM SUGAR TIGER TOAST TRAIN WATER"
)
_NAMES = "ADAMS BAKER CLARK DAVIS EVANS FLYNN GREEN HAYES IRWIN JONES KELLY LEWIS MASON NOLAN OWENS PRICE"
WORDS = tuple(_WORDS.split())
NAMES = tuple(_NAMES.split())
NUMBERS = tuple(str(number) for number in range(10, 100))
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
DIRECTIONS = ("left", "right", "up", "down")
UNSEEN = {kind: COLOURS[3 * place % len(COLOURS)] for place, kind in enumerate(KINDS)}
"""One colour of each kind that only NoCaps' pictures show."""

Side = Literal["train", "test"]


@dataclass(frozen=True)
class Thing:
    """One thing; `cell` counts the grid's cells row by row from the top left."""

    kind: str
    colour: str
    size: str
    texture: str
    cell: int

    @property
    def place(self) -> str:
        """Name of its cell."""
        return PLACES[self.cell]

    @property
    def facts(self) -> Kind:
        """What everybody knows about its kind."""
        return KINDS[self.kind]

    def having(self, fact: str, value: str) -> Thing:
        """The same thing with another colour, size or texture."""
        changes: dict[str, Any] = {fact: value}
        return replace(self, **changes)

    def stands(self, relation: str, other: Thing) -> bool:
        """Whether it stands in one of `RELATIONS` to another thing; things of one column are beside neither side."""
        rows, columns = self.cell // 3 - other.cell // 3, self.cell % 3 - other.cell % 3
        return {"left of": columns < 0, "right of": columns > 0, "above": rows < 0, "below": rows > 0}[relation]


@dataclass(frozen=True)
class Scene:
    """One picture: its things, the background, up to two printed signs from left to right.

    `spoiled` pictures are so blurred that nothing can be told.
    """

    things: tuple[Thing, ...]
    background: str
    signs: tuple[str, ...] = ()
    spoiled: bool = False

    def facts(self) -> list[str]:
        """All its facts, sorted, one line each."""
        lines = [f"{t.size} {t.texture} {t.colour} {t.kind} {t.place}" for t in self.things]
        return sorted([*lines, f"background {self.background}", f"signs {' '.join(self.signs)}", f"{self.spoiled}"])

    @property
    def digest(self) -> str:
        """Digest of the set of facts: the same for two scenes exactly if all their facts are."""
        return _digest(self.facts())

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of all that is shown."""
        return (self.digest,)

    def of(self, kind: str) -> Thing:
        """The thing of a kind that the scene has."""
        return next(thing for thing in self.things if thing.kind == kind)

    def with_thing(self, old: Thing, new: Thing | None) -> Scene:
        """The scene with one thing replaced or taken out."""
        kept = [new if thing == old else thing for thing in self.things]
        return replace(self, things=tuple(thing for thing in kept if thing is not None))


@dataclass(frozen=True)
class Film:
    """Two to four seconds in which one thing appears, leaves, turns another colour or moves.

    Attributes:
        first: how it begins.
        last: how it ends.
        action: `appears`, `leaves`, `turns` or `moves`.
        thing: the thing in question, as it is when it is first seen.
        value: the new colour, or the direction.
        seconds: length.
    """

    first: Scene
    last: Scene
    action: str
    thing: Thing
    value: str
    seconds: int

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of the two scenes that are shown."""
        return self.first.digest, self.last.digest


ACTIONS = ("appears", "leaves", "turns", "moves")


class Digested(Protocol):
    """Anything that shows one or more scenes."""

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of their facts, in hexadecimal."""
        ...


T = TypeVar("T", bound=Digested)


def side(digest: str) -> Side:
    """Which side a digest belongs to: a quarter of all scenes is for tests."""
    return "test" if int(digest[:8], 16) % 4 == 0 else "train"


def draw(seed: int, stream: str, number: int, wanted: Side, make: Callable[[random.Random], T]) -> T:
    """What `make` draws from seed, stream and number, the first of which all scenes belong to the wanted side."""
    attempt = 0
    while True:
        found = make(random.Random(f"{seed}/{stream}/{number}/{attempt}"))
        if all(side(digest) == wanted for digest in found.digests):
            return found
        attempt += 1


def article_of(words: str) -> str:
    """The indefinite article of words."""
    return "an" if words[0] in "aeiou" else "a"


def colours_of(kind: str, unseen: bool = False) -> list[str]:
    """The colours that a kind comes in; with `unseen` the one that it has in NoCaps alone."""
    return [UNSEEN[kind]] if unseen else [colour for colour in COLOURS if colour != UNSEEN[kind]]


def draw_thing(rng: random.Random, kind: str, cell: int, unseen: bool = False) -> Thing:
    """A thing of a kind, everything else of it uniform."""
    return Thing(kind, rng.choice(colours_of(kind, unseen)), rng.choice(SIZES), rng.choice(TEXTURES), cell)


def draw_scene(
    rng: random.Random, least: int = 1, most: int = 6, signs: tuple[str, ...] = (), unseen: int = 0
) -> Scene:
    """A scene, everything of it uniform.

    Args:
        rng: what it is drawn from.
        least: fewest things.
        most: most things.
        signs: what is printed on it.
        unseen: how many of the things, at most, have the colour that training never shows them in.
    """
    count = rng.randint(least, most)
    kinds, cells = rng.sample(list(KINDS), count), rng.sample(range(9), count)
    things = [draw_thing(rng, kind, cell, n < unseen) for n, (kind, cell) in enumerate(zip(kinds, cells, strict=True))]
    return Scene(tuple(things), rng.choice(BACKGROUNDS), signs)


def draw_signed_scene(rng: random.Random, least: int, most: int, always: bool = False) -> Scene:
    """A scene, half the time, or always, with a word and a number printed on it."""
    signs = (rng.choice(WORDS), rng.choice(NUMBERS))
    printed = always or rng.randrange(2)
    return draw_scene(rng, least, most, tuple(rng.sample(signs, 2)) if printed else ())


def draw_film(rng: random.Random, action: str | None = None) -> Film:
    """A film of two to four things: action and kind, colour or direction in question uniform."""
    action = action or rng.choice(ACTIONS)
    answers = {"turns": COLOURS, "moves": DIRECTIONS}.get(action, tuple(KINDS))
    return film_of(rng, action, rng.choice(answers))


def film_of(rng: random.Random, action: str, answer: str) -> Film:
    """A film in which a thing of the kind `answer` appears or leaves, one turns this colour, or moves this way."""
    seconds = rng.randint(2, 4)
    if action in ("appears", "leaves"):
        scene, thing = with_fact(rng, "kind", answer, 2, 4)
    elif action == "turns":
        scene, thing = with_fact(rng, "colour", answer, 2, 4)
    else:
        scene = draw_scene(rng, 2, 4)
        thing = rng.choice(scene.things)
    if action == "appears":
        return Film(scene.with_thing(thing, None), scene, action, thing, "", seconds)
    if action == "leaves":
        return Film(scene, scene.with_thing(thing, None), action, thing, "", seconds)
    if action == "turns":
        before = replace(thing, colour=rng.choice([other for other in colours_of(thing.kind) if other != answer]))
        return Film(scene.with_thing(thing, before), scene, action, before, answer, seconds)
    start, end = rng.choice(_moves(answer))
    others = tuple(other for other in scene.things if other != thing and other.cell not in (start, end))
    first = replace(scene, things=(*others, replace(thing, cell=start)))
    last = replace(scene, things=(*others, replace(thing, cell=end)))
    return Film(first, last, action, replace(thing, cell=start), answer, seconds)


def with_fact(rng: random.Random, fact: str, answer: str, least: int = 2, most: int = 5) -> tuple[Scene, Thing]:
    """A scene and one of its things of which a fact is true, everything else of it uniform.

    Args:
        rng: what it is drawn from.
        fact: `kind`, `colour`, `size`, `texture`, `place` or what follows from the kind.
        answer: what is to be true.
        least: fewest things.
        most: most things.
    """
    while True:
        scene = draw_scene(rng, least, most)
        old = rng.choice(scene.things)
        if fact == "place":
            new = replace(old, cell=PLACES.index(answer))
        elif fact in ("colour", "size", "texture"):
            new = old.having(fact, answer)
        else:
            kinds = [kind for kind, facts in KINDS.items() if answer in (kind, getattr(facts, fact, None))]
            new = replace(old, kind=rng.choice(kinds))
        others = [thing for thing in scene.things if thing != old]
        clash = any(new.kind == thing.kind or new.cell == thing.cell for thing in others)
        if not clash and new.colour in colours_of(new.kind):
            return scene.with_thing(old, new), new


def _moves(direction: str) -> list[tuple[int, int]]:
    """Pairs of cells at opposite edges, the second in the direction of the first."""
    return {
        "left": [(2, 0), (5, 3), (8, 6)],
        "right": [(0, 2), (3, 5), (6, 8)],
        "up": [(6, 0), (7, 1), (8, 2)],
        "down": [(0, 6), (1, 7), (2, 8)],
    }[direction]


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
