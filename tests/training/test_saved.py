"""What a run saved says, loaded, what the model in memory said: all towers, ZeRO 0, 2 and 3, one rank and two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import InstructBlipForConditionalGeneration

from instructkit.models.save import load_model
from tests.matrix import mostly_full
from tests.training.mini import logits

FULL = ["zero0-fp32", "zero2-fp32", "zero3-fp32"]
FROZEN = ["frozen", "frozen-zero2", "frozen-zero3"]
LORA = ["hard", "hard-zero2", "hard-zero3"]
EACH = [*FULL, *FROZEN, *LORA, *(f"{name}-resumed" for name in (*FULL, *FROZEN, *LORA)), "hard-offload"]


def on_one_and_two(names: list[str], *quick: str) -> pytest.MarkDecorator:
    """Each run on one rank and on two; the quick suite looks at some of them."""
    return pytest.mark.parametrize(
        "run", mostly_full([f"{ranks}/{name}" for ranks in ("one", "two") for name in names], *quick), indirect=True
    )


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Path:
    """The folder of a run that is named by its ranks and its settings."""
    ranks, _, name = request.param.partition("/")
    folder: Path = request.getfixturevalue(ranks) / name
    return folder


def base_of(hard: list[str]) -> str:
    return [word for word in hard if word.startswith("model.name=")][-1].removeprefix("model.name=")


def close(said: torch.Tensor, run: Path) -> None:
    before = torch.load(run / "logits.pt")
    assert before.abs().max() > 0.1
    torch.testing.assert_close(said, before, atol=2e-5, rtol=1e-5)


@on_one_and_two(EACH, "one/zero0-fp32", "one/zero3-fp32", "one/hard", "one/hard-zero3-resumed", "two/hard-zero2")
def test_a_loaded_model_says_what_the_trained_one_said(run, hard):
    model, texts = load_model(str(run / "model"))
    close(logits(model, texts), run)
    untrained, _ = load_model(base_of(hard))
    assert (logits(untrained, texts) - torch.load(run / "logits.pt")).abs().max() > 1e-3


@on_one_and_two(["merged", "merged-zero3"], "one/merged")
def test_lora_on_a_model_that_no_checkpoint_has_is_saved_merged(run):
    model, texts = load_model(str(run / "model"))
    assert not any("lora" in part.name for part in (run / "model").rglob("*"))
    close(logits(model, texts), run)
    plain = InstructBlipForConditionalGeneration.from_pretrained(run / "model")
    assert plain.state_dict().keys() == model.state_dict().keys()
    close(logits(plain, texts), run)


@on_one_and_two(FULL, "one/zero3-fp32")
def test_plain_transformers_say_so_too(run):
    _, texts = load_model(str(run / "model"))
    plain = InstructBlipForConditionalGeneration.from_pretrained(run / "model")
    close(logits(plain, texts), run)


@on_one_and_two(LORA, "one/hard", "two/hard-zero2")
def test_peft_says_so_beside_the_base_and_merged_into_it(run, hard):
    folder = run / "model"
    model, texts = load_model(base_of(hard))
    _, unexpected = model.load_state_dict(load_file(folder / "trained.safetensors"), strict=False)
    assert not unexpected
    untuned = logits(model, texts)
    wrapped = PeftModel.from_pretrained(model.language_model, folder / "adapters" / "language_model")
    assert (logits(model, texts) - untuned).abs().max() > 1e-4
    close(logits(model, texts), run)
    model.language_model = wrapped.merge_and_unload()
    assert not any(".lora_" in key for key in model.state_dict())
    close(logits(model, texts), run)
