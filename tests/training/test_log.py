"""The log keeps what a run that goes on will not write again."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import wandb

from instructkit.runs.log import RunLog


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


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
    assert (tmp_path / "run.log").read_text(encoding="utf-8") == expected
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


@pytest.mark.parametrize("offline", [True, False])
def test_weights_and_biases_gets_the_same_numbers_and_is_quiet(tmp_path, monkeypatch, capfd, offline):
    started, logged, finished = [], [], []

    def init(**options):
        started.append(options)
        return SimpleNamespace(
            offline=offline,
            url="https://wandb.example/p/run",
            settings=SimpleNamespace(sync_dir=tmp_path / "wandb/offline-run"),
            log=lambda values, step: logged.append((step, values)),
            finish=lambda: finished.append(True),
        )

    monkeypatch.setattr(wandb, "init", init)
    if offline:
        monkeypatch.setenv("WANDB_MODE", "offline")
    else:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with RunLog(tmp_path / "run", {"seed": 7}, "p") as log:
        log.metrics(10, **{"loss": 2.5, "mean_loss/easy_vqa": 2.25})
        log.metrics(10, **{"watch/easy_vqa": 41.5, "best_step": 10, "gradient_norm": None})
        log.metrics(20, loss=1.5)
        assert not finished
    place = tmp_path / "wandb/offline-run" if offline else "https://wandb.example/p/run"
    assert capfd.readouterr() == (f"wandb     {place}\n", "")
    assert logged == [
        (10, {"loss": 2.5, "mean_loss/easy_vqa": 2.25}),
        (10, {"watch/easy_vqa": 41.5, "best_step": 10}),
        (20, {"loss": 1.5}),
    ]
    assert [{"step": step, **values} for step, values in logged] == lines(tmp_path / "run")
    (options,) = started
    settings = options.pop("settings")
    assert options == {"project": "p", "dir": str(tmp_path / "run"), "name": "run", "config": {"seed": 7}}
    assert (settings.silent, settings.console) == (True, "off")
    assert finished == [True]


@pytest.mark.parametrize("mode", ["disabled", "online"])
def test_without_a_key_weights_and_biases_is_left_alone(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(wandb, "init", lambda **options: pytest.fail("it was started"))
    with RunLog(tmp_path, {}, "p") as log:
        log.metrics(1, loss=1.0)


def test_a_number_that_json_lacks_is_an_error_and_no_line(tmp_path):
    with RunLog(tmp_path, {}, "p") as log, pytest.raises(ValueError, match="JSON compliant"):
        log.metrics(1, loss=float("nan"))
    assert lines(tmp_path) == []
