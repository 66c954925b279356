"""What the log tells of the steps since the line before, against sums done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from instructkit.config.settings import ThroughputConfig
from instructkit.prompts.templates import Prompt
from instructkit.runs.log import step_line
from instructkit.training import meter as meters
from instructkit.training.data import Batch
from instructkit.training.flops import llm_work
from instructkit.training.meter import Meter
from instructkit.training.objectives import AnswerObjective, LossSum
from tests.tiny import tiny_model
from tests.training.mini import log, repeatable

PAIRS = [("what color is it?", "red"), ("is there a red triangle in the picture?", "no"), ("shape?", "circle or so")]


def inputs(texts: Any) -> dict[str, torch.Tensor]:
    prompts = [Prompt(f"a/b/{i}", "w", q, a) for i, (q, a) in enumerate(PAIRS)]
    return {
        "pixel_values": torch.zeros(1, 3, 16, 16),
        "image_index": torch.zeros(3, dtype=torch.long),
        "image_rows": torch.arange(3),
        **texts.rows(texts.encode(prompts), [1, 1, 1]),
    }


def said(rows: list[float]) -> dict[str, LossSum]:
    """What the model made of a batch."""
    return {"nll": LossSum(torch.tensor(sum(rows)), 0, torch.tensor(rows))}


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("llm", ["llama", "t5"])
def test_positions_are_those_that_the_llm_is_given(llm, packing):
    model, texts = tiny_model(llm)
    model.throughput = ThroughputConfig(packing=packing)
    given = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        given.append(kwargs["inputs_embeds"].shape[:2].numel())
        if "decoder_input_ids" in kwargs:
            given.append(kwargs["decoder_input_ids"].numel())

    model.language_model.register_forward_pre_hook(look, with_kwargs=True)
    batch = inputs(texts)
    model.answer_loss(**batch)
    work = llm_work(model, batch)
    useful, computed = work.held, work.read + work.written
    assert computed == sum(given)
    held = int(batch["attention_mask"].sum()) + (0 if llm == "llama" else int((batch["labels"] >= 0).sum()))
    assert useful == held
    assert useful == computed if packing else useful < computed


def test_losses_are_means_over_the_target_tokens_of_each_dataset():
    model, texts = tiny_model()
    meter = Meter(AnswerObjective(), model, ["vqa", "captions", "never"], torch.device("cpu"))
    batch = inputs(texts)
    targets = (batch["labels"] >= 0).sum(1).tolist()
    with meter.timed():
        meter.add(Batch(batch, list("abc"), ["vqa", "captions", "vqa"]), said([3.0, 4, 5]))
    meter.restore(list(meter.state()))
    with meter.timed():
        meter.add(Batch(batch, list("abc"), ["captions"] * 3), said([1.0, 1, 1]))
    first, second, third = targets
    values = meter.read()
    assert values["mean_loss"] == pytest.approx(15 / (2 * sum(targets)))
    assert values["mean_loss/vqa"] == pytest.approx(8 / (first + third))
    assert values["mean_loss/captions"] == pytest.approx(7 / (sum(targets) + second))
    assert "mean_loss/never" not in values
    assert values["useful_token_share"] == 1
    assert values["peak_memory_gib"] > 0.01
    line = step_line(1200, 60_000, {"learning_rate": 1e-5, **values})
    assert line.startswith(f"step 1,200/60,000  loss {values['mean_loss']:.4f}  lr 1.00e-05  ")
    assert f"vqa {values['mean_loss/vqa']:.4f}, captions" in line
    with meter.timed():
        meter.add(Batch(batch, list("abc"), ["vqa"] * 3), said([1.0, 1, 1]))
    assert meter.read()["mean_loss"] == pytest.approx(3 / sum(targets))


def test_cut_texts_are_counted_by_dataset_from_the_first_step_on(monkeypatch):
    monkeypatch.setattr(meters, "sum_over_ranks", lambda values: [2 * value for value in values])  # two ranks alike
    model, texts = tiny_model()
    batch, answer = inputs(texts), said([1.0, 1, 1])
    cut = [("qformer", "instruction"), (), ("qformer", "answer")]
    meter = Meter(AnswerObjective(), model, ["vqa", "captions"], torch.device("cpu"))
    expected = {"cut/qformer/vqa": 4, "cut/instruction/vqa": 2, "cut/answer/vqa": 2}
    for lines in (1, 2, 3):
        with meter.timed():
            meter.add(Batch(batch, list("abc"), ["vqa", "captions", "vqa"], cut), answer)
        again = Meter(AnswerObjective(), model, ["vqa", "captions"], torch.device("cpu"))
        again.restore(list(meter.state()))
        with again.timed():
            pass
        again._seconds = 1.0
        for each in (meter, again):
            values = each.read()
            found = {name: value for name, value in values.items() if name.startswith("cut/")}
            assert found == {name: lines * value for name, value in expected.items()}
        meter.restore(list(again.state()))
    line = step_line(3, 3, {"learning_rate": 1e-5, **values})
    *_, read, asked, answered = line.split("  ")
    assert (read, asked) == ("the Q-Former's text cut in 12 rows so far", "the instruction cut in 6 rows so far")
    assert answered == "the answer cut in 6 rows so far"


def test_a_line_tells_of_the_steps_since_the_line_before(one):
    steps, lines = log(one / "hard"), log(one / "windows")
    assert [line["step"] for line in lines] == [3, 4]
    for line, window in zip(lines, (steps[:3], steps[3:]), strict=True):
        tokens = sum(step["tokens"] for step in window)
        mean = sum(step["loss"] * step["tokens"] for step in window) / tokens
        assert line["mean_loss"] == pytest.approx(mean, rel=1e-6)
        assert line["loss"] == window[-1]["loss"]
        assert min(line["mean_loss/easy_vqa"], line["mean_loss/coco_caption"]) < mean
        assert max(line["mean_loss/easy_vqa"], line["mean_loss/coco_caption"]) > mean
    assert repeatable(one / "windows-resumed") == repeatable(one / "windows")


def test_two_ranks_tell_what_one_does(one, two):
    for mine, both in zip(log(one / "zero0-fp32"), log(two / "zero0-fp32"), strict=True):
        assert both["mean_loss/easy_vqa"] == pytest.approx(mine["mean_loss/easy_vqa"], abs=1e-5)
        assert mine["mean_loss"] == mine["mean_loss/easy_vqa"] == pytest.approx(mine["loss"], rel=1e-6)
