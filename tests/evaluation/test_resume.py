"""Killed at any moment and started again, over any number of ranks: the same responses and the same report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from instructkit.config.read import evaluation_settings
from instructkit.errors import UserError
from instructkit.evaluation.responses import Response, ResponseLog
from instructkit.reports.report import failed, write_evaluation_report
from instructkit.runs.ranks import Ranks
from tests.evaluation.world import World, evaluate_on_two_ranks, kill_behind, report_bytes

IDENTITY = {"model": "m", "protocol_version": 1, "limit": None}
BATCHES = [["a", "b"], ["c", "d"], ["e"]]


def response(name: str, error: str | None = None) -> Response:
    return Response(example=name, prompt=f"{name}?", prediction=name, reference=[name], text=name, error=error)


def names(path: Path) -> list[str]:
    return [json.loads(line)["example"] for line in path.read_text().splitlines()]


# ---- the log ----


def test_a_half_batch_and_a_torn_line_are_dropped(tmp_path: Path) -> None:
    log = ResponseLog(tmp_path, Ranks())
    assert log.open(IDENTITY, BATCHES) == [0, 1, 2]
    log.append([response("c"), response("d")])
    log.append([response("a")])
    with log.path.open("ab") as file:
        file.write(msgspec.json.encode(response("b"))[:-3])
    again = ResponseLog(tmp_path, Ranks())
    assert again.open(IDENTITY, BATCHES) == [0, 2]
    assert names(again.path) == ["c", "d"]
    again.append([response("a"), response("b")])
    again.append([response("e")])
    again.close(["a", "b", "c", "d", "e"])
    assert names(again.path) == ["a", "b", "c", "d", "e"]
    assert ResponseLog(tmp_path, Ranks()).open(IDENTITY, BATCHES) == []


def test_a_batch_with_an_error_is_answered_again(tmp_path: Path) -> None:
    log = ResponseLog(tmp_path, Ranks())
    log.open(IDENTITY, BATCHES)
    log.append([response("a"), response("b", error="no such picture")])
    log.append([response("c"), response("d")])
    log.append([response("e")])
    log.close(["a", "b", "c", "d", "e"])
    assert names(log.path) == ["a", "b", "c", "d", "e"]
    assert [answer.error for answer in log.answers()] == [None, "no such picture", None, None, None]
    assert ResponseLog(tmp_path, Ranks()).open(IDENTITY, BATCHES) == [0]


def test_other_ranks_lines_are_taken_over(tmp_path: Path) -> None:
    first, second = ResponseLog(tmp_path, Ranks(0, 1)), tmp_path / "responses.1.jsonl"
    first.open(IDENTITY, BATCHES)
    first.append([response("a"), response("b")])
    lines = [msgspec.json.encode(response(name)) + b"\n" for name in ("c", "d", "e")]
    second.write_bytes(b"".join(lines))
    again = ResponseLog(tmp_path, Ranks())
    assert again.open(IDENTITY, BATCHES) == []
    assert not second.exists()
    assert sorted(names(again.path)) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(("key", "value"), [("model", "other"), ("protocol_version", 2), ("limit", 10)])
def test_responses_of_something_else_are_not_mixed_in(tmp_path: Path, key: str, value: Any) -> None:
    log = ResponseLog(tmp_path, Ranks())
    log.open(IDENTITY, BATCHES)
    log.append([response("a"), response("b")])
    with pytest.raises(UserError, match=f"{key} was .*, is {value!r}.*choose another folder"):
        ResponseLog(tmp_path, Ranks()).open(IDENTITY | {key: value}, BATCHES)
    assert names(log.path) == ["a", "b"]
    assert ResponseLog(tmp_path, Ranks()).open(IDENTITY | {key: value}, BATCHES, replace=True) == [0, 1, 2]
    assert names(log.path) == []


def test_responses_without_identity_are_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "responses.jsonl").write_bytes(msgspec.json.encode(response("a")) + b"\n")
    with pytest.raises(UserError, match="another evaluation"):
        ResponseLog(tmp_path, Ranks()).open(IDENTITY, BATCHES)


# ---- whole evaluations ----


def whole(world: World, out: Path, **options: Any) -> dict[str, bytes]:
    """The report of an evaluation that nobody stopped."""
    world.evaluate("easy_vqa,vqav2", out, **options)
    write_evaluation_report(evaluation_settings(world.settings("easy_vqa,vqav2", out, **options)))
    return report_bytes(out)


def test_killed_and_started_again_the_report_is_the_same(world: World, tmp_path: Path) -> None:
    world.benchmark("easy_vqa")
    world.benchmark("vqav2")
    options = {"limit": 100, "batch_size": 1}
    settings = world.settings("easy_vqa,vqav2", tmp_path / "killed", **options)
    flags = {name.removesuffix(".root").replace("_", "-"): value for name, value in settings.items()}
    words = ["evaluate", *(f"--{name}={value}" for name, value in flags.items())]
    responses = tmp_path / "killed" / "evaluation" / "easy_vqa" / "responses.jsonl"
    kill_behind(10, "instructkit.evaluation.responses:ResponseLog.append", words)
    before = responses.read_bytes()
    assert before.count(b"\n") == 10
    assert not (tmp_path / "killed" / "report").exists()
    world.evaluate("easy_vqa,vqav2", tmp_path / "killed", **options)
    write_evaluation_report(evaluation_settings(world.settings("easy_vqa,vqav2", tmp_path / "killed", **options)))
    after = responses.read_bytes().splitlines()
    assert set(before.splitlines()[:10]) <= set(after)
    assert report_bytes(tmp_path / "killed") == whole(world, tmp_path / "whole", **options)


@pytest.mark.parametrize("limit", [30, 1])
def test_two_ranks_and_one_give_the_same_report(world: World, tmp_path: Path, limit: int) -> None:
    """With one question the second rank has none."""
    world.benchmark("easy_vqa")
    world.benchmark("vqav2")
    settings = world.settings("easy_vqa,vqav2", tmp_path / "two", limit=limit, batch_size=4, spread=1)
    evaluate_on_two_ranks(settings)
    assert not list((tmp_path / "two").rglob("responses.*.jsonl"))
    assert report_bytes(tmp_path / "two") == whole(world, tmp_path / "one", limit=limit, batch_size=4, spread=1)


def test_a_broken_picture_is_an_error_with_its_id_until_it_is_mended(world: World, tmp_path: Path) -> None:
    world.benchmark("easy_vqa")
    world.benchmark("vqav2")
    data = tmp_path / "data"
    media = tmp_path / "media"
    shutil.copytree(world.data / "vqav2" / "val", data / "vqav2" / "val")
    manifest = data / "vqav2" / "val" / "manifest.json"
    content = json.loads(manifest.read_text())
    shutil.copytree(content["media_root"], media)
    content["media_root"] = str(media)
    manifest.write_text(json.dumps(content))
    picture = media / "val2014" / "COCO_val2014_000000000002.jpg"
    good = picture.read_bytes()
    picture.write_bytes(good[:100])

    run = tmp_path / "run"
    found = world.evaluate("vqav2", run, data=str(data))
    (result,) = found.results
    assert list(result.errors) == ["vqav2/val/2000"]
    assert picture.name in result.errors["vqav2/val/2000"]
    assert (result.n, result.available) == (2, 3)
    assert failed(found)
    settings = evaluation_settings(world.settings("vqav2", run, data=str(data)))
    write_evaluation_report(settings)
    report = report_bytes(run)
    for name in ("report.html", "report.md"):
        assert "1 examples failed" in report[name].decode()
        assert "vqav2/val/2000" in report[name].decode()

    picture.write_bytes(good)
    assert Image.open(picture).size == (112, 112)
    mended = world.evaluate("vqav2", run, data=str(data))
    assert mended.results[0].errors == {}
    assert mended.results[0].n == 3
    assert not failed(mended)
