"""Pictures and video frames: decoded with Pillow and PyAV, turned into the pixels that the vision encoder reads.

A file that is missing or broken is an error that names it. Nothing is replaced by a blank picture.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, ImageOps

from instructkit.data.containers import damage
from instructkit.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer

CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
VIDEO_SUFFIXES: Final = frozenset(
    {".avi", ".mp4", ".webm", ".mkv", ".mov", ".m4v", ".flv", ".wmv", ".mpg", ".mpeg", ".ts", ".3gp", ".ogv"}
)
PICTURE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm"}
)
MIN_SIDE: Final = 8
"""Pixels; smaller pictures are placeholders, such as the 1 x 1 that shops serve for a cover that is gone."""

PICTURES: Final = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "PPM", "JPEG2000")
"""Formats that are opened, whatever a file is named: others, such as PostScript, start programs or are never photos."""
VIDEOS: Final = ("avi", "mov", "matroska", "flv", "asf", "mpegts", "mpeg", "ogg", "gif")
"""FFmpeg's names of the containers that are opened: no playlists, which read other files or the network."""

_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_CROP_SCALE = (0.5, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)
_CROP_TRIES = 10


def load_image(path: Path) -> Image.Image:
    """Decode a picture: RGB, upright by its EXIF orientation, transparent parts white, the first frame of several.

    Grey pictures of more than 8 bits are brought to 0 .. 255 by one rule. 16-bit ones (also PGM and PNG, which have no
    wider ones) are divided by 257. Of 32-bit and float ones (Pillow's modes I and F) the values decide: floats in
    0 .. 1 are multiplied by 255, values in 0 .. 255 stay, values in 0 .. 65535 are divided by 257, and others are
    stretched from the picture's own lowest to its highest value.

    Raises:
        UserError: the file is missing, truncated, no picture of the formats `PICTURES`, has more pixels than Pillow
            decodes (179 million), or float values that are not finite; the message names it and says which.
    """
    path = located(path)
    if not there(path):
        raise UserError(f"{path}: no such picture")
    try:
        with Image.open(path, formats=_formats()) as image:
            image.load()
            return as_rgb(image)
    except MemoryError:
        raise
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path}: too large a picture ({error}); save it with fewer pixels, the model reads far fewer"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path}: not a picture{_advice(path)}") from error
    except Exception as error:  # Pillow's plugins raise nearly every type on broken bytes
        reason = f"not a picture{_advice(path)}" if _is_heic(path) else f"broken picture ({error}); fetch it again"
        raise UserError(f"{path}: {reason}") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture that Pillow has opened, by the rules of `load_image`.

    Raises:
        UserError: it has float values that are not finite.
    """
    return _rgb(ImageOps.exif_transpose(image), image.format)


def there(path: Path) -> bool:
    """Whether a file lies there.

    Raises:
        UserError: the system cannot tell, such as of a name that is too long.
    """
    try:
        return path.is_file()
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from error


def located(path: Path) -> Path:
    """Where a picture or video lies: there, or beside it under the same stem with another usual suffix.

    Releases name files as their authors had them, and downloads are often saved or passed on in another format. Where
    nothing is found, the path is given back as it is.

    Raises:
        UserError: two files have that stem, so that it is open which one is meant; or the system cannot tell.
    """
    if there(path):
        return path
    suffix = path.suffix.lower()
    kin = next((kind for kind in (PICTURE_SUFFIXES, VIDEO_SUFFIXES) if suffix in kind), frozenset())
    beside = [path.with_suffix(each) for name in sorted(kin) for each in (name, name.upper())]
    found = [each for each in beside if each.is_file()]
    distinct = {each.stat().st_ino: each for each in found}  # where capitals do not count, a file is found twice
    if len(distinct) > 1:
        names = " and ".join(each.name for each in distinct.values())
        raise UserError(f"{path}: not there, but {names} are; keep one of them")
    return found[0] if found else path


def load_frames(path: Path, count: int, start: float | None = None, end: float | None = None) -> list[Image.Image]:
    """Decode `count` frames of a video or of a clip of it, spread evenly and turned as the video is to be shown.

    Rule: the clip's n frames in order of presentation are cut into `count` equal segments, and the middle frame of each
    is taken: frames floor((2i + 1) n / (2 count)), i = 0 .. count - 1. A clip of fewer frames repeats some. Frames are
    counted by their timestamps, never by the duration in the header, which is often wrong.

    Args:
        path: the video, in one of the containers `VIDEOS`.
        count: number of frames.
        start: seconds behind the first frame where the clip begins; None for the video's beginning.
        end: seconds where it ends (exclusive); None for the video's end.

    Raises:
        UserError: the file is missing, cut off, broken, has no picture stream, or no frame lies in the clip.
    """
    import av  # here, as pictures need none of it

    path = located(path)
    if not there(path):
        raise UserError(f"{path}: no such video")
    try:
        if (torn := damage(path)) is not None:
            raise UserError(f"{path}: broken video ({torn}); fetch it again")
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

    It is missing, cut off, does not decode, or has a side below `MIN_SIDE`. Of a video the first frame is decoded, and
    every packet is looked at.
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


def _formats() -> list[str]:
    """`PICTURES` as far as this Pillow can read them."""
    Image.init()
    return [name for name in PICTURES if name in Image.OPEN]


def _is_heic(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:] in _HEIC


def _advice(path: Path) -> str:
    """What to do about a file that is none of `PICTURES`."""
    if _is_heic(path):
        return " that is read: it is HEIC; save it as JPEG, for instance with heif-convert"
    return f" of a format that is read ({', '.join(PICTURES)}); fetch it again"


def _rgb(image: Image.Image, kind: str | None) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _grey(image, kind).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image, kind: str | None) -> Image.Image:
    """A grey picture of more than 8 bits as one of 8, by the rule of `load_image`."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise UserError(
            f"a picture of mode {image.mode} with values that are not finite; save it with 8 bits a channel"
        )
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        scale, low = 1 / 257, 0.0
    elif image.mode == "F" and low >= 0 and high <= 1:
        scale, low = 255.0, 0.0
    elif low >= 0 and high <= 255:
        scale, low = 1.0, 0.0
    elif low >= 0 and high <= 65535:
        scale, low = 1 / 257, 0.0
    else:
        scale = 255 / (high - low) if high > low else 0.0
    grey = np.rint((values.astype(np.float64) - low) * scale).clip(0, 255).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey)


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
    with _opened(path) as container:
        if not container.streams.video:
            raise UserError(f"{path}: has no picture stream")
        stamps: list[Fraction] = []
        compressed = container.streams.video[0].codec_context.name != "rawvideo"
        # A recording of a broadcast may begin inside a packet; elsewhere a packet is whole.
        whole = container.format.name != "mpegts"
        for packet in container.demux(video=0):
            if packet.size and ((whole and packet.is_corrupt) or (compressed and not any(memoryview(packet)))):
                raise UserError(f"{path}: broken video (frame {len(stamps):,} is missing or damaged); fetch it again")
            stamp = packet.pts if packet.pts is not None else packet.dts
            if packet.size and stamp is not None:
                stamps.append(stamp * packet.time_base)
        times = sorted(float(stamp) for stamp in stamps)
    if not times:
        raise UserError(f"{path}: the video holds no frame; fetch it again")
    return times


def _decode_at(path: Path, wanted: list[float], seek: bool) -> list[Image.Image]:
    """For each of the ascending times the first frame that is not before it; the last frame where none follows."""
    images: list[Image.Image] = []
    frame = None
    with _opened(path) as container:
        stream = container.streams.video[0]
        if seek and stream.time_base is not None:
            container.seek(max(0, int(wanted[0] / stream.time_base)), stream=stream)
        for frame in container.decode(stream):
            due = [time for time in wanted[len(images) :] if frame.time is not None and time <= frame.time + 1e-4]
            if due:
                images += [_upright(frame)] * len(due)
            if len(images) == len(wanted):
                return images
        if frame is None:
            raise UserError(f"{path}: no frame of the video decodes; fetch it again")
        return images + [_upright(frame)] * (len(wanted) - len(images))


def _opened(path: Path) -> InputContainer:
    import av

    # Absolute, so that no name is taken for a protocol.
    options = {"format_whitelist": ",".join(VIDEOS), "protocol_whitelist": "file"}
    return av.open(str(path.absolute()), options=options)


def _upright(frame: Any) -> Image.Image:
    """A frame as it is to be shown: turned and mirrored by its display matrix, to the nearest quarter turn.

    The matrix maps the point (x, y) of the stored frame to (a x + c y, b x + d y), y downwards.
    """
    image: Image.Image = frame.to_image()
    sides = [data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    if not sides:
        return image
    a, b, _, c, d = np.frombuffer(sides[0], np.int32)[:5].tolist()
    turned = abs(b) + abs(c) > abs(a) + abs(d)
    turn = _TURNED[b > 0, c > 0] if turned else _STRAIGHT[a >= 0, d >= 0]
    return image if turn is None else image.transpose(turn)


_STRAIGHT = {
    (True, True): None,
    (False, False): Image.Transpose.ROTATE_180,
    (False, True): Image.Transpose.FLIP_LEFT_RIGHT,
    (True, False): Image.Transpose.FLIP_TOP_BOTTOM,
}
_TURNED = {
    (True, False): Image.Transpose.ROTATE_270,  # Pillow turns to the left
    (False, True): Image.Transpose.ROTATE_90,
    (True, True): Image.Transpose.TRANSPOSE,
    (False, False): Image.Transpose.TRANSVERSE,
}
