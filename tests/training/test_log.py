"""The log keeps what a run that goes on will not write again."""

from __future__ import annotations

import json
import struct

import pytest

from instructkit.runs.log import RunLog

LOGGED = {"_step", "loss", "mean_loss/easy_vqa", "watch/easy_vqa", "best_step"}


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def transactions(content):
    """Records of a .wandb file: 7 bytes of header, then LevelDB's log format in blocks of 32 KiB."""
    place, whole = 7, b""
    while place + 7 <= len(content):
        left = -place % 32768
        if 0 < left < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a record in one piece, or the last of several
            yield whole
            whole = b""


@pytest.fixture(autouse=True)
def _no_wandb(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "disabled")


def test_metrics_are_lines_without_what_is_none(tmp_path):
    with RunLog(tmp_path / "run", {}, "p") as log:
        log.metrics(1, loss=0.1 + 0.2, gradient_norm=None)
    assert lines(tmp_path / "run") == [{"step": 1, "loss": 0.1 + 0.2}]


def test_what_the_console_shows_is_kept_in_a_file_run_after_run(tmp_path, capsys):
    for line in ("packing   off, rows are padded: ...", "step 10/20  Größe"):
        with RunLog(tmp_path, {}, "p") as log:
            log.say(line)
            log.rewind(0)
    expected = "packing   off, rows are padded: ...\nstep 10/20  Größe\n"
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == expected
    assert capsys.readouterr().out == expected


def test_rewinding_drops_later_lines_and_one_that_was_cut_off(tmp_path):
    with RunLog(tmp_path, {}, "p") as log:
        for step in (10, 20, 30):
            log.metrics(step, loss=float(step))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4')
    with RunLog(tmp_path, {}, "p") as log:
        log.rewind(20)
        log.metrics(30, loss=3.5)
    assert lines(tmp_path) == [{"step": 10, "loss": 10.0}, {"step": 20, "loss": 20.0}, {"step": 30, "loss": 3.5}]


def test_other_ranks_write_nothing(tmp_path, capsys):
    with RunLog(tmp_path / "run", {}, "p", active=False) as log:
        log.metrics(1, loss=1.0)
        log.rewind(0)
        log.say("line")
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_weights_and_biases_gets_the_same_numbers_offline_and_is_quiet(tmp_path, monkeypatch, capfd):
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    with RunLog(tmp_path, {"seed": 7}, "p") as log:
        log.metrics(10, **{"loss": 2.5, "mean_loss/easy_vqa": 2.25})
        log.metrics(10, **{"watch/easy_vqa": 41.5, "best_step": 10})
        log.metrics(20, loss=1.5)
    said = capfd.readouterr()
    assert said.err == ""
    assert len(said.out.splitlines()) == 1
    assert said.out.startswith(f"wandb     {tmp_path}")
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    history, config = [], {}
    for data in transactions(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            history.append({name: json.loads(value) for name, value in items.items() if not name.startswith("_r")})
        config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    numbers = [{name: value for name, value in row.items() if name in LOGGED} for row in history]
    assert numbers == [
        {"_step": 10, "loss": 2.5, "mean_loss/easy_vqa": 2.25, "watch/easy_vqa": 41.5, "best_step": 10},
        {"_step": 20, "loss": 1.5},
    ]
    assert config["seed"] == 7


def test_a_number_that_json_lacks_is_an_error_and_no_line(tmp_path):
    with RunLog(tmp_path, {}, "p") as log, pytest.raises(ValueError, match="JSON compliant"):
        log.metrics(1, loss=float("nan"))
    assert lines(tmp_path) == []
