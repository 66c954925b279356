"""Media files that a converted split names: asked for before anything reads them, and part of what a result is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from instructkit import sources
from instructkit.cli import app
from instructkit.config.read import evaluation_settings
from instructkit.conversion.convert import convert
from instructkit.data import media_files
from instructkit.data.examples import Example
from instructkit.data.media import PICTURE_SUFFIXES, VIDEO_SUFFIXES, check_media, load_image, located
from instructkit.errors import UserError
from instructkit.evaluation.run import evaluate
from instructkit.models.save import save_model
from instructkit.prompts.export import FORMATS
from instructkit.runs.ranks import Ranks
from tests.evaluation.world import World
from tests.miniatures import write_release
from tests.test_examples import write_dataset
from tests.tiny import tiny_model

RELEASES = [
    name
    for name in sources.names()
    if sources.source(name).examples_of is None and sources.default_raw(name) is None and not sources.source(name).own
]
MEDIA = PICTURE_SUFFIXES | VIDEO_SUFFIXES


def command(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def release(name: str, folder: Path) -> Path:
    return write_release(name, folder)


def remove_media(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.suffix.lower() in MEDIA:
            path.unlink()


def write_split(folder: Path, pictures: int, **changes: Any) -> Path:
    """A converted split of so many pictures, which lie in `folder/media`."""
    (folder / "media").mkdir(parents=True)
    examples = []
    for number in range(pictures):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "media" / f"{number}.png")
        examples.append(Example(id=f"a/b/{number}", images=[f"{number}.png"], question="q", answers=["a"]))
    return write_dataset(folder / "split", examples, media_root=str(folder / "media"), **changes)


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_without_its_media_is_exit_code_1_and_one_line_with_the_remedy(name: str, tmp_path: Path) -> None:
    raw = release(name, tmp_path / "raw")
    remove_media(raw)
    done = command("convert", name, "--raw", raw, "--out", tmp_path / "out", "--jobs", 1)
    assert done.exit_code == 1, done.output
    last = done.output.splitlines()[-1]
    assert last.startswith("instructkit: none of ")
    assert f"looked for {raw}" in last
    assert "--images" in last
    assert (tmp_path / "out" / name / sources.source(name).split / "manifest.json").is_file()


def test_convert_all_fails_where_no_picture_is_there(tmp_path: Path) -> None:
    remove_media(release("vqav2", tmp_path / "raw" / "vqav2"))
    release("gqa", tmp_path / "raw" / "gqa")
    done = command("convert", "all", "--raw", tmp_path / "raw", "--out", tmp_path / "out", "--jobs", 1)
    assert done.exit_code == 1, done.output
    assert "vqav2 train: none of " in done.output
    assert "gqa testdev: none of" not in done.output


def test_some_missing_pictures_are_counted(tmp_path: Path) -> None:
    folder = write_split(tmp_path, 10)
    assert media_files.look(folder).line() == ""
    for number in (3, 7):
        (tmp_path / "media" / f"{number}.png").unlink()
    looked = media_files.look(folder)
    assert (looked.looked, looked.missing, looked.none_there) == (10, 2, False)
    assert looked.line().startswith("2 of 10 media files that were looked at are not there, such as ")
    assert f"{tmp_path}/media/3.png" in looked.line()
    assert media_files.look(folder, 3).missing == 0, "the first three are there"


def test_the_folder_beside_that_holds_the_pictures_is_named(tmp_path: Path) -> None:
    folder = write_split(tmp_path, 3)
    (tmp_path / "media" / "below").mkdir()
    for path in (tmp_path / "media").glob("*.png"):
        path.rename(path.parent / "below" / path.name)
    assert media_files.look(folder).line().endswith(f"which seems to be {tmp_path}/media/below")


def test_at_most_some_hundred_files_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [Example(id=f"a/b/{n}", images=[f"{n}.png"], question="q", answers=["a"]) for n in range(3000)]
    folder = write_dataset(tmp_path / "split", examples)
    looked = media_files.look(folder)
    assert 100 < looked.looked <= media_files.LOOKED
    assert looked.none_there


def test_an_evaluation_without_pictures_ends_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instructkit.evaluation.run.load_model", None)  # calling it would be a TypeError
    raw = release("vqav2", tmp_path / "raw")
    convert("vqav2", raw, tmp_path / "data", split="val")
    remove_media(raw)
    save_model(*tiny_model("llama"), tmp_path / "model")
    values = {
        "model.name": str(tmp_path / "model"),
        "data.root": str(tmp_path / "data"),
        "benchmarks": "vqav2",
        "output": str(tmp_path / "run"),
    }
    with pytest.raises(UserError, match=r"vqav2: none of \d+ media files .* --images FOLDER"):
        evaluate(evaluation_settings(values), Ranks(), print)


def test_one_benchmark_without_pictures_leaves_the_others_alone(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    world = World(tmp_path)
    world.benchmark("vqav2")
    world.benchmark("okvqa")
    remove_media(world.root / "raw" / "okvqa")
    found = world.evaluate("vqav2,okvqa", tmp_path / "run")
    assert [each.benchmark for each in found.results] == ["vqav2"]
    assert "none of" in found.not_evaluated[0].reason
    assert "--images" in found.not_evaluated[0].reason


def test_a_replaced_picture_is_noticed_by_an_evaluation(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    world = World(tmp_path)
    world.benchmark("vqav2")
    said: list[str] = []
    settings = evaluation_settings(world.settings("vqav2", tmp_path / "run"))
    responses = tmp_path / "run" / "evaluation" / "vqav2" / "responses.jsonl"

    def answered() -> bytes:
        said.clear()
        evaluate(settings, Ranks(), said.append)
        return responses.read_bytes()

    before = answered()
    assert answered() == before
    assert not any("were replaced; they are asked again" in line for line in said)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(next((tmp_path / "raw").rglob("*val*.jpg")))
    assert answered() != before
    assert any("were replaced; they are asked again" in line for line in said)
    anew = world.evaluate("vqav2", tmp_path / "anew")
    assert responses.read_bytes() == (tmp_path / "anew" / "evaluation" / "vqav2" / "responses.jsonl").read_bytes()
    assert anew.results[0].errors == {}


@pytest.mark.parametrize("change", ["size", "time", "gone"])
def test_the_digest_follows_name_size_and_time(tmp_path: Path, change: str) -> None:
    folder = write_split(tmp_path, 4)
    before = media_files.digest(folder)
    assert media_files.digest(folder) == before
    picture = tmp_path / "media" / "2.png"
    facts = picture.stat()
    if change == "size":
        picture.write_bytes(picture.read_bytes() + b"\0")
        os.utime(picture, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    elif change == "time":
        os.utime(picture, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    else:
        picture.unlink()
    assert media_files.digest(folder) != before


def test_of_very_many_examples_nobody_looks_and_a_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    folder = write_split(tmp_path, 2)
    monkeypatch.setattr(media_files, "WATCHED_EXAMPLES", 1)
    assert media_files.stamps(folder, said.append) == {}
    assert len(said) == 1
    assert "nobody looks whether media files were replaced" in said[0]


@pytest.mark.parametrize("named", [".gif", ".JPG", ".png"])
@pytest.mark.parametrize("saved", [".jpg", ".JPEG", ".png", ".webp"])
def test_a_picture_with_another_suffix_is_found_wherever_it_is_read(tmp_path: Path, named: str, saved: str) -> None:
    Image.new("RGB", (9, 9), "blue").save(tmp_path / f"cover{saved}", "PNG")
    path = tmp_path / f"cover{named}"
    assert located(path).samefile(tmp_path / f"cover{saved}")
    assert load_image(path).size == (9, 9)
    assert check_media(path) is None
    example = Example(id="a/b/0", images=[path.name], question="q", answers=["a"])
    folder = write_dataset(tmp_path / "split", [example], media_root=str(tmp_path))
    assert media_files.look(folder).missing == 0
    exported = "".join(FORMATS["text"]([folder], None, 0, None))
    assert f"cover{saved}" in exported


def test_a_picture_under_two_other_suffixes_is_not_guessed(tmp_path: Path) -> None:
    for suffix in (".jpg", ".png"):
        shutil.copy(Path(__file__), tmp_path / f"cover{suffix}")
    with pytest.raises(UserError, match=r"cover\.gif: not there, but cover\.jpg and cover\.png are; keep one"):
        load_image(tmp_path / "cover.gif")
    assert located(tmp_path / "cover.jpg") == tmp_path / "cover.jpg"
    assert located(tmp_path / "other.txt") == tmp_path / "other.txt"


def test_usual_suffixes_are_in_small_letters() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in PICTURE_SUFFIXES)


def test_covers_of_ocrvqa_that_were_saved_as_jpg_are_used(tmp_path: Path) -> None:
    raw = release("ocrvqa", tmp_path / "raw")
    gifs = 0
    for path in raw.rglob("*"):
        if path.suffix.lower() in PICTURE_SUFFIXES:
            other = path.with_suffix(".webp")
            path.rename(other)
            gifs += 1
    assert gifs
    outcome = convert("ocrvqa", raw, tmp_path / "out", check_images=True)
    assert outcome.manifest.rejected == 0
    assert outcome.no_media == ""
