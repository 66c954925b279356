"""Questions beside pictures that are not their own: the score of a model that sees nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import instructkit
from instructkit.cli import app
from instructkit.data.dataset import load_examples
from instructkit.data.examples import Example
from instructkit.errors import UserError
from instructkit.evaluation.answer import Evaluator
from instructkit.evaluation.exchanged import Exchange
from tests.evaluation.world import World, evaluate_on_two_ranks

LIMIT = 30


def film(number: int, name: str, start: float) -> Example:
    return Example(id=f"x/y/{number}", video=name, start=start, end=start + 1)


def test_every_picture_stands_once_in_the_place_of_another_for_all_its_questions() -> None:
    examples = [Example(id=f"x/y/{number}", images=[f"{number % 7}.jpg"]) for number in range(20)]
    exchange = Exchange("gqa", examples)
    others: dict[str, set[str]] = {}
    for example in examples:
        shown = exchange(example)
        assert (shown.id, shown.video, example.images) == (example.id, None, [f"{int(example.id[4:]) % 7}.jpg"])
        others.setdefault(example.images[0], set()).add(shown.images[0])
    assert all(len(each) == 1 and each != {own} for own, each in others.items())
    assert set.union(*others.values()) == set(others)
    again = Exchange("gqa", examples)
    assert [again(each).images for each in examples] == [exchange(each).images for each in examples]
    unlike = Exchange("vsr", examples)
    assert [unlike(each).images for each in examples] != [exchange(each).images for each in examples]


def test_clips_of_one_film_are_exchanged_with_their_times() -> None:
    clips = [film(1, "a.mp4", 0.0), film(2, "a.mp4", 5.0)]
    exchange = Exchange("ivqa", clips)
    assert [exchange(each).start for each in clips] == [5.0, 0.0]
    assert [exchange(each).end for each in clips] == [6.0, 1.0]


def test_one_picture_has_no_other() -> None:
    with pytest.raises(UserError, match="gqa: shows one picture alone"):
        Exchange("gqa", [Example(id="x/y/1", images=["a.jpg"]), Example(id="x/y/2", images=["a.jpg"])])


def test_the_model_reads_another_picture_of_the_benchmark(world: World, tmp_path: Path, monkeypatch: Any) -> None:
    """What comes to the model is recorded, and compared with the split."""
    world.benchmark("easy_vqa")
    seen: dict[str, Example] = {}
    prepare = Evaluator.prepare

    def recorded(self: Evaluator, question: Any, examples: list[Example], *others: Any) -> Any:
        seen.update({example.id: example for example in examples})
        return prepare(self, question, examples, *others)

    monkeypatch.setattr(Evaluator, "prepare", recorded)
    lines: list[str] = []
    model, data = str(world.model()), str(world.data)
    found = instructkit.evaluate(
        model, "easy_vqa", data, tmp_path / "run", limit=LIMIT, exchanged=True, say=lines.append
    )
    asked = list(load_examples(world.data / "easy_vqa" / "test"))[:LIMIT]
    assert set(seen) == {example.id for example in asked}
    for example in asked:
        shown = seen[example.id]
        assert shown.question == example.question
        assert shown.images != example.images
    assert {seen[each.id].images[0] for each in asked} == {each.images[0] for each in asked}
    assert any(line.startswith("pictures  exchanged") for line in lines)

    report = found.report()
    assert "The pictures were exchanged" in (report.folder / "report" / "report.md").read_text()
    with pytest.raises(UserError, match="pictures"):
        instructkit.evaluate(model, "easy_vqa", data, tmp_path / "run", limit=LIMIT, say=lines.append)


def test_the_command_exchanges_as_python_does(world: World, tmp_path: Path) -> None:
    world.benchmark("easy_vqa")
    words = [
        "--model",
        str(world.model()),
        "--data",
        str(world.data),
        "--benchmarks",
        "easy_vqa",
        "--limit",
        str(LIMIT),
    ]
    answers = []
    for name, more in (("own", []), ("other", ["--exchanged"])):
        found = CliRunner().invoke(app, ["evaluate", *words, "--output", str(tmp_path / name), *more])
        assert found.exit_code == 0, found.output
        lines = (tmp_path / name / "evaluation" / "easy_vqa" / "responses.jsonl").read_text().splitlines()
        answers.append({line["example"]: line for line in map(json.loads, lines)})
        assert ("The pictures were exchanged" in found.output) == bool(more)
    own, other = answers
    assert set(own) == set(other)
    assert own != other


def test_two_ranks_show_the_same_pictures_as_one(world: World, tmp_path: Path) -> None:
    world.benchmark("easy_vqa")
    asked = {"limit": LIMIT, "exchanged": True, "eval_batch_size": 4}
    world.evaluate("easy_vqa", tmp_path / "one", **asked)
    settings = world.settings("easy_vqa", tmp_path / "two", **asked)
    evaluate_on_two_ranks({**settings, "exchanged": "true"})
    one, two = (
        (tmp_path / name / "evaluation" / "easy_vqa" / "responses.jsonl").read_text() for name in ("one", "two")
    )
    assert one == two


def test_retrieval_is_refused(world: World, tmp_path: Path) -> None:
    world.benchmark("flickr30k_retrieval")
    found = world.evaluate("flickr30k_retrieval", tmp_path / "run", **{"model.exchanged": True})
    (entry,) = found.not_evaluated
    assert "they cannot be exchanged" in entry.reason
