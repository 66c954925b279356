import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from instructkit import sources
from instructkit.conversion import convert as conversion
from instructkit.conversion import shards
from instructkit.conversion.convert import convert
from instructkit.data.dataset import load_examples
from instructkit.errors import UserError

TINY = Path(__file__).parent / "made_up_source"


@pytest.fixture(autouse=True)
def _tiny_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(TINY)])
    monkeypatch.setattr(conversion, "SHARD_RECORDS", 4)


def record(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": str(number), "image": f"{number}.png", "question": f"What is {number}?", "answers": ["a"], **changes}


def write_release(raw: Path, records: list[Any]) -> Path:
    raw.mkdir(parents=True, exist_ok=True)
    (raw / "list.json").write_text(json.dumps(records))
    return raw


def mixed_records() -> list[Any]:
    """Good records, bad ones, and ids that repeat within a shard and over shards."""
    records: list[Any] = [record(number) for number in range(22)]
    records[2] = record(2, question="reject me")
    records[5] = record(4)  # in the shard of the first 4
    records[9] = record(1)  # in another shard than the first 1
    records[10] = record(0)
    records[17] = record(1)
    records[18] = {"id": "18"}
    return records


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rejects(folder: Path) -> list[tuple[str, str, str]]:
    lines = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    return [(line["file"], line["record"], line["reason"]) for line in lines]


def ids(folder: Path) -> list[str]:
    return [example.id.removeprefix("tiny/train/") for example in load_examples(folder)]


def test_what_comes_out_and_what_is_rejected(tmp_path: Path) -> None:
    outcome = convert("tiny", write_release(tmp_path / "raw", mixed_records()), tmp_path / "out")
    assert ids(outcome.folder) == [str(number) for number in range(22) if number not in (2, 5, 9, 10, 17, 18)]
    assert rejects(outcome.folder) == [
        ("list.json", "2", "asked to"),
        ("list.json", "5", "id 'tiny/train/4' was there before"),
        ("list.json", "9", "id 'tiny/train/1' was there before"),
        ("list.json", "10", "id 'tiny/train/0' was there before"),
        ("list.json", "17", "id 'tiny/train/1' was there before"),
        ("list.json", "18", "Object missing required field `image`"),
    ]
    manifest = outcome.manifest
    assert (manifest.records, manifest.examples, manifest.rejected) == (22, 16, 6)
    assert list(manifest.shards.values()) == [3, 3, 2, 4, 2, 2]
    assert [pq.read_metadata(outcome.folder / name).num_rows for name in manifest.shards] == [3, 3, 2, 4, 2, 2]
    assert (manifest.task, manifest.role, manifest.layout, manifest.published) == ("vqa", "extra", "list", 3)
    assert outcome.agrees is False
    assert outcome.too_many_rejects
    assert outcome.warnings == [
        "tiny is made up",
        "rejected list.json, 2: asked to",
        "rejected list.json, 5: id 'tiny/train/4' was there before",
        "rejected list.json, 9: id 'tiny/train/1' was there before",
        f"3 more rejects are listed in {outcome.folder / 'rejected.jsonl'}",
    ]
    assert "6 of 22 records (27.3%, more than 1%) do not fit" in outcome.complaint()
    assert "list.json, 2: asked to" in outcome.complaint()
    assert not (outcome.folder / ".partial").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"question": "  "}, "question is blank"),
        ({"answers": []}, "has no answer"),
        ({"answers": ["", " "]}, "all answers are blank"),
        ({"image": ""}, "one of images is blank"),
        ({"image": "/etc/a.png"}, "leaves the media folder"),
        ({"image": "a/../../b.png"}, "leaves the media folder"),
        ({"id": ""}, "does not begin with"),
        ({"answers": [1]}, "Expected `str`, got `int`"),
    ],
)
def test_wrong_examples_are_rejected(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    raw = write_release(tmp_path / "raw", [record(0), record(1, **changes), record(2)])
    outcome = convert("tiny", raw, tmp_path / "out")
    assert ids(outcome.folder) == ["0", "2"]
    ((file, key, told),) = rejects(outcome.folder)
    assert (file, key) == ("list.json", "1")
    assert reason in told


def test_a_split_may_hide_its_answers(tmp_path: Path) -> None:
    raw = write_release(tmp_path / "raw", [record(0, answers=[])])
    assert convert("tiny", raw, tmp_path / "out").manifest.examples == 0
    assert convert("tiny", raw, tmp_path / "out", split="test").manifest.examples == 1


def test_shards_hold_so_many_records_or_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_release(tmp_path / "raw", [record(number) for number in range(10)])
    shards = convert("tiny", raw, tmp_path / "out").manifest.shards
    assert shards == {"shard-00000.parquet": 4, "shard-00001.parquet": 4, "shard-00002.parquet": 2}
    monkeypatch.setattr(conversion, "SHARD_BYTES", 2 * len(json.dumps(record(0))))
    assert list(convert("tiny", raw, tmp_path / "bytes").manifest.shards.values()) == [2] * 5


def test_limit_counts_raw_records(tmp_path: Path) -> None:
    raw = write_release(tmp_path / "raw", [record(number) for number in range(10)])
    outcome = convert("tiny", raw, tmp_path / "out", limit=6)
    assert ids(outcome.folder) == ["0", "1", "2", "3", "4", "5"]
    assert outcome.agrees is None
    assert "not compared as --limit was 6" in outcome.summary()


def test_agreement_with_the_published_count(tmp_path: Path) -> None:
    outcome = convert("tiny", write_release(tmp_path / "raw", [record(n) for n in range(3)]), tmp_path / "out")
    assert outcome.agrees is True
    assert outcome.summary().endswith("tiny/train: 3 examples, 0 of 3 records rejected, published 3: agrees")


def test_nothing_changed_means_nothing_done(tmp_path: Path) -> None:
    raw = write_release(tmp_path / "raw", mixed_records())
    first = convert("tiny", raw, tmp_path / "out")
    before = tree(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    done: list[int] = []
    second = convert("tiny", raw, tmp_path / "out", progress=done.append)
    assert (first.converted, second.converted) == (True, False)
    assert second.manifest == first.manifest
    assert tree(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == times
    assert done == []


def test_a_change_converts_again_and_leaves_nothing_behind(tmp_path: Path) -> None:
    raw = write_release(tmp_path / "raw", [record(number) for number in range(30)])
    convert("tiny", raw, tmp_path / "out")
    write_release(raw, mixed_records())
    assert convert("tiny", raw, tmp_path / "out").converted
    convert("tiny", raw, tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
    (tmp_path / "out/tiny/train/shard-00001.parquet").unlink()
    assert convert("tiny", raw, tmp_path / "out").converted
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


@pytest.mark.parametrize("jobs", [2, 3])
def test_any_number_of_processes_gives_the_same_bytes(tmp_path: Path, jobs: int) -> None:
    raw = write_release(tmp_path / "raw", mixed_records())
    done: list[int] = []
    convert("tiny", raw, tmp_path / "one")
    convert("tiny", raw, tmp_path / "several", jobs=jobs, progress=done.append)
    assert tree(tmp_path / "one") == tree(tmp_path / "several")
    assert sum(done) == 22


def _killed_at(step: int, late: bool, work: Callable[[], object]) -> bool:
    """Do the work in a fork that is killed (SIGKILL) at its step-th change of the file system; whether it was."""

    def run() -> None:
        steps = count(1)
        originals = {name: getattr(os, name) for name in ("replace", "unlink", "rmdir", "mkdir")}
        for name, original in originals.items():

            def change(*args: Any, do: Any = original, **options: Any) -> None:
                now = next(steps)
                if now == step and not late:
                    os.kill(os.getpid(), signal.SIGKILL)
                try:
                    do(*args, **options)
                finally:
                    if now == step:
                        os.kill(os.getpid(), signal.SIGKILL)

            setattr(os, name, change)
        work()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


EVERY = pytest.mark.parametrize(
    "every", [pytest.param(3, id="every third"), pytest.param(1, id="each", marks=pytest.mark.full)]
)
"""Which of the changes a conversion is killed at; an odd number, as it is killed before one and behind the next."""


@EVERY
def test_killed_at_any_change_of_the_file_system_it_goes_on_to_the_same_bytes(tmp_path: Path, every: int) -> None:
    raw = write_release(tmp_path / "raw", mixed_records())
    convert("tiny", raw, tmp_path / "whole")
    expected = tree(tmp_path / "whole")
    for step in count(1, every):
        out = tmp_path / f"out{step}"
        # What lies there from before has another plan: its traces must go, at whatever moment we are stopped.
        convert("tiny", raw, out, limit=9)
        killed = _killed_at(step, step % 2 == 0, lambda out=out: convert("tiny", raw, out))  # type: ignore[misc]
        convert("tiny", raw, out)
        assert tree(out) == expected, f"stopped at change {step}"
        if not killed:
            break
    assert step > 25


@EVERY
def test_stopped_while_it_removes_another_plan_s_shards_the_other_plan_starts_afresh(
    tmp_path: Path, every: int
) -> None:
    raw = write_release(tmp_path / "raw", mixed_records())
    convert("tiny", raw, tmp_path / "whole", limit=9)
    expected = tree(tmp_path / "whole")
    for step in range(1, 25, every):
        out = tmp_path / f"out{step}"
        assert _killed_at(20, True, lambda out=out: convert("tiny", raw, out, limit=9))  # type: ignore[misc]
        assert (out / "tiny/train/.partial/shard-00001.json").exists()
        assert _killed_at(step, step % 2 == 0, lambda out=out: convert("tiny", raw, out))  # type: ignore[misc]
        convert("tiny", raw, out, limit=9)
        assert tree(out) == expected, f"stopped at change {step}"


@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_random_moments_it_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    records = [record(number, answers=["answer"] * 10) for number in range(3000)]
    records[2900] = record(7)
    records[1500] = {}
    raw = write_release(tmp_path / "raw", records)
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, signal, sys, threading
        from pathlib import Path
        from instructkit import sources
        from instructkit.conversion import convert as conversion

        main, goal, delay = os.getpid(), int(sys.argv[1]), float(sys.argv[2])
        partial, replace = Path({str(tmp_path / "out/tiny/train/.partial")!r}), os.replace

        def replace_and_end(old, new):
            replace(old, new)
            if goal and len(list(partial.glob("shard-*.json"))) >= goal:
                if not delay:
                    os.kill(main, signal.SIGKILL)
                timer = threading.Timer(delay, os.kill, (main, signal.SIGKILL))
                timer.daemon = True
                timer.start()

        os.replace = replace_and_end
        sources.__path__.append({str(TINY)!r})
        conversion.SHARD_RECORDS = 50
        conversion.convert("tiny", Path({str(raw)!r}), Path({str(tmp_path / "out")!r}), jobs={jobs})
        """)
    )

    def run(goal: int, delay: float) -> int:
        """Convert, until so many seconds after that many shards are there; the exit code."""
        return subprocess.run([sys.executable, str(script), str(goal), str(delay)], timeout=600).returncode

    rng = random.Random(jobs)
    partial = tmp_path / "out/tiny/train/.partial"
    kept = [0]
    for goal in sorted(rng.sample(range(1, 56), 4)):
        # The first kill comes at once, so that one falls inside; a slow machine may finish before a later one.
        code = run(goal, 0 if len(kept) == 1 else rng.uniform(0, 0.02))
        if (tmp_path / "out/tiny/train/manifest.json").exists():
            break
        assert code == -signal.SIGKILL
        kept.append(len(list(partial.glob("shard-*.json"))))
    assert len(kept) > 1, "no kill fell inside the conversion"
    assert kept == sorted(kept), "a conversion that goes on keeps what is there"
    assert run(0, 0) == 0
    monkeypatch.setattr(conversion, "SHARD_RECORDS", 50)
    convert("tiny", raw, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert len(rejects(tmp_path / "out/tiny/train")) == 2


def test_two_conversions_into_one_folder_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "_LOCK_SECONDS", 1)
    raw = write_release(tmp_path / "raw", mixed_records())
    refused: list[int] = []

    def progress(records: int) -> None:
        if refused:
            return
        with pytest.raises(UserError, match="another conversion is writing here"):
            convert("tiny", raw, tmp_path / "out")
        refused.append(records)

    convert("tiny", raw, tmp_path / "out", jobs=2, progress=progress)
    assert refused


def test_check_images_rejects_what_cannot_be_shown(tmp_path: Path) -> None:
    shards._look_at.cache_clear()
    raw = write_release(tmp_path / "raw", [record(number, image=f"{number % 6}.png") for number in range(12)])
    for number in (0, 1, 2):
        Image.new("RGB", (20, 20)).save(raw / f"{number}.png")
    (raw / "3.png").write_text("no picture")
    Image.new("RGB", (1, 1)).save(raw / "4.png")
    outcome = convert("tiny", raw, tmp_path / "out", check_images=True)
    assert ids(outcome.folder) == ["0", "1", "2", "6", "7", "8"]
    assert outcome.manifest.media == {"checked": 6, "missing": 1, "broken": 2}
    told = {key: reason for _, key, reason in rejects(outcome.folder)}
    assert list(told) == ["3", "4", "5", "9", "10", "11"]
    assert "not a picture" in told["3"]
    assert "1 x 1 pixels" in told["4"]
    assert told["5"].endswith("5.png: missing")
    assert "6 media files checked, 1 missing, 2 broken" in outcome.summary()

    again = convert("tiny", raw, tmp_path / "out", check_images=True)
    assert again.converted, "with something amiss the media are looked at again"
    convert("tiny", raw, tmp_path / "several", check_images=True, jobs=2)
    assert tree(tmp_path / "out") == tree(tmp_path / "several")

    for number in (3, 4, 5):
        Image.new("RGB", (20, 20)).save(raw / f"{number}.png")
    shards._look_at.cache_clear()
    whole = convert("tiny", raw, tmp_path / "out", check_images=True)
    assert whole.manifest.media == {"checked": 6, "missing": 0, "broken": 0}
    assert not convert("tiny", raw, tmp_path / "out", check_images=True).converted


def test_each_picture_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards._look_at.cache_clear()
    looked: list[Path] = []
    monkeypatch.setattr(shards, "check_media", lambda path: looked.append(path))
    raw = write_release(tmp_path / "raw", [record(number, image=f"{number % 3}.png") for number in range(12)])
    for number in range(3):
        (raw / f"{number}.png").touch()
    convert("tiny", raw, tmp_path / "out", check_images=True)
    assert sorted(path.name for path in looked) == ["0.png", "1.png", "2.png"]


def test_images_folder_replaces_the_default(tmp_path: Path) -> None:
    raw = write_release(tmp_path / "raw", [record(0)])
    with pytest.raises(UserError, match="no such folder of images"):
        convert("tiny", raw, tmp_path / "out", images=tmp_path / "none")
    (tmp_path / "pictures").mkdir()
    outcome = convert("tiny", raw, tmp_path / "out", images=tmp_path / "pictures")
    assert load_examples(outcome.folder).media_path("0.png") == tmp_path / "pictures/0.png"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_file_that_breaks_off_is_an_error(tmp_path: Path, jobs: int) -> None:
    raw = write_release(tmp_path / "raw", mixed_records())
    content = (raw / "list.json").read_bytes()
    (raw / "list.json").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"list\.json: breaks off"):
        convert("tiny", raw, tmp_path / "out", jobs=jobs)
    assert not list((tmp_path / "out").rglob("manifest.json"))
    (raw / "list.json").write_bytes(content)
    convert("tiny", raw, tmp_path / "out", jobs=jobs)
    convert("tiny", raw, tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_what_cannot_be_asked_for(tmp_path: Path) -> None:
    raw = write_release(tmp_path / "raw", [record(0)])
    with pytest.raises(UserError, match="did you mean tiny"):
        convert("tiney", raw, tmp_path / "out")
    with pytest.raises(UserError, match="no split 'dev'; it has train, test"):
        convert("tiny", raw, tmp_path / "out", split="dev")
    with pytest.raises(UserError, match="no such folder"):
        convert("tiny", tmp_path / "none", tmp_path / "out")
    with pytest.raises(UserError, match=r"none of list\.json is here"):
        convert("tiny", tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="uses the examples of vqav2"):
        convert("vqg_vqav2", raw, tmp_path / "out")


def test_ids_with_equal_hashes_are_not_taken_for_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.setattr(shards, "hash_texts", lambda texts: np.full(len(list(texts)), 7, "<u8"))
    raw = write_release(tmp_path / "raw", [record(number) for number in range(9)])
    assert convert("tiny", raw, tmp_path / "out").manifest.examples == 9
