"""A contact sheet: twelve scenes and films with a question of each group of datasets."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from instructkit.files import writing
from instructkit.world.captions import caption, reading_caption
from instructkit.world.draw import SIDE, draw_picture, draw_strip
from instructkit.world.questions import Question, ask, ask_change, ask_relation, ask_sign, polite
from instructkit.world.releases.talked import judge, talk
from instructkit.world.remarks import PRINTED
from instructkit.world.scene import NUMBERS, WORDS, Film, draw, draw_scene

COLUMNS, ROWS = 4, 3
PANEL = (2 * SIDE + 16, 2 * SIDE + 74)


def _captioned(rng: random.Random) -> Question:
    scene = draw_scene(rng, 3, 6)
    return Question("A short image description.", caption(scene), "kind", (), True, scene)


def _read_aloud(rng: random.Random) -> Question:
    scene = draw_scene(rng, 1, 4, (rng.choice(WORDS), rng.choice(NUMBERS)))
    return Question("A caption that mentions the text.", reading_caption(scene), "word", (), True, scene)


def _talked(rng: random.Random) -> Question:
    return talk(rng).questions[0]


def _judged(rng: random.Random) -> Question:
    question = judge(rng, rng.choice(PRINTED))
    return Question(f'"{question.text}" Is it unkind?', question.answer, question.fact, (), False, question.scene)


GROUPS: dict[str, Callable[[random.Random], Question]] = {
    "captioning": _captioned,
    "captioning with reading": _read_aloud,
    "visual reasoning": lambda rng: ask(rng, "texture", "relation"),
    "statements": lambda rng: ask_relation(rng, "{} is {} {}."),
    "questions": lambda rng: ask(rng, "number"),
    "questions of the blind": lambda rng: polite(rng, ask(rng, "colour")),
    "questions of knowledge": lambda rng: ask(rng, "home"),
    "questions of reading": lambda rng: ask_sign(rng, "word"),
    "films": lambda rng: ask_change(rng, "moves"),
    "picture stories": lambda rng: ask_change(rng, "appears"),
    "dialogs": _talked,
    "memes": _judged,
}


def draw_sheet(seed: int) -> Image.Image:
    """The sheet, each picture at twice its size."""
    sheet = Image.new("RGB", (COLUMNS * PANEL[0], ROWS * PANEL[1]), (245, 245, 245))
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(14), ImageFont.load_default(12)
    for place, (group, make) in enumerate(GROUPS.items()):
        question = draw(seed, f"sheet/{group}", 0, "test", make)
        left, top = place % COLUMNS * PANEL[0] + 8, place // COLUMNS * PANEL[1] + 4
        pen.text((left, top), group, (120, 30, 30), font)
        image = draw_strip(question.scene) if isinstance(question.scene, Film) else draw_picture(question.scene)
        scale = 2 * SIDE // image.width
        image = image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)
        sheet.paste(image, (left, top + 18))
        lines = [*textwrap.wrap(question.text, 36), *textwrap.wrap(f"> {question.answer}", 36)]
        pen.multiline_text((left, top + 20 + image.height), "\n".join(lines[:4]), (0, 0, 0), small, spacing=1)
    return sheet


def write_sheet(path: Path, seed: int) -> None:
    """Write the sheet as PNG.

    Raises:
        UserError: the file cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(seed).save(path, "PNG")
