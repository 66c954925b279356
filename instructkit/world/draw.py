"""Scenes and films in pixels: Pillow for pictures, PyAV with one encoder thread for films, the same bytes each time."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from instructkit.world.scene import Film, Scene, Thing

SIDE = 112
"""Side of a picture and of a film's frames in pixels."""

CELL_WIDTH, CELL_HEIGHT = SIDE // 3, 30
GRID_TOP = 1
SIGN_TOP, SIGN_HEIGHT = 92, 19
FRAMES_A_SECOND = 4
RADIUS = {"small": 8, "big": 14}
RGB = {
    "red": (214, 40, 40),
    "green": (30, 150, 60),
    "blue": (40, 80, 220),
    "yellow": (250, 220, 40),
    "orange": (250, 140, 20),
    "purple": (140, 50, 170),
    "black": (25, 25, 25),
    "white": (252, 252, 252),
}
GROUND = {"grass": (176, 214, 158), "sand": (224, 206, 170), "sea": (150, 200, 226), "night": (84, 88, 122)}
EDGE = (90, 90, 90)

Point = tuple[float, float]
OUTLINES: dict[str, list[list[Point]]] = {
    # Polygons in units of the radius around the centre; kinds without one are made of ellipses, see `_mask`.
    "fish": [[(0.3, 0), (1, -0.55), (1, 0.55)]],
    "bird": [
        [(-0.7, 0), (0.9, 0.35), (-0.3, 0.6)],
        [(-0.2, 0.2), (0.3, -0.9), (0.5, 0.25)],
        [(-1, 0), (-0.6, -0.2), (-0.6, 0.2)],
    ],
    "pear": [[(0, -1), (0.5, 0.3), (-0.5, 0.3)]],
    "boat": [[(-1, 0.3), (1, 0.3), (0.6, 0.9), (-0.6, 0.9)], [(0, -1), (0.75, 0.15), (0, 0.15)]],
    "car": [[(-1, -0.1), (1, -0.1), (1, 0.6), (-1, 0.6)], [(-0.55, -0.1), (-0.4, -0.75), (0.4, -0.75), (0.55, -0.1)]],
    "plane": [
        [(-1, -0.15), (1, 0), (-1, 0.15)],
        [(0.2, 0), (-0.4, -1), (-0.6, -1), (-0.3, 0)],
        [(0.2, 0), (-0.4, 1), (-0.6, 1), (-0.3, 0)],
    ],
    "kite": [[(0, -1), (0.65, -0.15), (0, 0.75), (-0.65, -0.15)], [(0, 0.6), (0.25, 1), (-0.25, 1)]],
    "block": [[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]],
    "cat": [[(-0.85, -1), (-0.1, -0.6), (-0.8, 0)], [(0.85, -1), (0.1, -0.6), (0.8, 0)]],
}
ELLIPSES: dict[str, list[tuple[float, float, float, float]]] = {
    "fish": [(-1, -0.55, 0.5, 0.55)],
    "bird": [(-0.9, -0.25, -0.3, 0.35)],
    "apple": [(-0.9, -0.7, 0.9, 1)],
    "pear": [(-0.75, -0.1, 0.75, 1)],
    "cat": [(-0.85, -0.7, 0.85, 0.9)],
    "ball": [(-0.95, -0.95, 0.95, 0.95)],
    "car": [(-0.75, 0.35, -0.2, 0.9), (0.2, 0.35, 0.75, 0.9)],
}


def draw_picture(scene: Scene, moved: dict[Thing, tuple[float, float]] | None = None) -> Image.Image:
    """A picture of `SIDE` pixels squared.

    Args:
        scene: what to draw.
        moved: things that are away from their cell, by how many cells to the right and down.
    """
    image = Image.new("RGB", (SIDE, SIDE), GROUND[scene.background])
    for thing in scene.things:
        right, down = (moved or {}).get(thing, (0.0, 0.0))
        x = CELL_WIDTH * (thing.cell % 3 + 0.5 + right)
        y = GRID_TOP + CELL_HEIGHT * (thing.cell // 3 + 0.5 + down)
        _paste(image, thing, round(x), round(y))
    for place, text in enumerate(scene.signs):
        if " " in text:
            _print_sentence(image, text)
        else:
            _print(image, text, place, len(scene.signs))
    return image.filter(ImageFilter.GaussianBlur(14)) if scene.spoiled else image


def draw_strip(film: Film) -> Image.Image:
    """Beginning and end of a film side by side, as a picture story has them."""
    strip = Image.new("RGB", (2 * SIDE, SIDE))
    strip.paste(draw_picture(film.first), (0, 0))
    strip.paste(draw_picture(film.last), (SIDE, 0))
    ImageDraw.Draw(strip).line((SIDE, 0, SIDE, SIDE), (0, 0, 0), 2)
    return strip


def draw_frames(film: Film) -> list[Image.Image]:
    """All frames: a moving thing glides, everything else changes in the middle."""
    count = film.seconds * FRAMES_A_SECOND
    if film.action != "moves":
        first, last = draw_picture(film.first), draw_picture(film.last)
        return [first if place < count / 2 else last for place in range(count)]
    start, end = film.thing.cell, film.last.of(film.thing.kind).cell
    steps = [place / (count - 1) for place in range(count)]
    return [
        draw_picture(film.first, {film.thing: ((end % 3 - start % 3) * step, (end // 3 - start // 3) * step)})
        for step in steps
    ]


def save_picture(path: Path, image: Image.Image) -> None:
    """Write a picture as JPEG, PNG or GIF, as its name has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90)  # only JPEG has a quality


def save_film(path: Path, frames: list[Image.Image]) -> None:
    """Write a film in MPEG-4, in the container that its name has; one encoder thread, so the same bytes each time."""
    import av  # here, as pictures need none of it

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"fflags": "+bitexact", "flush_packets": "0"}) as container:
        stream = container.add_stream("mpeg4", rate=FRAMES_A_SECOND)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 400_000
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


@lru_cache(maxsize=4096)
def _stamp(kind: str, colour: str, size: str, texture: str) -> tuple[Image.Image, Image.Image]:
    """A thing's pixels and its mask."""
    mask = _mask(kind, RADIUS[size])
    width = mask.width
    body = Image.fromarray(_pattern(RGB[colour], texture, width))
    # Edge: what growing the mask by a pixel adds.
    grown = mask.filter(ImageFilter.MaxFilter(3))
    stamp = Image.new("RGB", (width, width), EDGE)
    stamp.paste(body, (0, 0), mask)
    if kind in ("apple", "pear"):
        pen, middle = ImageDraw.Draw(stamp), width // 2
        pen.line((middle, 1, middle, width // 4), EDGE, 2)
        ImageDraw.Draw(grown).line((middle, 1, middle, width // 4), 255, 2)
    if kind in ("cat", "fish"):
        pen, radius = ImageDraw.Draw(stamp), RADIUS[size]
        for x in (-0.35, 0.35) if kind == "cat" else (-0.55,):
            centre = width / 2 + x * radius, width / 2 - 0.1 * radius
            spot = max(1.0, 0.14 * radius)
            box = (centre[0] - spot, centre[1] - spot, centre[0] + spot, centre[1] + spot)
            pen.ellipse(box, (250, 250, 250) if colour == "black" else (10, 10, 10))
    return stamp, grown


def _mask(kind: str, radius: int) -> Image.Image:
    width = 2 * radius + 5
    mask = Image.new("L", (width, width))
    pen, middle = ImageDraw.Draw(mask), width / 2
    for polygon in OUTLINES.get(kind, []):
        pen.polygon([(middle + x * radius, middle + y * radius) for x, y in polygon], 255)
    for ellipse in ELLIPSES.get(kind, []):
        pen.ellipse([middle + value * radius for value in ellipse], 255)
    if kind == "banana":
        pen.ellipse([middle + value * radius for value in (-1, -1, 1, 0.8)], 255)
        pen.ellipse([middle + value * radius for value in (-0.95, -1.5, 0.95, 0.15)], 0)
    return mask


def _pattern(colour: tuple[int, int, int], texture: str, width: int) -> np.ndarray:
    """The colour, with the texture in a lighter or, on light colours, darker tone: uint8 [width, width, 3]."""
    base = np.array(colour, np.float32)
    tone = base * 0.45 if base.mean() > 150 else base + (255 - base) * 0.6
    y, x = np.mgrid[:width, :width]
    marks = {
        "plain": np.zeros((width, width), bool),
        "striped": (y % 6) < 2,
        "dotted": ((y % 6) < 3) & ((x % 6) < 3),
        "checked": ((y // 4) + (x // 4)) % 2 == 0,
    }[texture]
    return np.where(marks[..., None], tone, base).astype(np.uint8)


def _paste(image: Image.Image, thing: Thing, x: int, y: int) -> None:
    stamp, mask = _stamp(thing.kind, thing.colour, thing.size, thing.texture)
    image.paste(stamp, (x - stamp.width // 2, y - stamp.height // 2), mask)


@lru_cache(maxsize=2)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _print(image: Image.Image, text: str, place: int, count: int) -> None:
    """Print a sign: dark letters on white, at the bottom, the first on the left."""
    pen = ImageDraw.Draw(image)
    width = SIDE // max(count, 2)
    left = place * width if count > 1 else (SIDE - width) // 2
    pen.rectangle((left + 1, SIGN_TOP, left + width - 2, SIGN_TOP + SIGN_HEIGHT), (255, 255, 255), (60, 60, 60))
    pen.text((left + width / 2, SIGN_TOP + SIGN_HEIGHT / 2), text, (10, 10, 10), _font(14), anchor="mm")


def _print_sentence(image: Image.Image, text: str) -> None:
    """Print a sentence over the whole width, in two lines of small letters."""
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, SIGN_TOP - 2, SIDE, SIDE), (255, 255, 255))
    words = text.split()
    half = (len(words) + 1) // 2
    for row, part in enumerate((words[:half], words[half:])):
        pen.text((SIDE / 2, SIGN_TOP + 3 + 10 * row), " ".join(part), (10, 10, 10), _font(10), anchor="mm")
