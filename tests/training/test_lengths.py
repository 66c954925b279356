"""Rows longer than an LLM's table of positions: told before the first step where pictures show it, else by example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from instructkit.config.read import load_config
from instructkit.data.dataset import load_examples
from instructkit.data.examples import Example
from instructkit.errors import UserError
from instructkit.models.batches import Limits
from instructkit.models.positions import Positions
from instructkit.runs.ranks import Ranks
from instructkit.training.data import Part, TrainingData
from instructkit.training.objectives import AnswerObjective
from instructkit.training.watch import HeldIn
from tests.test_examples import write_dataset
from tests.tiny import tiny_model


def data(tmp_path: Path, positions: Positions, llm: str = "llama", **changes: Any) -> TrainingData:
    """Three questions about one picture; `changes` go into the second."""
    tmp_path.mkdir(exist_ok=True)
    for name in ("1.png", "2.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    rows: list[dict[str, Any]] = [{"images": ["1.png"], "question": "what color is it?", "answers": ["red"]}] * 3
    rows[1] = {**rows[1], **changes}
    examples = [Example(id=f"a/b/{number}", **row) for number, row in enumerate(rows)]
    part = Part("a", load_examples(write_dataset(tmp_path / "a", examples)), "llava", tmp_path)
    _, texts = tiny_model(llm, limits=Limits(instruction=20, answer=20))
    return TrainingData([part], texts, 16, groups=3, llm_positions=positions)


@pytest.mark.parametrize(
    ("changes", "soft"), [({"images": ["1.png", "2.png"]}, 8), ({"images": [], "video": "v.avi"}, 16)]
)
def test_pictures_that_fill_the_positions_are_told_before_the_first_step(
    tmp_path: Path, changes: dict[str, Any], soft: int
) -> None:
    fits = data(tmp_path / "fits", Positions(soft + 4, table=True), **changes)
    assert fits.check_pictures()[0].startswith(f"positions {soft + 4} of the LLM; rows may have {soft + 40} tokens")
    over = data(tmp_path / "over", Positions(soft + 3, table=True), **changes)
    with pytest.raises(
        UserError, match=rf"^a/b/1: its {soft // 4} pictures are {soft} soft prompts, which leave no room"
    ):
        over.check_pictures()
    rotary = data(tmp_path / "rotary", Positions(soft + 3), **changes)
    assert rotary.check_pictures()[0].endswith("it was made for no more; rows beyond are computed")
    assert data(tmp_path / "enough", Positions(soft + 40, table=True), **changes).check_pictures() == []
    assert data(tmp_path / "endless", Positions(), **changes).check_pictures() == []


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("llm", ["llama", "t5"])
def test_a_longer_row_is_told_with_its_example_and_lengths(tmp_path: Path, llm: str, workers: int) -> None:
    answer = "red green blue red green blue red green blue"
    made = data(tmp_path / "made", Positions(400, 400), llm, answers=[answer])
    (batch,) = made.loader(0, 1)
    read = batch.inputs["attention_mask"].sum(1).tolist()
    longest = max(read) if llm == "llama" else int((batch.inputs["labels"] >= 0).sum(1).max())
    bound = Positions(longest, table=True) if llm == "llama" else Positions(400, longest, table=True)
    shorter = Positions(longest - 1, table=True) if llm == "llama" else Positions(400, longest - 1, table=True)
    assert len(list(data(tmp_path / "fits", bound, llm, answers=[answer]).loader(0, 1, workers))) == 1
    message = rf"^a/b/1: the LLM has {longest - 1} positions, the row {longest} tokens \(4 soft prompts of 1 [^\n]*$"
    with pytest.raises(UserError, match=message):
        list(data(tmp_path / "over", shorter, llm, answers=[answer]).loader(0, 1, workers))


def test_a_batch_says_what_was_cut(tmp_path: Path) -> None:
    (batch,) = data(tmp_path, Positions(), question="what color is it? " * 30, answers=["red " * 40]).loader(0, 1)
    cut = {example: list(names) for example, names in zip(batch.examples, batch.cut, strict=True)}
    assert cut == {"a/b/0": [], "a/b/1": ["qformer", "instruction", "answer"], "a/b/2": []}


def test_rows_of_the_validation_that_were_cut_are_counted(tmp_path: Path) -> None:
    part = data(tmp_path, Positions(), question="what color is it? " * 30).parts[0]
    model, texts = tiny_model(limits=Limits(instruction=20, answer=20))
    config = load_config(Path(__file__).with_name("mini.yaml"), ["evaluation.eval_batch_size=2"])
    for rank, counted in ((0, 0), (1, 1)):
        *_, cut = HeldIn(part, texts, 16, config, Ranks(rank, 2), AnswerObjective()).sums(model, torch.device("cpu"))
        assert cut == counted
