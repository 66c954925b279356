import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
import torch

from instructkit import cli, sources
from instructkit.conversion.convert_all import needed_splits
from instructkit.data.dataset import find_datasets, load_examples, read_manifest
from tests.evaluation.world import World
from tests.miniatures import write_release as write_world
from tests.test_conversion import TINY, record
from tests.test_conversion import write_release as write_records

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(TINY)])

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["instructkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return run


def write_release(raw: Path, records: list[Any]) -> Path:
    """A release of the source tiny with its pictures."""
    write_records(raw, records)
    for each in records:
        if "image" in each:
            (raw / each["image"]).touch()
    return raw


def last_line(text: str) -> str:
    return text.rstrip().splitlines()[-1]


def test_convert_tells_what_came_out(run: Run, tmp_path: Path) -> None:
    raw = write_release(tmp_path / "raw", [record(number) for number in range(3)])
    code, out, _ = run("convert", "tiny", "--raw", raw, "--out", tmp_path / "out", "--jobs", 2)
    folder = tmp_path / "out/tiny/train"
    assert (code, last_line(out)) == (0, f"{folder}: 3 examples, 0 of 3 records rejected, published 3: agrees")
    assert "note: tiny is made up" in out
    code, out, _ = run("convert", "tiny", "--raw", raw, "--out", tmp_path / "out")
    assert code == 0
    assert "nothing changed" in out
    assert last_line(out).startswith(f"{folder}: 3 examples")


def test_too_many_rejects_end_with_code_1_and_the_reason(run: Run, tmp_path: Path) -> None:
    raw = write_release(tmp_path / "raw", [record(number) for number in range(98)] + [{}, {"id": 3}])
    code, out, err = run("convert", "tiny", "--raw", raw, "--out", tmp_path / "out", "--jobs", 1)
    assert code == 1
    assert "98 examples, 2 of 100 records rejected" in out
    assert "2 of 100 records (2.0%, more than 1%) do not fit, see" in last_line(err)
    assert "the first: list.json, 98: Object missing required field `id`" in last_line(err)
    code, _, err = run("convert", "tiny", "--raw", raw, "--out", tmp_path / "out", "--jobs", 1)
    assert code == 1, "rejects count again when nothing has changed"
    write_release(raw, [record(number) for number in range(99)] + [{}])
    for arguments in (["tiny", "--raw", raw], ["all", "--raw", raw.parent]):
        code, out, _ = run("convert", *arguments, "--out", tmp_path / "out", "--jobs", 1)
        assert code == 0
        assert "note: rejected list.json, 99: Object missing required field `id`" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "tiney", "--raw", ".", "--out", "out"], "no source is called 'tiney'; did you mean tiny"),
        (["convert", "tiny", "--out", "out"], "tiny: name the folder of its release with --raw"),
        (["convert", "tiny", "--raw", "none", "--out", "out"], "none: no such folder"),
        (["convert", "tiny", "--raw", ".", "--out", "out"], "none of list.json is here"),
        (["convert", "tiny", "--raw", ".", "--out", "out", "--split", "dev"], "has no split 'dev'"),
        (["convert", "vqg_vqav2", "--raw", ".", "--out", "out"], "uses the examples of vqav2"),
        (["convert", "all", "--out", "out"], "convert all: name the folder"),
        (["convert", "all", "--raw", "none", "--out", "out"], "none: no such folder"),
        (["convert", "all", "--raw", ".", "--out", "out", "--split", "val"], "--split is 'all' or not given"),
        (["convert", "all", "--raw", ".", "--out", "out"], "holds no release that could be converted"),
        (["sources", "tiney"], "did you mean tiny"),
        (["render", "none"], "none: no such folder"),
        (["render", "."], "no converted dataset in or below it"),
        (["render", ".", "--format", "xml"], "no format is called 'xml'; there are preview, text, messages, llava"),
        (["mixture", "none"], "none: no such folder"),
    ],
)
def test_mistakes_are_one_line_and_code_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*arguments)
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("instructkit: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err


def test_sources_lists_all(run: Run) -> None:
    code, out, _ = run("sources")
    assert code == 0
    heading, _, *rows = out.splitlines()
    assert heading.split() == ["name", "task", "role", "split", "examples", "home", "licence"]
    assert [row.split()[0] for row in rows] == sources.names()
    (line,) = [row for row in rows if row.startswith("vqav2 ")]
    assert line.split()[:6] == ["vqav2", "vqa", "held-in", "train", "443,757", "https://visualqa.org"]


def test_sources_json_holds_the_facts(run: Run) -> None:
    facts = {entry["name"]: entry for entry in json.loads(run("sources", "--json")[1])}
    assert sorted(facts) == sources.names()
    assert all(
        {"name", "task", "role", "split", "splits", "files", "published", "licence", "home"} <= set(entry)
        for entry in facts.values()
    )
    assert {entry["role"] for entry in facts.values()} == {"held-in", "held-out", "extra"}
    entry = facts["vqav2"]
    assert (entry["task"], entry["role"], entry["split"], entry["published"]) == ("vqa", "held-in", "train", 443_757)
    assert entry["files"] == ["v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"]
    assert entry["splits"]["val"]["published"] == 214_354
    assert facts["vqg_vqav2"]["examples_of"] == "vqav2"
    assert [entry["name"] for entry in json.loads(run("sources", "vqav2", "--json")[1])] == ["vqav2"]


def test_one_source_shows_its_folder_and_its_record(run: Run) -> None:
    code, out, _ = run("sources", "vqav2")
    assert code == 0
    assert "├── v2_mscoco_train2014_annotations.json" in out
    record_part = out[out.index("\nrecord\n") :]
    assert "answers: list of Answer" in record_part
    assert "  Answer:\n    answer: string" in record_part
    assert "question_id: integer" in record_part
    for source in sources.sources():
        shown = run("sources", source.name)[1]
        for field in msgspec.structs.fields(source.record):
            assert f"  {field.encode_name}: " in shown


def first_rows(out: str) -> dict[str, list[str]]:
    """The first row of each source in the table of `convert all`."""
    rows: dict[str, list[str]] = {}
    for line in out.splitlines()[2:]:
        if line.split()[1].endswith(":") or line.split()[1] == "found,":
            break
        rows.setdefault(line.split()[0], line.split())
    return rows


def test_convert_all_converts_what_it_finds(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "raw"
    listed = [source.name for source in sources.sources() if not source.own]
    names = [source.name for source in sources.sources() if source.examples_of is None and not source.own]
    names = [name for name in names if name not in ("easy_vqa", "tiny", "msvd_qa")]
    for name in names:
        write_world(name, root / name)
    write_release(root / "another folder", [record(0), record(1, question="reject me")])
    code, out, _ = run("convert", "all", "--raw", root, "--out", tmp_path / "out", "--jobs", 1)
    assert code == 1, "half of tiny is rejected"
    rows = first_rows(out)
    assert sorted(rows) == listed
    assert rows["vqav2"][1:] == ["train", "converted", "3", "0", "443,757", "differs"]
    assert rows["tiny"][1:] == ["train", "converted", "1", "1", "3", "differs"]
    assert rows["msvd_qa"][2] == rows["easy_vqa"][2] == "missing"
    assert rows["vqg_vqav2"][2:4] == ["needs", "none"]
    assert "vqg_vqav2 train: uses the examples of vqav2" in out
    assert "tiny train: 1 of 2 records (50.0%, more than 1%) do not fit" in out
    splits = sum(len(needed_splits(sources.source(name))) for name in names)
    missing = len(needed_splits(sources.source("msvd_qa"))) + len(needed_splits(sources.source("easy_vqa")))
    assert last_line(out) == f"{splits + 1} found, {missing} missing, 1 failed"
    assert len(find_datasets(tmp_path / "out")) == splits + 1
    assert {row[2] for name, row in rows.items() if name in names} == {"converted"}

    out = run("convert", "all", "--raw", root, "--out", tmp_path / "out", "--jobs", 1)[1]
    rows = first_rows(out)
    assert {row[2] for name, row in rows.items() if name in names} == {"unchanged"}

    code, out, _ = run("mixture", tmp_path / "out", "--set", "aokvqa=0.5")
    assert code == 0
    shares = {line.split()[0]: line.split()[1:] for line in out.splitlines()[2:-1]}
    held_in = {source.name for source in sources.sources() if source.role == "held-in"}
    more = {name for name in names if sources.source(name).role == "extra"}
    assert set(shares) == held_in | more | {"tiny"}
    assert shares["vqg_vqav2"] == shares["vqav2"]
    assert sum(float(share) for _, share in shares.values()) == pytest.approx(1, abs=0.002)
    assert float(shares["aokvqa"][1]) == pytest.approx(float(shares["vqg_aokvqa"][1]) / 2, abs=2e-4)
    assert "left out, as they are for evaluation:" in last_line(out)
    assert "gqa/testdev" in last_line(out)


def test_convert_all_takes_every_split_on_request(run: Run, tmp_path: Path) -> None:
    write_world("vqav2", tmp_path / "raw" / "vqav2")
    run("convert", "all", "--raw", tmp_path / "raw", "--out", tmp_path / "out", "--split", "all", "--jobs", 1)
    found = [str(path.relative_to(tmp_path / "out")) for path in find_datasets(tmp_path / "out")]
    assert found == ["vqav2/test", "vqav2/test-dev", "vqav2/train", "vqav2/val"]


def test_convert_all_is_all_that_the_held_out_benchmarks_need(run: Run, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    root, out = tmp_path / "raw", tmp_path / "out"
    held_out = [source.name for source in sources.sources() if source.role == "held-out"]
    for name in held_out:
        write_world(name, root / name)
    assert run("convert", "all", "--raw", root, "--out", out, "--jobs", 1)[0] == 0
    model = World(tmp_path / "world").model()
    run("evaluate", "--model", model, "--data", out, "--benchmarks", "held-out", "--out", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    reached = {entry["protocol"]["source"] for entry in report["benchmarks"].values()}
    assert report["not_evaluated"] == []
    assert reached == set(held_out)
    assert len(reached) == 13
    for format in ("preview", "text", "messages", "llava"):
        code, _, err = run("render", out, "--format", format, "--out", tmp_path / f"{format}.txt")
        assert code == 0, err
        assert ("left out" in err) == (format != "preview"), "a preview ends before the first example without answer"


def test_a_score_without_the_ocr_tokens_of_the_release_says_so(run: Run, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    raw, out = tmp_path / "textvqa", tmp_path / "out"
    write_world("textvqa", raw)
    (raw / "TextVQA_Rosetta_OCR_v0.2_val.json").unlink()
    assert "note: " in run("convert", "textvqa", "--raw", raw, "--out", out, "--jobs", 1)[1]
    model = World(tmp_path / "world").model()
    asked = ["evaluate", "--model", model, "--data", out, "--benchmarks", "textvqa", "--out", tmp_path / "run"]
    told = "TextVQA_Rosetta_OCR_v0.2_val.json is not here: the release gives no OCR tokens"
    code, printed, _ = run(*asked)
    assert code == 0
    assert any(line.startswith("note      TextVQA: ") and told in line for line in printed.splitlines())
    for name in ("report.md", "report.html", "report.json"):
        assert told in (tmp_path / "run" / "report" / name).read_text().replace("\\", "")


@pytest.mark.parametrize("given", ["too high", "too low"])
def test_convert_all_names_the_folder_that_is_meant(run: Run, tmp_path: Path, given: str) -> None:
    meant = tmp_path / "around" / "raw"
    write_world("vqav2", meant / "vqav2")
    (meant / "notes").mkdir()
    raw = meant.parent if given == "too high" else meant / "notes"
    code, _, err = run("convert", "all", "--raw", raw, "--out", tmp_path / "out", "--jobs", 1)
    assert code == 2
    assert last_line(err).endswith(f"did you mean --raw {meant}?")


def test_convert_all_does_not_guess_between_two_sources(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "videos"
    write_world("msvd_qa", folder)
    code, out, _ = run("convert", "all", "--raw", tmp_path / "raw", "--out", tmp_path / "out", "--jobs", 1)
    assert code == 2
    told = f"{folder}: could be {{}} or {{}}; rename it to the source's name"
    assert f"msvd_qa test: {told.format('msvd_qa', 'msrvtt_qa')}" in out
    assert f"msrvtt_qa test: {told.format('msrvtt_qa', 'msvd_qa')}" in out
    folder.rename(tmp_path / "raw" / "msvd_qa")
    code, out, _ = run("convert", "all", "--raw", tmp_path / "raw", "--out", tmp_path / "out", "--jobs", 1)
    assert (code, last_line(out).split()[0]) == (0, str(len(needed_splits(sources.source("msvd_qa")))))


def test_render_writes_formats_to_a_file_or_the_terminal(run: Run, tmp_path: Path) -> None:
    write_world("vqav2", tmp_path / "raw")
    run("convert", "vqav2", "--raw", tmp_path / "raw", "--out", tmp_path / "out", "--jobs", 1)
    code, out, _ = run("render", tmp_path / "out")
    assert code == 0
    assert out.count("wording") == 3
    assert "COCO_train2014_000000000001.jpg" in out
    assert run("render", tmp_path / "out", "--seed", "1")[1] != out
    code, out, _ = run("render", tmp_path / "out", "--format", "messages", "--limit", 2)
    assert [set(json.loads(line)) for line in out.splitlines()] == [{"id", "messages", "images"}] * 2
    code, out, _ = run("render", tmp_path / "out", "--format", "llava", "--out", tmp_path / "llava.json")
    assert (code, out) == (0, f"wrote {tmp_path / 'llava.json'}\n")
    assert len(json.loads((tmp_path / "llava.json").read_text())) == 3


def test_easy_vqa_needs_no_raw_folder(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("convert", "easy_vqa", "--out", tmp_path / "out", "--split", "test", "--limit", 20)
    assert code == 0
    assert "20 examples" in out
    data = load_examples(tmp_path / "out/easy_vqa/test")
    assert data.media_path(data[0].images[0]).is_file()


def test_weights_must_be_numbers_of_datasets_that_are_there(run: Run, tmp_path: Path) -> None:
    write_release(tmp_path / "raw", [record(0)])
    run("convert", "tiny", "--raw", tmp_path / "raw", "--out", tmp_path / "out", "--jobs", 1)
    assert "must be NAME=FACTOR" in run("mixture", tmp_path / "out", "--set", "tiny")[2]
    assert "no such dataset" in run("mixture", tmp_path / "out", "--set", "tiney=2")[2]
    code, out, _ = run("mixture", tmp_path / "out", "--set", "tiny=2")
    assert (code, out.splitlines()[2].split()) == (0, ["tiny", "1", "1.0000"])


def test_question_generation_counts_in_the_mixture(run: Run, tmp_path: Path) -> None:
    write_world("vqav2", tmp_path / "raw")
    for split in ("train", "val"):
        run("convert", "vqav2", "--raw", tmp_path / "raw", "--out", tmp_path / "out", "--split", split, "--jobs", 1)
    out = run("mixture", tmp_path / "out")[1]
    assert [line.split() for line in out.splitlines()[2:4]] == [["vqav2", "3", "0.5000"], ["vqg_vqav2", "3", "0.5000"]]
    assert last_line(out).endswith("vqav2/val")
    assert "no dataset for training here" in run("mixture", tmp_path / "out/vqav2/val")[2]


def test_the_command_itself(tmp_path: Path) -> None:
    """As a process of its own: quick to start, a closed pipe is no traceback, the files are read by plain pyarrow."""
    modules = "instructkit.cli, instructkit.conversion.catalogue, instructkit.sources as s"
    script = f"import sys, {modules}; s.sources(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "datasets", "deepspeed"}.isdisjoint(loaded.stdout.split())
    assert "msgspec" in loaded.stdout.split()
    command = f"{sys.executable} -m instructkit.cli"
    closed = subprocess.run(f"{command} sources --json | head -c 20", shell=True, capture_output=True, text=True)
    assert closed.stderr == ""
    write_world("vqav2", tmp_path / "raw")
    done = subprocess.run(
        [*command.split(), "convert", "vqav2", "--raw", tmp_path / "raw", "--out", tmp_path / "out", "--check-images"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "3 media files checked, 0 missing, 0 broken" in done.stdout
    manifest = read_manifest(tmp_path / "out/vqav2/train")
    assert pq.read_table(tmp_path / "out/vqav2/train" / next(iter(manifest.shards))).num_rows == 3
    failed = subprocess.run([*command.split(), "convert", "esay_vqa", "--out", "x"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr == "instructkit: no source is called 'esay_vqa'; did you mean easy_vqa?\n"


INTERRUPTED = """
import dataclasses, sys, time
from pathlib import Path
from instructkit import cli, sources
from instructkit.conversion import convert as conversion

sources.__path__.append({tiny!r})
conversion.SHARD_RECORDS = 50
tiny = sources.module("tiny")
read = tiny.read

def read_and_wait(raw, split):
    reading = read(raw, split)

    def records():
        yield from reading.records
        Path({here!r}).touch()
        time.sleep(600)

    return dataclasses.replace(reading, records=records())

tiny.read = read_and_wait
cli.main()
"""


def test_an_interrupted_conversion_says_how_to_go_on(tmp_path: Path) -> None:
    raw, here = write_release(tmp_path / "raw", [record(number) for number in range(200)]), tmp_path / "here"
    words = ["convert", "tiny", "--raw", str(raw), "--out", str(tmp_path / "out"), "--jobs", "2"]
    script = INTERRUPTED.format(tiny=str(TINY), here=str(here))
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not here.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: to the workers, too
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 130, told
    assert last_line(told) == "instructkit: stopped; the same command goes on from here"
    assert "Traceback" not in told
