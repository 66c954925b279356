"""What everybody knows, in sentences: what kinds of things are, and which remarks are unkind."""

from __future__ import annotations

from instructkit.world.remarks import PRINTED, TOLD, Remark
from instructkit.world.scene import KINDS, article_of

HOMES = {"land": "on land", "water": "in the water", "sky": "in the sky", "tree": "on a tree"}
RIPE = {"apple": "red", "banana": "yellow", "pear": "green"}


def knowledge(fact: str) -> list[str]:
    """The sentences about a fact."""
    sentences = []
    for kind, facts in KINDS.items():
        one, many = f"{article_of(kind)} {kind}".capitalize(), f"{kind if kind == 'fish' else f'{kind}s'}".capitalize()
        sentences += {
            "shape": [f"The outline of {one.lower()} is {facts.shape}.", f"{many} have a {facts.shape} shape."],
            "category": [f"{one} is a kind of {facts.category}.", f"{many} belong to the group {facts.category}."],
            "home": [
                f"You find {one.lower()} {HOMES[facts.home]}.",
                f"{many} belong {HOMES[facts.home]}; their place is called {facts.home}.",
            ],
            "colour": [f"{many} are {RIPE[kind]}."] if kind in RIPE else [],
        }.get(fact, [])
    for remark in (*PRINTED, *TOLD):
        if remark.fact == fact:
            unkind, harmless = (_shown(remark, shown) for shown in (remark.unkind, remark.harmless))
            sentences += [
                f'To say "{remark.text}" and show {unkind} is unkind, with {harmless} it is harmless.',
                f'"{remark.text[0].upper()}{remark.text[1:]}" is harmless beside {harmless} and hurts beside {unkind}.',
            ]
    return sentences


def _shown(remark: Remark, shown: str) -> str:
    if remark.fact == "kind":
        return f"{article_of(shown)} {shown}"
    return f"something in the {shown}" if remark.fact == "place" else f"something {shown}"
