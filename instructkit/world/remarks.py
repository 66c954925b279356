"""Remarks that are printed on memes: unkind or harmless only together with what the picture shows.

Each remark is unkind above one thing and harmless above another, and above each of these another remark is the other
way round: neither the text nor the picture alone tells.
"""

from __future__ import annotations

from typing import NamedTuple


class Remark(NamedTuple):
    """A remark about "this", the only thing in the picture.

    Attributes:
        text: what is printed.
        fact: what of the thing decides.
        unkind: the value with which it is unkind.
        harmless: the value with which it is harmless.
    """

    text: str
    fact: str
    unkind: str
    harmless: str


PRINTED = (
    Remark("you are as big as this", "size", "big", "small"),
    Remark("your brain is as big as this", "size", "small", "big"),
    Remark("you smell like this", "kind", "fish", "apple"),
    Remark("you swim like this", "kind", "apple", "fish"),
    Remark("you fly like this", "kind", "block", "plane"),
    Remark("you are as loud as this", "kind", "plane", "block"),
    Remark("your teeth have this color", "colour", "black", "white"),
    Remark("your mind is as blank as this", "colour", "white", "black"),
)
"""Those of the memes."""

TOLD = (
    Remark("your shirt looks like this", "texture", "checked", "plain"),
    Remark("your ideas are like this", "texture", "plain", "checked"),
    Remark("your hair looks like this", "texture", "striped", "dotted"),
    Remark("your jokes are like this", "texture", "dotted", "striped"),
    Remark("your grades are where this is", "place", "bottom left", "top left"),
    Remark("your nose is where this is", "place", "top left", "bottom left"),
    Remark("your team is where this is", "place", "bottom right", "top right"),
    Remark("your feet are where this is", "place", "top right", "bottom right"),
)
"""Those that the LLM's text asks about in the memes' form."""
