"""What a run saved says, loaded, what the model in memory said: all towers, ZeRO 0, 2 and 3, one rank and two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import InstructBlipForConditionalGeneration

from instructkit.models.save import load_model
from tests.training.mini import logits

FULL = ["zero0-fp32", "zero2-fp32", "zero3-fp32"]
FROZEN = ["frozen", "frozen-zero2", "frozen-zero3"]
LORA = ["hard", "hard-zero2", "hard-zero3"]
EACH = [*FULL, *FROZEN, *LORA, *(f"{name}-resumed" for name in (*FULL, *FROZEN, *LORA)), "hard-offload"]


@pytest.fixture(params=["one", "two"])
def runs(request):
    return request.getfixturevalue(request.param)


def base_of(hard: list[str]) -> str:
    return [word for word in hard if word.startswith("model.name=")][-1].removeprefix("model.name=")


def close(said: torch.Tensor, run: Path) -> None:
    before = torch.load(run / "logits.pt")
    assert before.abs().max() > 0.1
    torch.testing.assert_close(said, before, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", EACH)
def test_a_loaded_model_says_what_the_trained_one_said(runs, hard, name):
    model, texts = load_model(str(runs / name / "model"))
    close(logits(model, texts), runs / name)
    untrained, _ = load_model(base_of(hard))
    assert (logits(untrained, texts) - torch.load(runs / name / "logits.pt")).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["merged", "merged-zero3"])
def test_lora_on_a_model_that_no_checkpoint_has_is_saved_merged(runs, name):
    model, texts = load_model(str(runs / name / "model"))
    assert not any("lora" in part.name for part in (runs / name / "model").rglob("*"))
    close(logits(model, texts), runs / name)
    plain = InstructBlipForConditionalGeneration.from_pretrained(runs / name / "model")
    assert plain.state_dict().keys() == model.state_dict().keys()
    close(logits(plain, texts), runs / name)


@pytest.mark.parametrize("name", FULL)
def test_plain_transformers_say_so_too(runs, name):
    _, texts = load_model(str(runs / name / "model"))
    plain = InstructBlipForConditionalGeneration.from_pretrained(runs / name / "model")
    close(logits(plain, texts), runs / name)


@pytest.mark.parametrize("name", LORA)
def test_peft_says_so_beside_the_base_and_merged_into_it(runs, hard, name):
    folder = runs / name / "model"
    model, texts = load_model(base_of(hard))
    _, unexpected = model.load_state_dict(load_file(folder / "trained.safetensors"), strict=False)
    assert not unexpected
    untuned = logits(model, texts)
    wrapped = PeftModel.from_pretrained(model.language_model, folder / "adapters" / "language_model")
    assert (logits(model, texts) - untuned).abs().max() > 1e-4
    close(logits(model, texts), runs / name)
    model.language_model = wrapped.merge_and_unload()
    assert not any(".lora_" in key for key in model.state_dict())
    close(logits(model, texts), runs / name)
