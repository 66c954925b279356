"""Pictures of more than 8 bits, too large or of foreign formats; videos that are torn or to be turned; odd names."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from instructkit.conversion.shards import MISSING, _look_at
from instructkit.data.media import VIDEOS, check_media, load_frames, load_image
from instructkit.errors import UserError

RAMP = np.linspace(0, 1, 64)[None, :].repeat(32, 0)


def tiff(path: Path, values: np.ndarray, kind: int = 1) -> None:
    """A plain TIFF of one strip, written by hand in the byte order of the values; kind 2 is signed, 3 float."""
    order = ">" if values.dtype.str[0] == ">" else "<"
    data = values.tobytes()
    high, wide = values.shape
    bits = values.dtype.itemsize * 8
    tags = [(256, wide), (257, high), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, high)]
    tags += [(279, len(data)), (339, kind)]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    head = (b"MM" if order == ">" else b"II") + struct.pack(f"{order}HI", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))


def pgm(path: Path, values: np.ndarray) -> None:
    path.write_bytes(b"P5 64 32 65535\n" + values.astype(">u2").tobytes())


RAMPS = {
    "big-endian 16 bit": lambda path: tiff(path, (RAMP * 65535).astype(">u2")),
    "little-endian 16 bit": lambda path: tiff(path, (RAMP * 65535).astype("<u2")),
    "32 bit in 0 .. 65535": lambda path: tiff(path, (RAMP * 65535).astype("<i4"), 2),
    "32 bit in 0 .. 255": lambda path: tiff(path, (RAMP * 255).astype("<i4"), 2),
    "32 bit in 0 .. 200000": lambda path: tiff(path, (RAMP * 200_000).astype("<i4"), 2),
    "big-endian 32 bit": lambda path: tiff(path, (RAMP * 200_000).astype(">i4"), 2),
    "signed 16 bit": lambda path: tiff(path, (RAMP * 65535 - 32768).astype("<i2"), 2),
    "float in 0 .. 1": lambda path: tiff(path, RAMP.astype("<f4"), 3),
    "float in 0 .. 255": lambda path: tiff(path, (RAMP * 255).astype("<f4"), 3),
    "float in 0 .. 65535": lambda path: tiff(path, (RAMP * 65535).astype("<f4"), 3),
    "float in -3 .. 4": lambda path: tiff(path, (RAMP * 7 - 3).astype("<f4"), 3),
    "PGM of 16 bit": lambda path: pgm(path, RAMP * 65535),
    "PNG of 16 bit": lambda path: Image.fromarray((RAMP * 65535).astype(np.uint16)).save(path, "PNG"),
}


@pytest.mark.parametrize("name", RAMPS)
def test_a_grey_ramp_stays_a_ramp_whatever_its_bits(tmp_path: Path, name: str) -> None:
    RAMPS[name](tmp_path / "scan.tif")
    shown = np.asarray(load_image(tmp_path / "scan.tif"))
    assert shown.shape == (32, 64, 3)
    np.testing.assert_allclose(shown, np.repeat((RAMP * 255)[..., None], 3, 2), atol=1.01)
    assert len(np.unique(shown)) == 64


def test_a_dark_16_bit_picture_stays_dark(tmp_path: Path) -> None:
    pgm(tmp_path / "a.pgm", RAMP * 200)
    assert np.asarray(load_image(tmp_path / "a.pgm")).max() == 1


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_refused_by_the_modes_name(tmp_path: Path, odd: float) -> None:
    values = RAMP.astype("<f4")
    values[3, 4] = odd
    tiff(tmp_path / "depth.tif", values, 3)
    with pytest.raises(UserError, match=r"depth\.tif: a picture of mode F with values that are not finite"):
        load_image(tmp_path / "depth.tif")


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "options", "expected"),
    [
        ("1", 1, "png", {}, 255),
        ("L", 7, "png", {}, 7),
        ("L", 7, "png", {"transparency": 7}, 255),
        ("LA", (7, 0), "png", {}, 255),
        ("LA", (7, 255), "png", {}, 7),
        ("I;16", 7 * 257, "png", {"transparency": 7 * 257}, 255),
        ("P", 0, "png", {"transparency": b"\0"}, 255),
        ("RGB", (7, 7, 7), "png", {"transparency": (7, 7, 7)}, 255),
        ("RGBA", (0, 0, 0, 128), "png", {}, 127),
        ("CMYK", (0, 0, 0, 248), "tif", {}, 7),
    ],
)
def test_other_modes_keep_their_tones(tmp_path, mode, colour, suffix, options, expected) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new(mode, (9, 9), colour).save(path, **options)
    assert load_image(path).getpixel((4, 4)) == (expected,) * 3


def test_a_sound_picture_above_the_limit_is_not_called_broken(tmp_path: Path) -> None:
    Image.new("1", (15_000, 13_000)).save(tmp_path / "poster.png")
    with pytest.raises(UserError, match=r"poster\.png: too large a picture .*195000000 pixels.*fewer pixels") as caught:
        load_image(tmp_path / "poster.png")
    assert "fetch" not in str(caught.value)
    assert "broken" not in str(caught.value)


def test_postscript_is_not_opened_and_heic_is_told_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gs = tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(gs.parent), prepend=":")
    (tmp_path / "photo.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match=r"photo\.jpg: not a picture of a format that is read \(JPEG, PNG"):
        load_image(tmp_path / "photo.jpg")
    assert not (tmp_path / "started").exists()
    for brand in (b"heic", b"mif1"):
        (tmp_path / "phone.jpg").write_bytes(
            struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"mif1heic" + bytes(200)
        )
        with pytest.raises(UserError, match=r"phone\.jpg: .*HEIC; save it as JPEG"):
            load_image(tmp_path / "phone.jpg")


@pytest.mark.parametrize("suffix", ["png", "mp4"])
def test_a_name_that_the_system_refuses_is_one_bad_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"{'y' * 300}.{suffix}"
    with pytest.raises(UserError, match="File name too long"):
        (load_image if suffix == "png" else lambda each: load_frames(each, 1))(path)
    assert "File name too long" in (check_media(path) or "")
    status, reason = _look_at(path)
    assert status == MISSING
    assert "File name too long" in (reason or "")


def film(path: Path, codec: str = "mpeg4", **options: str) -> bytes:
    """40 frames of coloured noise; red rises by 6 a frame."""
    with av.open(str(path), "w", options=options) as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for number in range(40):
            picture = np.zeros((32, 64, 3), np.uint8)
            picture[..., 0], picture[..., 2] = number * 6, 255 - number * 6
            picture[..., 1] = np.random.default_rng(number).integers(0, 200, (32, 64))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path.read_bytes()


KINDS = [("avi", "mpeg4"), ("mkv", "mpeg4"), ("webm", "libvpx"), ("mp4", "mpeg4"), ("mov", "mpeg4"), ("flv", "flv")]
KINDS += [("wmv", "wmv2")]


@pytest.mark.parametrize(("suffix", "codec"), KINDS)
def test_a_cut_video_is_an_error_that_names_it(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"a.{suffix}"
    whole = film(path, codec)
    assert check_media(path) is None
    assert len(load_frames(path, 4)) == 4
    for share in (0.3, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match=rf"a\.{suffix}: "):
            load_frames(path, 4)
        assert str(path) in (check_media(path) or "")


@pytest.mark.parametrize(("suffix", "codec"), KINDS[:5])
def test_a_video_with_a_hole_is_an_error_that_names_it(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"a.{suffix}"
    whole = film(path, codec)
    third = len(whole) // 3
    for hole in (bytes(third), b""):  # zeros in place of a third, or that third left out
        path.write_bytes(whole[:third] + hole + whole[2 * third :])
        with pytest.raises(UserError, match=rf"a\.{suffix}: "):
            load_frames(path, 4)
        assert str(path) in (check_media(path) or "")


@pytest.mark.parametrize(
    ("suffix", "options"), [("mkv", {"live": "1"}), ("mp4", {"movflags": "frag_keyframe+empty_moov"})]
)
def test_live_and_fragmented_videos_are_whole(tmp_path: Path, suffix: str, options: dict[str, str]) -> None:
    path = tmp_path / f"a.{suffix}"
    film(path, **options)
    reds = [np.asarray(frame)[..., 0].mean() / 6 for frame in load_frames(path, 4)]
    np.testing.assert_allclose(reds, [5, 15, 25, 35], atol=2.5)
    assert check_media(path) is None


def test_a_broadcast_is_read(tmp_path: Path) -> None:
    film(tmp_path / "a.ts", "mpeg2video")
    assert len(load_frames(tmp_path / "a.ts", 4)) == 4


@pytest.mark.parametrize("kind", ["concat", "m3u8", "sdp"])
def test_playlists_are_not_opened(tmp_path: Path, kind: str) -> None:
    film(tmp_path / "real.mp4")
    texts = {
        "concat": "ffconcat version 1.0\nfile real.mp4\n",
        "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nreal.mp4\n#EXT-X-ENDLIST\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }
    (tmp_path / "a.mp4").write_text(texts[kind])
    with pytest.raises(UserError, match=r"a\.mp4: broken video"):
        load_frames(tmp_path / "a.mp4", 1)
    assert not {"concat", "hls", "sdp", "dash", "image2", "lavfi"} & set(VIDEOS)


UNIT = 0x10000
# Display matrices (a, b, c, d), and the corners of the frame as shown: top left, top right, bottom left, bottom right.
# As stored they are red, green, blue, white.
TURNS = {
    "none": ((1, 0, 0, 1), "rgbw"),
    "right": ((0, 1, -1, 0), "brwg"),
    "half": ((-1, 0, 0, -1), "wbgr"),
    "left": ((0, -1, 1, 0), "gwrb"),
    "mirrored": ((-1, 0, 0, 1), "grwb"),
    "upside down": ((1, 0, 0, -1), "bwrg"),
    "over the diagonal": ((0, 1, 1, 0), "rbgw"),
    "over the other diagonal": ((0, -1, -1, 0), "wgbr"),
}
COLOURS = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255), "w": (255, 255, 255)}


@pytest.mark.parametrize("turn", TURNS)
def test_all_frames_are_turned_as_the_display_matrix_says(tmp_path: Path, turn: str) -> None:
    path = tmp_path / "phone.mp4"
    stored = np.zeros((32, 64, 3), np.uint8)
    for place, colour in zip([(0, 0), (0, 32), (16, 0), (16, 32)], "rgbw", strict=True):
        stored[place[0] : place[0] + 16, place[1] : place[1] + 32] = COLOURS[colour]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for _ in range(30):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        out.mux(stream.encode(None))
    (a, b, c, d), corners = TURNS[turn]
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 8 + 20 + 16
    content[at : at + 36] = struct.pack(">9i", a * UNIT, b * UNIT, 0, c * UNIT, d * UNIT, 0, 0, 0, 0x40000000)
    path.write_bytes(content)
    for frame in [*load_frames(path, 4), *load_frames(path, 2, 1.0, 2.0)]:
        assert frame.size == ((64, 32) if a else (32, 64))
        wide, high = frame.size
        shown = [frame.getpixel((x, y)) for y in (4, high - 5) for x in (4, wide - 5)]
        nearest = [
            min(COLOURS, key=lambda n: sum(abs(p - q) for p, q in zip(COLOURS[n], got, strict=True))) for got in shown
        ]
        assert "".join(nearest) == corners
