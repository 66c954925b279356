"""Damaged folders and disks that refuse: one line with the file and what to do, and what was whole stays."""

from __future__ import annotations

import errno
import gc
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from instructkit.errors import UserError
from instructkit.evaluation.responses import Response, ResponseLog
from instructkit.evaluation.run import read_evaluation
from instructkit.files import read_json, replacing, write_atomically
from instructkit.models.load.trained import load_tokenizers
from instructkit.reports.compare import write_comparison
from instructkit.reports.curve import log_lines
from instructkit.reports.opened import Report
from instructkit.reports.report import finished_report, read_report
from instructkit.runs.lock import locked
from instructkit.runs.log import RunLog
from instructkit.runs.ranks import Ranks
from instructkit.runs.run import Run
from instructkit.training.checkpoints import COMPLETE, last_checkpoint, save_checkpoint, torn
from tests.runs.test_ending import ended

DEEP = b"[" * 100_000
DAMAGED = [
    b"",
    b"{",
    b"[]",
    b"3",
    b"null",
    b"\xff\xfe{}",
    b"{}\0",
    DEEP,
    b'{"benchmarks": 3}',
    b'{"benchmarks": {"x": {}}}',
]


def told(action: Callable[[], object], *parts: str) -> str:
    """The message of an error; it is one short line that has these parts."""
    with pytest.raises(UserError) as caught:
        action()
    said = str(caught.value)
    assert all(part in said for part in parts), said
    assert said.isprintable()
    assert len(said) < 1000
    return said


# ---- damaged files ----


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_report_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "report" / "report.json"
    path.parent.mkdir()
    path.write_bytes(content)
    told(lambda: finished_report(tmp_path, {}), f"{path}: damaged", "remove it, and resume=true writes it anew")
    for read in (read_report, Report, lambda folder: write_comparison([folder], tmp_path)):
        told(lambda read=read: read(tmp_path), f"{path}: damaged", "evaluate the run again")


def test_a_folder_in_the_place_of_a_report_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "report" / "report.json").mkdir(parents=True)
    assert not finished_report(tmp_path, {})
    told(lambda: read_report(tmp_path), "no report here")


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_evaluation_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "evaluation" / "results.json"
    path.parent.mkdir()
    path.write_bytes(content)
    told(lambda: read_evaluation(tmp_path), f"{path}: damaged", "evaluate again")


BAD_LINES = [b"\xff\xfe", b"[]", b"7", b"{}", b'{"step": null}', b'{"step": "2"}', b'{"step": 1', DEEP]


def test_damaged_lines_of_a_log_are_counted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    good = [f'{{"step": {step}, "loss": 0.5}}\n'.encode() for step in (1, 2, 5)]
    path.write_bytes(good[0] + b"".join(line + b"\n" for line in BAD_LINES) + good[1] + good[2] + b'{"step": 6, "lo')
    told(lambda: log_lines(tmp_path), f"{path}: damaged", "resume=true leaves out what cannot be read")
    with RunLog(tmp_path, {}, None) as log:
        log.rewind(2)
    assert path.read_bytes() == good[0] + good[1]
    assert capsys.readouterr().out == f"resume    {path}: {len(BAD_LINES)} damaged lines are left out\n"
    assert [line["step"] for line in log_lines(tmp_path)] == [1, 2]
    assert isinstance(log_lines(tmp_path)[0]["step"], int)


class Engine:
    """Writes as DeepSpeed does."""

    def __init__(self, numbers: int) -> None:
        self.state = {"module": torch.zeros(numbers)}

    def save_checkpoint(self, folder: str, tag: str, **options: Any) -> None:
        (Path(folder) / tag).mkdir()
        torch.save(self.state, Path(folder) / tag / "mp_rank_00_model_states.pt")


def checkpoints(folder: Path) -> Path:
    """Those of steps 1 and 2."""
    for step in (1, 2):
        save_checkpoint(Engine(10), folder / "checkpoints", step, {}, keep=5)
    return folder / "checkpoints"


@pytest.mark.parametrize(
    "content",
    [
        *DAMAGED,
        b'{"step": 2, "facts": {}, "progress": {}, "best": null, "files": []}',
        b'{"step": 2, "facts": {}, "progress": {}, "best": null, "files": {"a": 3}}',
        b'{"step": 2, "facts": {}, "progress": {}, "best": null, "files": {"a": [1]}}',
        b'{"step": 2, "facts": {}, "progress": {}, "best": null, "files": {}}',
        b'{"step": "2", "facts": {}, "progress": {}, "best": null, "files": {}}',
        b'{"step": 2, "facts": [], "progress": {}, "best": null, "files": {}}',
    ],
)
def test_a_checkpoint_with_a_damaged_list_is_torn(tmp_path: Path, content: bytes) -> None:
    root = checkpoints(tmp_path)
    (root / "step-00000002" / COMPLETE).write_bytes(content)
    said: list[str] = []
    assert last_checkpoint(root, said.append) == root / "step-00000001"
    assert len(said) == 1
    assert f"{root / 'step-00000002'}: " in said[0]
    save_checkpoint(Engine(10), root, 3, {}, keep=1)
    assert [path.name for path in root.iterdir()] == ["step-00000003"]


def test_what_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    root = checkpoints(tmp_path)
    (root / "step-of-mine").mkdir()
    (root / "step-00000009").write_text("a note")
    assert last_checkpoint(root, pytest.fail) == root / "step-00000002"
    save_checkpoint(Engine(10), root, 3, {}, keep=1)
    assert {path.name for path in root.iterdir()} == {"step-of-mine", "step-00000009", "step-00000003"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"model": {"type": "none"}}'])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenisers_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    for each in ("llm", "qformer"):
        (tmp_path / each).mkdir()
        (tmp_path / each / name).write_bytes(content)
    told(lambda: load_tokenizers(tmp_path), f"{tmp_path / 'llm'}: no tokeniser can be read there")


IDENTITY = {"model": "m", "limit": None}


def answered(folder: Path) -> ResponseLog:
    log = ResponseLog(folder, Ranks())
    log.open(IDENTITY, [["a"], ["b"]], media={"a.png": (1, 2)})
    log.append([Response(example="a", images=["a.png"], text="yes")])
    log.append([Response(example="b", text="no")])
    return log


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", DEEP])
def test_a_damaged_identity_of_responses_is_named_or_replaced(tmp_path: Path, content: bytes) -> None:
    path = answered(tmp_path).folder / "identity.json"
    path.write_bytes(content)
    again = ResponseLog(tmp_path, Ranks())
    told(lambda: again.open(IDENTITY, [["a"], ["b"]]), f"{path}: damaged", f"remove {tmp_path} and evaluate again")
    assert again.open(IDENTITY, [["a"], ["b"]], replace=True) == [0, 1]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", DEEP])
def test_a_damaged_list_of_media_is_named(tmp_path: Path, content: bytes) -> None:
    path = answered(tmp_path).folder / "media.json"
    path.write_bytes(content)
    again = ResponseLog(tmp_path, Ranks())
    told(lambda: again.open(IDENTITY, [["a"], ["b"]], media={"a.png": (1, 2)}), f"{path}: damaged")


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[]", b"{}", b'{"example": 3}', DEEP, b""])
def test_a_damaged_response_is_asked_for_again(tmp_path: Path, line: bytes) -> None:
    log = answered(tmp_path)
    first, second = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(line + b"\n" + second)
    told(log.answers, f"{log.path}: damaged")
    again = ResponseLog(tmp_path, Ranks())
    assert again.open(IDENTITY, [["a"], ["b"]]) == [0]
    assert again.damaged == 1
    assert log.path.read_bytes() == second != first


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    told(lambda: read_json(tmp_path, Any, "do so"), f"{tmp_path}: cannot be read (Is a directory); do so")


# ---- places that are taken ----


def begin(folder: Path, *, anew: bool = False) -> None:
    """Take a folder as a run does."""
    with locked(folder), closing(RunLog(folder, {}, None)) as log:
        Run(None, folder, 0, 1, log).begin(anew=anew)


@pytest.mark.parametrize("name", ["checkpoints", "model", "report", "evaluation"])
def test_a_file_where_a_run_has_a_folder_is_named(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / name).write_text("mine")
    told(lambda: begin(run), f"{run / name}: a file lies where a run has a folder; move it away (or set output=...)")
    assert (run / name).read_text() == "mine"
    begin(run, anew=True)  # which moves it aside itself
    assert (tmp_path / "run.1" / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["config.yaml", "log.jsonl", "run.log"])
def test_a_folder_where_a_run_has_a_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    told(lambda: begin(tmp_path), f"{tmp_path / name}: a folder lies where a run has a file; move it away")
    (tmp_path / name).rmdir()
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").mkdir()
    told(lambda: begin(tmp_path), f"{tmp_path}: cannot be written (Is a directory)")


def test_a_file_in_the_place_of_the_output_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    for output in (tmp_path / "x", tmp_path / "x" / "y"):
        told(lambda output=output: begin(output), f"{output}: {tmp_path / 'x'} is a file, where a folder must be")
    code, lines = ended(tmp_path, f"output={tmp_path / 'x'}")
    assert code == 2
    assert [line for line in lines if "file, where a folder" in line or "Traceback" in line] == [
        f"error: {tmp_path / 'x'}: {tmp_path / 'x'} is a file, where a folder must be; choose another one (output=...)"
    ]
    assert (tmp_path / "x").read_text() == "mine"


# ---- disks that refuse ----


def mounted(folder: Path, options: str) -> None:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here ({done.stderr.strip()})")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MB."""
    folder = tmp_path / "disk"
    mounted(folder, "size=1m")
    yield folder
    gc.collect()  # files that an error has left open
    subprocess.run(["umount", folder], check=True)


def test_a_checkpoint_that_the_disk_does_not_hold_leaves_the_one_before(disk: Path) -> None:
    root = disk / "checkpoints"
    save_checkpoint(Engine(50_000), root, 1, {}, keep=1)
    folder = root / "step-00000002"
    for numbers in (250_000, 190_000):  # breaks off in the weights
        told(
            lambda numbers=numbers: save_checkpoint(Engine(numbers), root, 2, {}, keep=1),
            f"{folder}: cannot be written",
        )
        assert [path.name for path in root.iterdir()] == ["step-00000001"]
        assert torn(root / "step-00000001") is None
    gc.collect()  # torch's writer, which the error has left open
    save_checkpoint(Engine(60_000), root, 2, {}, keep=1)
    assert torn(folder) is None


def test_a_model_that_the_disk_does_not_hold_leaves_the_one_before(disk: Path) -> None:
    model = disk / "model"
    with replacing(model) as aside:
        save_file({"weight": torch.ones(50_000)}, aside / "model.safetensors")
    before = (model / "model.safetensors").read_bytes()

    def again() -> None:
        with replacing(model) as aside:
            save_file({"weight": torch.zeros(300_000)}, aside / "model.safetensors")

    told(again, f"{model}: cannot be written (")
    assert [path.name for path in disk.iterdir()] == ["model"]
    assert (model / "model.safetensors").read_bytes() == before
    (disk / "report.json").write_text("old")
    with pytest.raises(OSError, match="No space") as caught:
        write_atomically(disk / "report.json", b"0" * 2_000_000)
    assert caught.value.errno == errno.ENOSPC
    assert {path.name for path in disk.iterdir()} == {"model", "report.json"}
    assert (disk / "report.json").read_text() == "old"


def test_a_run_on_a_full_disk_ends_in_a_line(disk: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (disk / "rest").write_bytes(b"0" * 2_000_000)
    code, lines = ended(tmp_path, f"output={disk / 'run'}")
    assert code == 2
    (error,) = (line for line in lines if line.startswith("error"))
    assert "No space left on device" in error
    assert "Traceback" not in "\n".join(lines)


def test_a_run_in_a_folder_that_cannot_be_written_ends_in_a_line(disk: Path) -> None:
    run = disk / "run"
    run.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    told(lambda: begin(run), f"{run}: cannot be written (Read-only file system)")
