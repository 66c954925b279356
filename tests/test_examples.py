import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructkit.data.dataset import (
    SCHEMA,
    Manifest,
    find_datasets,
    load_examples,
    read_manifest,
    to_table,
    write_shard,
)
from instructkit.data.examples import Example, Turn, problem
from instructkit.errors import UserError
from instructkit.files import write_stream

FULL = Example(
    id="a/b/1",
    images=["1.png", "2.png"],
    video="v.mp4",
    start=0.0,
    end=2.5,
    question="q",
    answers=["x", "", "x"],
    choices=["x", "y"],
    choice=0,
    relevance=[0.5, 0.25],
    context="c",
    lecture="l",
    rationales=["r"],
    ocr_tokens=["STOP"],
    references=["ref"],
    history=[Turn("q1", "a1"), Turn("q2", "a2")],
    statement="s",
    meta={"domain": "near", "kind": "é"},
)


def plain_row(example: Example) -> dict[str, Any]:
    """A row as Arrow shows it, made the slow way."""
    row = {name: getattr(example, name) for name in SCHEMA.names}
    row["history"] = [{"question": turn.question, "answer": turn.answer} for turn in example.history]
    row["meta"] = [{"key": key, "value": value} for key, value in example.meta.items()]
    return row


def test_table_holds_every_field() -> None:
    examples = [Example(id="a/b/0"), FULL, Example(id="a/b/2", meta={"k": "v"}), Example(id="a/b/3", choice=1)]
    table = to_table(examples)
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == [plain_row(example) for example in examples]
    assert table.equals(pa.Table.from_pylist([plain_row(example) for example in examples], schema=SCHEMA))
    assert to_table([]).equals(SCHEMA.empty_table())
    table.validate(full=True)


def write_dataset(folder: Path, examples: list[Example], **changes: Any) -> Path:
    folder.mkdir(parents=True)
    write_shard(folder / "shard-00000.parquet", examples)
    manifest: dict[str, Any] = {
        "source": "a",
        "split": "b",
        "task": "vqa",
        "role": "extra",
        "layout": "list",
        "media_root": "/media",
        "limit": None,
        "examples": len(examples),
        "records": len(examples),
        "rejected": 0,
        "published": None,
        "shards": {"shard-00000.parquet": len(examples)},
        "files": [],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 1} | changes))
    return folder


def test_written_examples_are_read_again(tmp_path: Path) -> None:
    many = [msgspec.structs.replace(FULL, id=f"a/b/{number}") for number in range(5000)]
    data = load_examples(write_dataset(tmp_path / "a/b", many))
    assert len(data) == 5000
    assert list(data) == many
    assert data[4999] == many[4999]
    assert data[10:13] == many[10:13]
    assert data.take([7, 3]) == [many[7], many[3]]
    assert data.name == "a"
    assert data.media_path("1.png") == Path("/media/1.png")
    assert data.media_path("1.png", Path("/else")) == Path("/else/1.png")


def test_shards_are_written_in_row_groups(tmp_path: Path) -> None:
    rows = write_shard(tmp_path / "s.parquet", (Example(id=f"a/b/{number}") for number in range(5000)))
    assert rows == 5000
    metadata = pq.read_metadata(tmp_path / "s.parquet")
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [4096, 904]
    assert write_shard(tmp_path / "none.parquet", []) == 0
    assert pq.read_table(tmp_path / "none.parquet").equals(SCHEMA.empty_table())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none.parquet", "s.parquet"]


def test_an_empty_dataset_can_be_opened(tmp_path: Path) -> None:
    assert list(load_examples(write_dataset(tmp_path / "a/b", []))) == []


def test_what_is_no_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json here"):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match="no converted dataset in or below it"):
        find_datasets(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        find_datasets(tmp_path / "none")
    with pytest.raises(UserError, match="format 99, this version reads 1"):
        read_manifest(write_dataset(tmp_path / "new", [], format=99))
    with pytest.raises(UserError, match="not a manifest"):
        read_manifest(write_dataset(tmp_path / "odd", [], records="many"))
    missing = write_dataset(tmp_path / "missing", [FULL])
    (missing / "shard-00000.parquet").unlink()
    with pytest.raises(UserError, match=r"shard-00000\.parquet: missing"):
        load_examples(missing)
    assert find_datasets(tmp_path) == [tmp_path / "missing", tmp_path / "new", tmp_path / "odd"]
    assert isinstance(read_manifest(missing), Manifest)


def example(**fields: Any) -> Example:
    return Example(**({"id": "a/b/1", "images": ["1.png"], "question": "q", "answers": ["x"]} | fields))


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("vqa", {}),
        ("vqa", {"answers": ["", "x"]}),
        ("vqa", {"images": [], "video": "a.mp4", "start": 0.0, "end": 0.1}),
        ("video_qa", {"images": [], "video": "a.mp4", "end": 3.0}),
        ("knowledge_vqa", {"answers": [], "choices": ["x", "y"], "choice": 1}),
        ("captioning", {"question": None, "answers": [], "references": ["r"]}),
        ("visual_reasoning", {"question": None, "statement": "s"}),
        ("classification", {"question": None, "context": "text"}),
        ("visual_dialog", {"history": [Turn("q", "a")], "choices": ["x", "y"], "choice": 0, "relevance": [0.0, 1.0]}),
    ],
)
def test_sound_examples(task: str, fields: dict[str, Any]) -> None:
    assert problem(example(**fields), task) is None


@pytest.mark.parametrize(
    ("task", "fields", "reason"),
    [
        ("vqa", {"images": []}, "has neither pictures nor a video"),
        ("vqa", {"images": [" "]}, "one of images is blank"),
        ("vqa", {"images": ["/a.png"]}, "path '/a.png' leaves the media folder"),
        ("vqa", {"images": ["a/../../b.png"]}, "path 'a/../../b.png' leaves the media folder"),
        ("vqa", {"video": "../v.mp4"}, "path '../v.mp4' leaves the media folder"),
        ("vqa", {"question": None}, "has no question"),
        ("vqa", {"question": "\n"}, "question is blank"),
        ("vqa", {"answers": []}, "has no answer"),
        ("vqa", {"answers": [" ", ""]}, "all answers are blank"),
        ("vqa", {"statement": "s", "question": None}, "has no question"),
        ("vqa", {"choices": ["x", " "], "choice": 1}, "choice 1, the right one, is blank"),
        ("vqa", {"choices": ["", " "]}, "all choices are blank"),
        ("knowledge_vqa", {"choices": ["x"] * 27, "choice": 26}, "27 choices are more than the alphabet has letters"),
        ("visual_reasoning", {"choices": ["x"] * 27}, "27 choices are more than the alphabet has letters"),
        ("vqa", {"choices": ["x", "y"], "choice": 2}, "choice 2 is not one of 2 choices"),
        ("vqa", {"choices": ["x", "y"], "choice": -1}, "choice -1 is not one of 2 choices"),
        ("vqa", {"choice": 0}, "choice 0 is not one of 0 choices"),
        ("vqa", {"choices": ["x"], "relevance": [1.0, 0.0]}, "2 relevances for 1 choices"),
        ("vqa", {"choices": ["x"], "relevance": [math.nan]}, "a relevance is not between 0 and 1"),
        ("vqa", {"choices": ["x"], "relevance": [1.5]}, "a relevance is not between 0 and 1"),
        ("vqa", {"start": -1.0}, "no clip lies between -1.0 and None s"),
        ("vqa", {"start": 2.0, "end": 2.0}, "no clip lies between 2.0 and 2.0 s"),
        ("vqa", {"start": math.nan, "end": 2.0}, "no clip lies between nan and 2.0 s"),
        ("vqa", {"end": math.inf}, "no clip lies between None and inf s"),
        ("vqa", {"history": [Turn("q", " ")]}, "a turn of the history is blank"),
        ("vqa", {"context": ""}, "context is blank"),
        ("vqa", {"ocr_tokens": [""]}, "one of ocr_tokens is blank"),
        ("captioning", {}, "has no references"),
        ("captioning", {"references": ["good", " "]}, "one of references is blank"),
        ("classification", {"question": None}, "has no question"),
        ("visual_reasoning", {"question": None, "context": "c"}, "has no question"),
    ],
)
def test_examples_that_cannot_be_used(task: str, fields: dict[str, Any], reason: str) -> None:
    assert problem(example(**fields), task) == reason


def test_blank_choices_and_many_candidates_of_a_dialog_are_no_problem() -> None:
    assert problem(example(choices=["x", ""], choice=0), "knowledge_vqa") is None
    assert problem(example(choices=["", "x"]), "knowledge_vqa", hidden=True) is None
    assert problem(example(choices=["x"] * 26, choice=25), "knowledge_vqa") is None
    assert problem(example(choices=[*["x"] * 99, ""], choice=0), "visual_dialog") is None


def test_hidden_answers_are_no_problem_where_they_are_known_to_be() -> None:
    assert problem(example(answers=[]), "vqa", hidden=True) is None
    assert problem(example(), "captioning", hidden=True) is None
    assert problem(example(answers=[], question=None), "vqa", hidden=True) == "has no question"


def test_a_stream_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_stream(tmp_path / "a.txt", ["é", "b\n"])
    assert (tmp_path / "a.txt").read_bytes() == "éb\n".encode()
    with pytest.raises(UserError, match="cannot be written"):
        write_stream(tmp_path / "none" / "a.txt", ["x"])
