"""The log keeps what a run that goes on will not write again."""

from __future__ import annotations

import json

import pytest

from instructkit.training.log import RunLog


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


def test_a_number_that_json_lacks_is_an_error_and_no_line(tmp_path):
    with RunLog(tmp_path, {}, "p") as log, pytest.raises(ValueError, match="JSON compliant"):
        log.metrics(1, loss=float("nan"))
    assert lines(tmp_path) == []
