import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from instructkit.data.media import CLIP_MEAN, CLIP_STD, check_media, image_pixels, load_frames, load_image
from instructkit.errors import UserError

SAMPLES = Path(__file__).resolve().parents[1].parent / "shared" / "samples"


def picture(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)


def write_video(path: Path, frames: int, rate: int = 10, codec: str = "mpeg4", first: int = 0) -> None:
    """Frame i is grey i * 8, so that a decoded frame tells its own number."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.gop_size = 5
        for index in range(frames):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (index * 8,) * 3))
            frame.pts, frame.time_base = index + first, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def numbers(images: list[Image.Image]) -> list[int]:
    return [round(np.asarray(image).mean() / 8) for image in images]


def test_load_image_gives_rgb_and_closes_transparency_with_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (10, 10), (255, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    image.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.mode == "RGB"
    assert loaded.getpixel((0, 0)) == (255, 0, 0)
    assert loaded.getpixel((5, 5)) == (255, 255, 255)


def test_load_image_closes_the_transparency_of_a_palette(tmp_path: Path) -> None:
    image = Image.new("P", (10, 10), 0)
    image.putpalette([9, 9, 9, 0, 0, 255])
    image.putpixel((1, 1), 1)
    image.save(tmp_path / "a.gif", transparency=0)
    loaded = load_image(tmp_path / "a.gif")
    assert (loaded.getpixel((0, 0)), loaded.getpixel((1, 1))) == ((255, 255, 255), (0, 0, 255))


def test_load_image_keeps_the_tones_of_16_bit_grey(tmp_path: Path) -> None:
    Image.fromarray(np.full((10, 10), 128 * 256, np.uint16)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").getpixel((3, 3)) == (128, 128, 128)


def test_load_image_turns_by_exif(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), "black")
    image.paste("white", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned right by 90 degrees: the left half is then on top
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    loaded = load_image(tmp_path / "a.jpg")
    assert loaded.size == (10, 20)
    shown = np.asarray(loaded)
    assert shown[2, 5].min() > 200
    assert shown[17, 5].max() < 50


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp"])
def test_truncated_picture_is_an_error_that_names_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    picture().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"a.{suffix}: "):
        load_image(path)
    assert str(path) in (check_media(path) or "")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_bytes_raise_anything_but_a_user_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "a.bin"
    for suffix in ("jpeg", "png", "gif", "tiff", "webp"):
        picture(24, 24).save(path, suffix)
        whole = path.read_bytes()
        for _ in range(60):
            broken = bytearray(whole)
            for _ in range(rng.randint(1, 8)):
                broken[rng.randrange(min(len(broken), 200))] = rng.randrange(256)
            path.write_bytes(broken)
            reason = check_media(path)
            assert reason is None or reason.startswith(str(path))


def test_missing_and_foreign_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jpg: no such picture"):
        load_image(tmp_path / "none.jpg")
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    with pytest.raises(UserError, match=r"page\.jpg: not a picture"):
        load_image(tmp_path / "page.jpg")


def test_check_media_wants_a_minimal_size(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "gone.gif")
    picture().save(tmp_path / "good.png")
    assert "1 x 1 pixels" in (check_media(tmp_path / "gone.gif") or "")
    assert check_media(tmp_path / "good.png") is None


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "mpeg4"), ("mp4", "libx264"), ("avi", "mpeg4")])
@pytest.mark.parametrize(
    ("frames", "count", "expected"),
    [(20, 4, [2, 7, 12, 17]), (21, 4, [2, 7, 13, 18]), (5, 1, [2]), (3, 4, [0, 1, 1, 2]), (30, 3, [5, 15, 25])],
)
def test_frames_are_the_middles_of_equal_segments(
    tmp_path: Path, suffix: str, codec: str, frames: int, count: int, expected: list[int]
) -> None:
    path = tmp_path / f"a.{suffix}"
    write_video(path, frames, codec=codec)
    assert numbers(load_frames(path, count)) == expected


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_clip_bounds_are_seconds_behind_the_first_frame(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    write_video(path, 30, rate=10)
    assert numbers(load_frames(path, 2, 1.0, 2.0)) == [12, 17]  # frames 10 to 19
    assert numbers(load_frames(path, 1, 2.5)) == [27]  # frames 25 to 29
    assert numbers(load_frames(path, 2, 2.0, 99.0)) == [22, 27]
    with pytest.raises(UserError, match=r"no frame between 50 and 60 s; the video has 2\.90 s"):
        load_frames(path, 2, 50, 60)


def test_video_that_starts_late_counts_from_its_first_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 20, first=30)
    assert numbers(load_frames(tmp_path / "a.mp4", 2)) == [5, 15]
    assert numbers(load_frames(tmp_path / "a.mp4", 1, 1.0)) == [15]


def test_wrong_duration_in_the_header_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    write_video(path, 20)
    content = bytearray(path.read_bytes())
    at = content.index(b"avih") + 8 + 16  # dwTotalFrames of the main header
    assert int.from_bytes(content[at : at + 4], "little") == 20
    content[at : at + 4] = (2000).to_bytes(4, "little")
    length = content.index(b"strh") + 8 + 32  # dwLength of the stream header
    assert int.from_bytes(content[length : length + 4], "little") == 20
    content[length : length + 4] = (2000).to_bytes(4, "little")
    path.write_bytes(content)
    assert numbers(load_frames(path, 4)) == [2, 7, 12, 17]


def test_broken_videos_are_errors_that_name_them(tmp_path: Path) -> None:
    write_video(tmp_path / "half.mp4", 20)
    content = (tmp_path / "half.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.avi").write_text("no video")
    for name in ("half.mp4", "text.avi", "none.mp4"):
        with pytest.raises(UserError, match=name):
            load_frames(tmp_path / name, 4)
        assert name in (check_media(tmp_path / name) or "")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match="no picture stream"):
        load_frames(tmp_path / "a.mp4", 1)


@pytest.mark.parametrize("size", [(90, 60), (33, 140), (64, 64), (7, 5)])
def test_pixels_equal_those_of_the_processor(size: tuple[int, int]) -> None:
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    image = picture(120, 120).resize(size)
    theirs = BlipImageProcessorPil(size={"height": 64, "width": 64})(image, return_tensors="np").pixel_values[0]
    ours = image_pixels(image, 64)
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_augmented_pixels_follow_the_seed_and_crop_within_bounds() -> None:
    # The red channel is the column, the green one the row: the pixels tell what was cropped and whether it is mirrored.
    width, height, size = 200, 160, 32
    rows, columns = np.mgrid[0:height, 0:width]
    ramp = Image.fromarray(np.stack([columns, rows, columns * 0], -1).astype(np.uint8))
    mirrored, areas, ratios = 0, [], []
    for seed in range(300):
        pixels = image_pixels(ramp, size, random.Random(seed))
        assert np.array_equal(pixels, image_pixels(ramp, size, random.Random(seed)))
        shown = (pixels * np.reshape(CLIP_STD, (3, 1, 1)) + np.reshape(CLIP_MEAN, (3, 1, 1))) * 255
        wide = abs(shown[0, 16, 24] - shown[0, 16, 8]) * size / 16
        high = abs(shown[1, 24, 16] - shown[1, 8, 16]) * size / 16
        mirrored += bool(shown[0, 16, 24] < shown[0, 16, 8])
        areas.append(wide * high / (width * height))
        ratios.append(wide / high)
    assert 0.47 < min(areas) < 0.55
    assert 0.9 < max(areas) < 1.03
    assert 0.72 < min(ratios) < 0.85
    assert 1.25 < max(ratios) < 1.38
    assert 120 < mirrored < 180


def test_augment_of_a_strip_takes_the_largest_allowed_crop() -> None:
    image = Image.new("RGB", (400, 10))
    image.paste("white", (193, 0, 206, 10))  # 13 wide: 10 * 4/3, in the middle
    pixels = image_pixels(image, 16, random.Random(0))
    assert pixels.min() > 1.8


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the release excerpts are not beside the checkout")
def test_authentic_media_decode() -> None:
    videos = sorted(path for kind in ("*.mp4", "*.avi") for path in SAMPLES.rglob(kind))
    pictures = sorted(path for kind in ("*.jpg", "*.png") for path in SAMPLES.rglob(kind))
    assert len(videos) >= 5
    assert len(pictures) >= 30
    assert [reason for path in videos + pictures if (reason := check_media(path))] == []
    assert all(len({frame.tobytes() for frame in load_frames(path, 4)}) == 4 for path in videos)
