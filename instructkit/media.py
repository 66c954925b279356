"""Pictures and video frames: decoded with Pillow and PyAV, turned into the pixels that the vision encoder reads.

A file that is missing or broken is an error that names it. Nothing is replaced by a blank picture.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps

from instructkit.errors import UserError

CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
VIDEO_SUFFIXES: Final = frozenset({".avi", ".mp4", ".webm", ".mkv", ".mov", ".m4v"})
MIN_SIDE: Final = 8
"""Pixels; smaller pictures are placeholders, such as the 1 x 1 that shops serve for a cover that is gone."""

_CROP_SCALE = (0.5, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)
_CROP_TRIES = 10


def load_image(path: Path) -> Image.Image:
    """Decode a picture: RGB, upright by its EXIF orientation, transparent parts white, the first frame of several.

    Raises:
        UserError: the file is missing, truncated or no picture; the message names it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such picture")
    try:
        with Image.open(path) as image:
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly every type on broken bytes
        reason = "not a picture" if isinstance(error, Image.UnidentifiedImageError) else f"broken picture ({error})"
        raise UserError(f"{path}: {reason}; fetch it again") from error


def load_frames(path: Path, count: int, start: float | None = None, end: float | None = None) -> list[Image.Image]:
    """Decode `count` frames of a video or of a clip of it, spread evenly.

    Rule: the clip's n frames in order of presentation are cut into `count` equal segments, and the middle frame of each
    is taken: frames floor((2i + 1) n / (2 count)), i = 0 .. count - 1. A clip of fewer frames repeats some. Frames are
    counted by their timestamps, never by the duration in the header, which is often wrong.

    Args:
        path: the video, in any container that FFmpeg reads.
        count: number of frames.
        start: seconds behind the first frame where the clip begins; None for the video's beginning.
        end: seconds where it ends (exclusive); None for the video's end.

    Raises:
        UserError: the file is missing, broken, has no picture stream, or no frame lies in the clip.
    """
    import av  # here, as pictures need none of it

    if not path.is_file():
        raise UserError(f"{path}: no such video")
    try:
        times = _frame_times(path)
        first = 0 if start is None else bisect_left(times, times[0] + start)
        behind = len(times) if end is None else bisect_left(times, times[0] + end)
        length = behind - first
        if length <= 0:
            seconds = times[-1] - times[0]
            raise UserError(f"{path}: no frame between {start} and {end} s; the video has {seconds:.2f} s")
        wanted = [times[first + (2 * index + 1) * length // (2 * count)] for index in range(count)]
        return _decode_at(path, wanted, seek=start is not None)
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise UserError(f"{path}: broken video ({error}); fetch it again") from error


def image_pixels(image: Image.Image, size: int, augment: random.Random | None = None) -> np.ndarray:
    """The float32 array [3, size, size] that the vision encoder reads.

    Without `augment` it is what InstructBLIP's processor makes: the whole picture resized to a square (bicubic), then
    CLIP's mean and standard deviation. With it, as in training: a random crop of 0.5 to 1 of the area and a ratio of
    3/4 to 4/3, resized (bicubic), mirrored every second time.

    Args:
        image: RGB.
        size: side in pixels.
        augment: what the crop and the mirroring are drawn from.
    """
    if augment is not None:
        image = image.crop(_random_box(image.width, image.height, augment))
        if augment.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels * _SCALE + _SHIFT)


def check_media(path: Path) -> str | None:
    """Why a picture or video (by its suffix) cannot be used, or None if it can.

    It is missing, does not decode, or has a side below `MIN_SIDE`. Of a video the first frame is decoded.
    """
    try:
        image = load_frames(path, 1, 0, 1)[0] if path.suffix.lower() in VIDEO_SUFFIXES else load_image(path)
    except UserError as error:
        return str(error)
    if min(image.size) < MIN_SIDE:
        return f"{path}: {image.width} x {image.height} pixels, too small to be a picture"
    return None


_STD = np.asarray(CLIP_STD, np.float32)[:, None, None]
_SCALE = np.float32(1 / 255) / _STD
_SHIFT = -np.asarray(CLIP_MEAN, np.float32)[:, None, None] / _STD


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _random_box(width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
    """A crop of random area and ratio; the largest central one of an allowed ratio if ten draws do not fit."""
    for _ in range(_CROP_TRIES):
        area = width * height * rng.uniform(*_CROP_SCALE)
        ratio = math.exp(rng.uniform(math.log(_CROP_RATIO[0]), math.log(_CROP_RATIO[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = rng.randint(0, width - wide), rng.randint(0, height - high)
            return left, top, left + wide, top + high
    wide = min(width, max(1, round(height * _CROP_RATIO[1])))
    high = min(height, max(1, round(width / _CROP_RATIO[0])))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def _frame_times(path: Path) -> list[float]:
    """Seconds of every frame of the first picture stream, ascending, read off the packets without decoding."""
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise UserError(f"{path}: has no picture stream")
        stamps = []
        for packet in container.demux(video=0):
            stamp = packet.pts if packet.pts is not None else packet.dts
            if packet.size and stamp is not None:
                stamps.append(stamp * packet.time_base)
        times = sorted(float(stamp) for stamp in stamps)
    if not times:
        raise UserError(f"{path}: the video holds no frame; fetch it again")
    return times


def _decode_at(path: Path, wanted: list[float], seek: bool) -> list[Image.Image]:
    """For each of the ascending times the first frame that is not before it; the last frame where none follows."""
    import av

    images: list[Image.Image] = []
    frame = None
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if seek and stream.time_base is not None:
            container.seek(max(0, int(wanted[0] / stream.time_base)), stream=stream)
        for frame in container.decode(stream):
            due = [time for time in wanted[len(images) :] if frame.time is not None and time <= frame.time + 1e-4]
            if due:
                images += [frame.to_image()] * len(due)
            if len(images) == len(wanted):
                return images
        if frame is None:
            raise UserError(f"{path}: no frame of the video decodes; fetch it again")
        return images + [frame.to_image()] * (len(wanted) - len(images))
