"""Whether a video file is whole, by the lengths that its container writes down; nothing is decoded.

FFmpeg plays what is left of a torn file and says nothing, so the frames of such a file would lie where others belong.
Checked are AVI (RIFF chunks), Matroska and WebM (EBML elements), MP4 and MOV (boxes), FLV (tags) and WMV (file size in
the header). A Matroska segment of unknown size, as live streams have, is fine. MPEG-TS, MPEG-PS and Ogg do not say how
long they are.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Final

_CUT = "it is cut off: {} promises {:,} bytes, the file has {:,}"
_HOLE = "it is damaged: byte {:,} should begin {}"
_MASTERS: Final = frozenset({b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"})  # Segment and Cluster: walked into
_ASF: Final = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FACTS: Final = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def damage(path: Path) -> str | None:
    """Why a video file is not whole, or None if nothing says so.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        if head[:4] == b"RIFF":
            return _riff(file, size)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska(file, size)
        if head[:3] == b"FLV":
            return _flv(file, size)
        if head == _ASF:
            return _asf(file, size)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
            return _boxes(file, size)
    return None


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _riff(file: BinaryIO, size: int) -> str | None:
    """RIFF lists and chunks of an AVI; those with the frames (`movi`, `rec `) are walked chunk by chunk."""
    place = end = 0
    while place + 12 <= size:
        name, length, kind = struct.unpack("<4sI4s", _at(file, place, 12))
        if not _is_name(name):
            if place % 2 and _is_name(_at(file, place - 1, 4)):  # written without the padding to even lengths
                place -= 1
                continue
            # Some writers leave rubbish behind the last chunk.
            return _HOLE.format(place, "an AVI chunk") if place < end else None
        behind = place + 8 + length + length % 2
        # Some writers count the 8 bytes of the RIFF header itself.
        if place + 8 + length > size + (8 if name == b"RIFF" else 0):
            return _CUT.format(f"its {_shown(name)} chunk", place + 8 + length, size)
        if name == b"RIFF":
            end = place + 8 + length
        inside = name == b"RIFF" or (name == b"LIST" and kind in (b"movi", b"rec "))
        place = place + 12 if inside else behind
    return None


def _is_name(name: bytes) -> bool:
    """Whether four bytes may name a chunk or a box: printable ASCII, the copyright sign of QuickTime among it."""
    return len(name) == 4 and all(32 <= byte < 127 or byte == 0xA9 for byte in name)


def _shown(name: bytes) -> str:
    return name.decode("latin-1").strip()


def _matroska(file: BinaryIO, size: int) -> str | None:
    """EBML elements (RFC 8794): segments and clusters are walked element by element."""
    place = 0
    while place < size:
        head = _at(file, place, 12)
        wide = _width(head[0])
        if wide > 4 or place + wide >= size or not (long := _width(head[wide])) <= 8:
            return _HOLE.format(place, "a Matroska element")
        name, number = head[:wide], head[wide : wide + long]
        if len(number) < long:
            return _CUT.format("its last element's head", place + wide + long, size)
        length = int.from_bytes(number, "big") & ((1 << 7 * long) - 1)
        content = place + wide + long
        unknown = length == (1 << 7 * long) - 1
        if not unknown and content + length > size:
            what = {b"\x18\x53\x80\x67": "segment", b"\x1f\x43\xb6\x75": "cluster"}.get(name, "last element")
            return _CUT.format(f"its Matroska {what}", content + length, size)
        place = content if name in _MASTERS or unknown else content + length
    return None


def _width(first: int) -> int:
    """Bytes of an EBML number, from its first byte; 9 for none."""
    return 9 - first.bit_length()


def _flv(file: BinaryIO, size: int) -> str | None:
    start = _at(file, 0, 4096)
    at = start.find(b"filesize\x00")
    if at >= 0 and len(start) >= at + 17:
        promised = struct.unpack(">d", start[at + 9 : at + 17])[0]
        if promised > size:
            return _CUT.format("its onMetaData", int(promised), size)
    place = int.from_bytes(start[5:9], "big") + 4
    while place + 11 <= size:
        head = _at(file, place, 11)
        if head[0] & 0x1F not in (8, 9, 18):  # sound, picture, data
            return _HOLE.format(place, "an FLV tag")
        behind = place + 11 + int.from_bytes(head[1:4], "big") + 4
        if behind - 4 > size:
            return _CUT.format("its last tag", behind - 4, size)
        place = behind
    return None


def _asf(file: BinaryIO, size: int) -> str | None:
    start = _at(file, 0, 1 << 16)
    at = start.find(_ASF_FACTS)
    if at < 0 or len(start) < at + 92:
        return None
    promised, flags = struct.unpack_from("<Q", start, at + 40)[0], struct.unpack_from("<I", start, at + 88)[0]
    live = flags & 1  # then the sizes in the header mean nothing
    return _CUT.format("its header", promised, size) if not live and promised > size else None


def _boxes(file: BinaryIO, size: int) -> str | None:
    """Top-level boxes of MP4 and MOV (ISO/IEC 14496-12)."""
    place = 0
    while place + 8 <= size:
        head = _at(file, place, 16)
        length, name = struct.unpack(">I4s", head[:8])
        if length == 0 or not _is_name(name):  # up to the file's end, or rubbish behind the last box
            return None
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
        if length < 8:
            return _HOLE.format(place, "an MP4 box")
        if place + length > size:
            return _CUT.format(f"its {_shown(name)} box", place + length, size)
        place += length
    return None
