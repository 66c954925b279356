"""Data of one's own in a run: where they lie, and how the run converts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from instructkit.config.read import load_config
from instructkit.conversion import convert
from instructkit.conversion.processes import cores, in_processes
from instructkit.errors import UserError
from instructkit.training.datasets import prepare_data, splits_of, training_splits
from tests.sources import write_lines
from tests.sources.test_jsonl import GOOD, write

CONFIG = Path(__file__).resolve().parents[2] / "recipes" / "configs" / "finetune.yaml"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path / "mine")
    return tmp_path / "mine"


def test_the_word_data_names_a_file_or_a_folder() -> None:
    file = load_config(CONFIG, ["data.raw.okvqa=raw", "data=mine/my receipts.jsonl"]).data
    assert (file.raw, file.train) == ({"okvqa": "raw", "jsonl": "mine/my receipts.jsonl"}, ["jsonl/my receipts"])
    folder = load_config(CONFIG, ["data=mine"])
    assert (folder.data.raw, folder.data.train) == ({"jsonl": "mine"}, ["jsonl/train"])
    both = load_config(CONFIG, ["data=mine", "data.train=[jsonl/receipts, jsonl/menus]", "benchmarks=[jsonl, jsonl/x]"])
    assert splits_of(both) == ["jsonl/receipts", "jsonl/menus", "jsonl/val", "jsonl/x"]
    with pytest.raises(UserError, match=r"data is a group of keys, not 5"):
        load_config(CONFIG, ["data=5"])


def test_a_run_converts_the_folder_and_says_what_is_wrong_with_it(raw: Path, tmp_path: Path) -> None:
    said: list[str] = []
    words = [f"data={raw}", f"data.root={tmp_path / 'data'}", "benchmarks=[jsonl]"]
    prepare_data(load_config(CONFIG, words), said.append)
    assert [line.split(" (")[0] for line in said] == [
        "data      jsonl/train: 3 examples, 0 rejected",
        "data      jsonl/val: 1 examples, 0 rejected",
    ]
    write_lines(raw / "train.jsonl", [GOOD, {"image": "photos/1.png"}])
    with pytest.raises(
        UserError, match=r"the first: train\.jsonl, line 2: Object missing required field `instruction`"
    ):
        prepare_data(load_config(CONFIG, words), said.append)
    with pytest.raises(UserError, match="jsonl has no split 'a/b'"):
        prepare_data(load_config(CONFIG, ["data.train=[jsonl/a/b]"]), said.append)
    with pytest.raises(UserError, match=r"jsonl/train is not converted in .* or set data.raw.jsonl=RELEASE"):
        prepare_data(load_config(CONFIG, [f"data.root={tmp_path / 'none'}"]), said.append)


@pytest.mark.parametrize(("workers", "jobs"), [(0, cores()), (3, 3)])
def test_a_run_converts_in_several_processes(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, jobs: int
) -> None:
    asked: list[int] = []

    def in_some(work: Any, tasks: Any, jobs: int) -> Any:
        asked.append(jobs)
        return in_processes(work, tasks, jobs)

    monkeypatch.setattr(convert, "in_processes", in_some)
    words = [f"data={raw}", f"data.root={tmp_path / 'data'}", "benchmarks=[]", f"data.workers={workers}"]
    said: list[str] = []
    prepare_data(load_config(CONFIG, words), said.append)
    assert asked == [jobs]
    assert said == ["data      jsonl/train: 3 examples, 0 rejected (converted)"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.train=[easy_vqa, easy_vqa/train]"], "easy_vqa and easy_vqa/train are the same dataset"),
        (["data.train=[okvqa]", "data.weights.okvqq=2"], r"data\.weights\.okvqq: no such dataset .*did you mean okvqa"),
    ],
)
def test_a_mixture_that_cannot_be_meant_is_refused_before_anything_is_converted(words, message):
    with pytest.raises(UserError, match=message):
        training_splits(load_config(CONFIG, words))
    assert len(training_splits(load_config(CONFIG, ["data.train=[vqav2, vqg_vqav2]"]))) == 2
