"""Photos that a program hands over: paths, or pictures in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from instructkit.data.media import as_rgb, load_image
from instructkit.errors import UserError

Photo = str | os.PathLike[str] | Image.Image | bytes | np.ndarray
"""A path of a picture or video, or a picture in memory: Pillow's, a file's bytes, or uint8 `[height, width, 3]`."""
Photos = Photo | Sequence[Photo]
"""What one question is about: a photo, or several that are shown together."""


def photo_path(photo: Any, scratch: Path, what: str) -> Path:
    """Where a photo lies; one in memory is written down without loss.

    Args:
        photo: a `Photo`.
        scratch: folder for those that are in memory.
        what: names it in messages.

    Raises:
        UserError: it is no photo, or is broken.
    """
    if isinstance(photo, str | os.PathLike):
        return Path(photo)
    place = scratch / f"{len(list(scratch.iterdir()))}.bmp"
    if isinstance(photo, bytes | bytearray):
        place.write_bytes(photo)
        try:
            load_image(place)
        except UserError as error:
            raise UserError(f"{what}: {str(error).removeprefix(f'{place}: ')}") from error
        return place
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim not in (2, 3) or (photo.ndim == 3 and photo.shape[2] not in (3, 4)):
            raise UserError(
                f"{what}: an array of {photo.dtype} {list(photo.shape)}; a picture is uint8 of [height, width, 3]"
            )
        photo = Image.fromarray(photo)
    if not isinstance(photo, Image.Image):
        raise UserError(
            f"{what}: a {type(photo).__name__}; a photo is a path, a PIL image, the bytes of a file or a uint8 array"
        )
    try:
        as_rgb(photo).save(place)
    except (UserError, OSError, ValueError) as error:  # a lazy image whose file is broken or closed
        raise UserError(f"{what}: {error}") from error
    return place
