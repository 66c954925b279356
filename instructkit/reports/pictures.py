"""Small pictures that stand in the page itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from instructkit.data.media import VIDEO_SUFFIXES, load_frames, load_image

_SIDE = 320
_QUALITY = 80
_PALE = 30
"""Of 255: what stays of the colours where nothing looks."""


def data_uri(paths: Sequence[Path], frames: int, clip: tuple[float | None, float | None] = (None, None)) -> str:
    """The pictures of an example, or the frames that the model saw of its video, as one small JPEG.

    Raises:
        UserError: a file is missing or broken.
    """
    images: list[Image.Image] = []
    for path in paths:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            images += load_frames(path, frames, *clip)
        else:
            images.append(load_image(path))
    columns = 1 if len(images) == 1 else 2
    side = _SIDE // columns
    small = [_fitted(image, side) for image in images]
    width = max(image.width for image in small)
    height = max(image.height for image in small)
    sheet = Image.new("RGB", (columns * width, -(-len(small) // columns) * height), "white")
    for index, image in enumerate(small):
        left, top = index % columns * width, index // columns * height
        sheet.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
    return _uri(sheet)


def attended_uri(path: Path, shares: Sequence[Sequence[float]]) -> str:
    """A picture of which what has little attention is pale, as a small JPEG.

    Args:
        path: of the picture.
        shares: of attention, by row and column of patches that cover the picture.

    Raises:
        UserError: the file is missing or broken.
    """
    image = _fitted(load_image(path), _SIDE)
    found = np.array(shares, dtype=np.float32)
    spread = found.max() - found.min()
    strength = (found - found.min()) / spread if spread else np.ones_like(found)
    mask = Image.fromarray(np.uint8(_PALE + (255 - _PALE) * strength)).resize(image.size, Image.Resampling.BILINEAR)
    return _uri(Image.composite(image, Image.new("RGB", image.size, "white"), mask))


def _uri(image: Image.Image) -> str:
    out = BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """At most `side` pixels wide and high; tiny pictures are enlarged in whole steps so that one sees them."""
    longest = max(image.size)
    if longest > side:
        scale = side / longest
        return image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
        )
    steps = side // longest
    return image.resize((image.width * steps, image.height * steps), Image.Resampling.NEAREST)
