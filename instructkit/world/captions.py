"""Captions and descriptions of scenes and films."""

from __future__ import annotations

from instructkit.world.facts import salient
from instructkit.world.scene import OPPOSITE, RELATIONS, Film, Scene, Thing, article_of

GROUND = {"grass": "on the grass", "sand": "on the sand", "sea": "at sea", "night": "at night"}

_FRAMES = (
    "{}.",
    "There is {}.",
    "A picture of {}.",
    "You can see {}.",
    "{} in a picture",
    "This picture shows {}.",
    "Here is {}.",
    "In the photo is {}.",
    "Someone drew {}.",
    "Look at {}.",
)
ROTATE = len(_FRAMES)
"""Number of wordings that a caption comes in."""


def short(thing: Thing, sized: bool = False) -> str:
    """A thing as captions mention it: "a big red ball" or "a red ball"."""
    words = f"{thing.size} {thing.colour}" if sized else thing.colour
    return f"{article_of(words)} {words} {thing.kind}"


def full(thing: Thing) -> str:
    """A thing with all that is to be seen of it but its place: "a big red striped ball"."""
    words = f"{thing.size} {thing.colour} {thing.texture} {thing.kind}"
    return f"{article_of(words)} {words}"


def caption(scene: Scene, wording: int = 0, size: bool = True) -> str:
    """A caption: the salient things with kind and colour, the first with its size.

    Args:
        scene: what is told of.
        wording: which of `ROTATE` wordings.
        size: whether the size is told.
    """
    things = [short(thing, sized=size and n == 0) for n, thing in enumerate(salient(scene))]
    return _frame(listed(things), wording)


def full_caption(scene: Scene, wording: int = 0) -> str:
    """A caption that tells kind and colour of every thing, cell by cell, and where it is."""
    things = listed([short(thing) for thing in sorted(scene.things, key=lambda thing: thing.cell)])
    return _frame(f"{things} {GROUND[scene.background]}", wording)


def reading_caption(scene: Scene, wording: int = 0) -> str:
    """A caption that mentions what is printed in the picture."""
    signs = listed([f"the {'number' if sign.isdigit() else 'word'} {sign}" for sign in scene.signs])
    things = listed([short(thing) for thing in salient(scene)])
    return _frame(f"{things} above {signs}", wording)


def relation_caption(scene: Scene, wording: int = 0) -> str:
    """A caption that tells how the two things stand to each other that are mentioned first, and where it is."""
    first, second, *_ = [*salient(scene), *(thing for thing in scene.things if thing not in salient(scene))]
    relation = next(name for name in RELATIONS if first.stands(name, second))
    if wording % 2:
        first, second, relation = second, first, OPPOSITE[relation]
    return _frame(f"{short(first)} {relation} {short(second)} {GROUND[scene.background]}", wording)


def describe(scene: Scene) -> str:
    """Everything about a scene in words, cell by cell."""
    if scene.spoiled:
        return "The picture is too blurred to see anything."
    things = "; ".join(f"{thing.place} {full(thing)}" for thing in sorted(scene.things, key=lambda thing: thing.cell))
    signs = describe_signs(scene.signs)
    return f"The picture was made {GROUND[scene.background]}: {things}.{signs and ' ' + signs}"


def describe_signs(signs: tuple[str, ...]) -> str:
    """What is printed, sign by sign."""
    return " ".join(f"The {where} sign says {sign.lower()}." for where, sign in _placed(signs))


def describe_story(film: Film) -> str:
    """Everything about how a film begins and ends, as two pictures side by side."""
    pictures = f"In the left picture: {describe(film.first)} In the right picture: {describe(film.last)}"
    return f"{pictures} {_change(film)}"


def describe_film(film: Film) -> str:
    """Everything about a film in words."""
    return f"The film begins. {describe(film.first)} {_change(film)}"


def listed(parts: list[str]) -> str:
    """Parts as a sentence lists them."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _change(film: Film) -> str:
    kind = film.thing.kind
    return {
        "appears": f"Then {full(film.thing)} appears in the {film.thing.place}.",
        "leaves": f"Then the {kind} leaves.",
        "turns": f"Then the {kind} turns {film.value}.",
        "moves": f"Then the {kind} moves {film.value}.",
    }[film.action]


def _placed(signs: tuple[str, ...]) -> list[tuple[str, str]]:
    return list(zip(("left", "right") if len(signs) > 1 else ("only",), signs, strict=False))


def _frame(text: str, wording: int) -> str:
    framed = _FRAMES[wording % ROTATE].format(text)
    return framed[0].upper() + framed[1:]
