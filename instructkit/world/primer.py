"""A primer for the LLM: short documents that say again what is printed, before it reads longer text about the world.

    Facts of one picture. The left sign says storm. The right sign says 25. word: storm; the right sign: 25; ...

To copy a word is learned all at once or not at all. In ordinary text, where a sign can say any of 132 things, an LLM of
1.2M parameters had not begun to after 3,000 steps of 16 documents. Half of these documents keep to ten words and ten
numbers: from random weights it copies them all after 150 steps, and the others after 200.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import msgspec

from instructkit.files import write_stream, writing
from instructkit.prompts.described import in_words
from instructkit.world.captions import describe_signs
from instructkit.world.lists import HEAD
from instructkit.world.scene import NUMBERS, WORDS, draw
from instructkit.world.text import Document

DOCUMENTS = 8000
COMMON = 10
"""Words, and numbers, that half of the documents keep to."""
TWICE = 2
"""How often a document says each thing."""


def write_primer(out: Path, count: int = DOCUMENTS, seed: int = 0) -> int:
    """Write so many documents, one a line, in the format of `world.text`; returns their number.

    Raises:
        UserError: the file cannot be written.
    """
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    documents = (
        draw(seed, "text/primer", number, "train", partial(primer, common=number % 2 == 0)) for number in range(count)
    )
    write_stream(out, (msgspec.json.encode(document).decode() + "\n" for document in documents))
    return count


def primer(rng: random.Random, common: bool) -> Document:
    """One of them.

    Args:
        rng: what it is drawn from.
        common: whether it keeps to the common words and numbers.
    """
    most = COMMON if common else None
    word, number = rng.choice(WORDS[:most]).lower(), rng.choice(NUMBERS[:most])
    signs = tuple(rng.sample((word, number), 2))
    said = [("the left sign", signs[0]), ("the right sign", signs[1]), ("word", word), ("number", number)] * TWICE
    rng.shuffle(said)
    lines = "; ".join(f"{what}: {sign}" for what, sign in said)
    return Document(in_words([HEAD, describe_signs(signs)], f"{lines}."), "primer", ["word", "figure"])
