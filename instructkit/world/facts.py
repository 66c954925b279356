"""What can be asked about a scene, in which forms, by which dataset; and which facts a caption tells.

The rule of the world: every fact that a held-out dataset asks for is asked for in a held-in one, every form is in the
text that the LLM reads, and the pair of fact and form is in neither. So zero-shot is possible, and hard.
"""

from __future__ import annotations

from typing import NamedTuple

from instructkit.world.scene import (
    ACTIONS,
    CATEGORIES,
    COLOURS,
    DIRECTIONS,
    HOMES,
    KINDS,
    NUMBERS,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
    Scene,
    Thing,
)

VALUES: dict[str, tuple[str, ...]] = {
    "kind": tuple(KINDS),
    "colour": COLOURS,
    "size": SIZES,
    "texture": TEXTURES,
    "shape": SHAPES,
    "place": PLACES,
    "category": CATEGORIES,
    "home": HOMES,
    "relation": ("yes", "no"),
    "number": ("1", "2", "3", "4"),
    "word": WORDS,
    "figure": NUMBERS,
    "appears": tuple(KINDS),
    "leaves": tuple(KINDS),
    "turns": COLOURS,
    "moves": DIRECTIONS,
    "combination": (),
}
"""All facts, with the answers to them; a `combination` is a colour of a kind, told in a caption."""

SEEN = ("kind", "colour", "size", "texture", "place")
"""What is to be seen of a thing itself."""

KNOWN = ("shape", "category", "home")
"""What follows from its kind."""

SIGNED = ("word", "figure")
"""What is printed."""

VERIFIED = (*SEEN, "shape", "category")
"""What questions for yes or no in the LLM's text ask for."""


class Asking(NamedTuple):
    """A form and the facts that are asked for in it."""

    form: str
    facts: tuple[str, ...]


HELD_IN = {
    "coco_caption": Asking("caption", ("kind", "colour", "size")),
    "web_capfilt": Asking("caption", ("kind", "colour", "size")),
    "textcaps": Asking("caption", ("kind", "colour", "word", "figure")),
    "vqav2": Asking("open", (*SEEN, "shape", "relation", "number", *ACTIONS)),
    "okvqa": Asking("open", ("category", "home")),
    "aokvqa": Asking("options", ("category", "home")),
    "ocrvqa": Asking("open", ("word", "figure")),
    "llava_conversation": Asking("conversation", ("kind", "colour", "texture", "place")),
    "llava_detail": Asking("description", (*SEEN, "word", "figure")),
    "llava_reasoning": Asking("explanation", ("category", "home", *ACTIONS)),
}
HELD_OUT = {
    "nocaps": Asking("caption", ("combination",)),
    "flickr30k": Asking("caption", ("relation",)),
    "gqa": Asking("compositional", ("kind", "colour", "size", "texture")),
    "vsr": Asking("statement", ("relation",)),
    "iconqa": Asking("options", ("number", "shape", "texture")),
    "vizwiz": Asking("spoken", ("kind", "colour", "word")),
    "scienceqa": Asking("context", ("category", "home")),
    "textvqa": Asking("tokens", ("word", "figure")),
    "hatefulmemes": Asking("remark", ("kind", "colour", "size")),
    "visdial": Asking("dialog", ("kind", "colour")),
    "msvd_qa": Asking("film", ("appears", "leaves")),
    "msrvtt_qa": Asking("film", ("turns", "moves")),
    "ivqa": Asking("film", ACTIONS),
}
TEXT = (
    Asking("caption", ("kind", "colour", "size", *SIGNED)),
    Asking("question", (*SEEN, *KNOWN)),
    Asking("conversation", ("kind", "colour", "texture", "place")),
    Asking("explanation", ("category", "home")),
    Asking("sentence", (*SEEN, "number", *SIGNED)),
    Asking("open", (*SEEN, *KNOWN, "relation", "number", *SIGNED, *ACTIONS)),
    Asking("compositional", ("place", "shape", "category", "home")),
    Asking("statement", (*SEEN, "shape", "category")),
    Asking("options", ("kind", "colour", "size", "place", "category", "home")),
    Asking("spoken", ("size", "texture", "place", *KNOWN, "number", "figure")),
    Asking("context", (*SEEN, "shape", "number")),
    Asking("tokens", (*SEEN, *KNOWN, "number")),
    Asking("remark", ("texture", "place")),
    Asking("dialog", ("size", "texture", "place", "shape", "category", "number")),
    Asking("film", ("kind", "colour", "size", "texture", "place")),
    Asking("knowledge", (*SEEN, *KNOWN)),
    Asking("sheet", (*SEEN, *KNOWN, "relation", "number", *SIGNED, *ACTIONS)),
    Asking("lesson", (*SEEN, *KNOWN, "relation", "number", *SIGNED)),
)
"""Forms and facts of the text that the LLM is trained on.

Each form asks for several facts, as many as its benchmark leaves: an LLM that has met a form with few facts alone
answers with one of those, whatever it is asked.
"""

PARTS = {"combination": ("kind", "colour")}
"""Facts that are asked for through others."""


def table() -> str:
    """Facts x forms x sources: each form a row, each fact a column; `+` held-in, `o` held-out, `t` text."""
    askings = [
        *((asking, "+", name) for name, asking in HELD_IN.items()),
        *((asking, "t", "text") for asking in TEXT),
        *((asking, "o", name) for name, asking in HELD_OUT.items()),
    ]
    lines = [f"{'form':<14} " + " ".join(f"{fact[:7]:<7}" for fact in VALUES) + " sources"]
    for form in dict.fromkeys(asking.form for asking, _, _ in askings):
        own = [(asking, mark, name) for asking, mark, name in askings if asking.form == form]
        marks = [
            "".join(dict.fromkeys(mark for asking, mark, _ in own if fact in asking.facts)) or "." for fact in VALUES
        ]
        names = ", ".join(name for _, _, name in own)
        lines.append(f"{form:<14} " + " ".join(f"{mark:<7}" for mark in marks) + f" {names}")
    return "\n".join(lines)


def value(thing: Thing, fact: str) -> str:
    """What is true of a thing."""
    return str(getattr(thing.facts if fact in KNOWN else thing, fact))


def salient(scene: Scene) -> list[Thing]:
    """The half of the things (rounded up) that people mention: big ones first, then central ones."""
    ranked = sorted(scene.things, key=lambda thing: (thing.size != "big", _from_centre(thing), thing.cell))
    return ranked[: (len(ranked) + 1) // 2]


def told(scene: Scene) -> frozenset[tuple[str, str]]:
    """What captions of a scene tell, as (kind, fact): kind and colour of the salient things, of the first its size."""
    things = salient(scene)
    facts = {(thing.kind, fact) for thing in things for fact in ("kind", "colour")}
    return frozenset(facts | {(thing.kind, "size") for thing in things[:1]})


def count_facts(scene: Scene) -> int:
    """Number of facts that the drawing of a scene shows: five a thing, the background and each sign."""
    return len(SEEN) * len(scene.things) + 1 + len(scene.signs)


def _from_centre(thing: Thing) -> int:
    return abs(thing.cell // 3 - 1) + abs(thing.cell % 3 - 1)
