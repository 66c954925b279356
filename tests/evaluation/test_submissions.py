"""Files for the challenge servers, in the layouts of the official result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit.data.dataset import load_examples
from instructkit.evaluation.responses import Answer
from instructkit.evaluation.submissions import write_submissions
from instructkit.reports.report import failed
from tests.evaluation.world import World
from tests.sources import sample

SPLITS = {"vqav2": "test-dev", "vizwiz": "test", "aokvqa": "test", "nocaps": "test"}


def shape(value: Any) -> Any:
    """Types of a JSON value; a list by the shapes of its elements."""
    if isinstance(value, list):
        return {json.dumps(shape(each), sort_keys=True) for each in value}
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    return type(value).__name__


@pytest.fixture(scope="module")
def submitted(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    for source, split in SPLITS.items():
        world.split(source, split)
    out = tmp_path_factory.mktemp("hidden")
    names = "vqav2/test-dev,vizwiz/test,aokvqa/test,aokvqa_mc/test,nocaps/test"
    return out, world.evaluate(names, out)


def content(submitted: tuple[Path, Any], name: str) -> Any:
    return json.loads((submitted[0] / "submissions" / f"{name}.json").read_text())


def ids(world: World, source: str) -> list[str]:
    return [example.id.split("/")[-1] for example in load_examples(world.data / source / SPLITS[source])]


def test_hidden_answers_give_files_and_no_score(submitted: tuple[Path, Any]) -> None:
    out, found = submitted
    assert found.results == []
    assert {each.reason for each in found.not_evaluated} == {
        "its authors keep the answers to themselves and score them on a server"
    }
    assert sorted(found.submissions) == sorted(f"submissions/{path.name}" for path in (out / "submissions").iterdir())
    assert len(found.submissions) == 4
    assert not failed(found)


def test_vqav2(submitted: tuple[Path, Any], world: World) -> None:
    rows = content(submitted, "vqav2_test-dev")
    assert [str(row["question_id"]) for row in rows] == ids(world, "vqav2")
    assert shape(rows) == {'{"answer": "str", "question_id": "int"}'}


def test_vizwiz_names_its_pictures_as_the_release_does(submitted: tuple[Path, Any], world: World) -> None:
    rows = content(submitted, "vizwiz_test")
    assert shape(rows) == {'{"answer": "str", "image": "str"}'}
    examples = list(load_examples(world.data / "vizwiz" / "test"))
    assert [row["image"] for row in rows] == [example.images[0].split("/")[-1] for example in examples]
    released = json.loads(sample("vizwiz/test.json").read_text())
    name = released[0]["image"]
    assert (name.count("_"), Path(name).suffix) == (rows[0]["image"].count("_"), Path(rows[0]["image"]).suffix)


def test_nocaps_and_coco(submitted: tuple[Path, Any], world: World) -> None:
    rows = content(submitted, "nocaps_test")
    assert [str(row["image_id"]) for row in rows] == ids(world, "nocaps")
    for official in ("nocaps/related/predictions.json", "coco_caption/captions_val2014_fakecap_results.json"):
        assert shape(rows) == shape(json.loads(sample(official).read_text()))


def test_aokvqa_holds_both_answers_of_a_question(submitted: tuple[Path, Any], world: World) -> None:
    answers = content(submitted, "aokvqa_test")
    assert list(answers) == ids(world, "aokvqa")
    examples = list(load_examples(world.data / "aokvqa" / "test"))
    for answer, example in zip(answers.values(), examples, strict=True):
        assert set(answer) == {"multiple_choice", "direct_answer"}
        assert answer["multiple_choice"] in example.choices


def test_an_example_that_failed_is_left_out(tmp_path: Path) -> None:
    answers = [
        Answer(example="vqav2/test/1", text="yes"),
        Answer(example="vqav2/test/2", error="no picture"),
    ]
    assert write_submissions(tmp_path, {"vqav2/test": answers}) == ["submissions/vqav2_test.json"]
    assert json.loads((tmp_path / "submissions" / "vqav2_test.json").read_text()) == [
        {"question_id": 1, "answer": "yes"}
    ]
