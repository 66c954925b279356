"""Pictures of another size: what transformers computes with interpolated positions, and it stays so on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    InstructBlipForConditionalGeneration,
)

from instructkit.config.settings import ModelConfig, RunConfig, TowersConfig
from instructkit.errors import UserError
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.join import join
from instructkit.models.load.trained import save_trained
from instructkit.models.resolution import set_image_size
from instructkit.models.save import load_model, save_model, save_pretraining
from instructkit.models.towers import prepare_towers
from instructkit.training.model import prepare_model, prepare_pretraining
from instructkit.training.plan.shapes import model_on_shapes
from tests.models.checkpoints import write_blip2, write_instructblip, write_vision
from tests.tiny import tiny_model


def larger(model: InstructBlip, size: int) -> InstructBlip:
    set_image_size(model.vision_model, model.config.vision_config, size)
    return model.eval()


def pictures(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize("size", [24, 40, 16, 8])
@torch.no_grad()
def test_features_are_those_of_transformers_with_interpolated_positions(size: int) -> None:
    plain, _ = tiny_model()
    expected = plain.eval().vision_model(pixel_values=pictures(size), interpolate_pos_encoding=True)
    model = larger(plain, size)
    torch.testing.assert_close(model.encode_images(pictures(size)), expected.last_hidden_state, atol=1e-6, rtol=1e-6)
    assert model.encode_patches(pictures(size)).shape[1] == (size // 8) ** 2 + 1


@pytest.mark.parametrize("aware", [True, False])
@torch.no_grad()
def test_a_saved_model_has_its_size_in_transformers_too(aware: bool, tmp_path: Path) -> None:
    model, texts = tiny_model()
    model.config.instruction_aware = aware
    larger(model, 40)
    save_model(model, texts, tmp_path)
    kind = InstructBlipForConditionalGeneration if aware else Blip2ForConditionalGeneration
    plain, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert plain.config.vision_config.image_size == 40
    again, _ = load_model(str(tmp_path))
    for read in (plain.eval(), again.eval()):
        found = read.vision_model(pixel_values=pictures(40)).last_hidden_state
        torch.testing.assert_close(found, model.encode_images(pictures(40)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("vision", ["frozen", "full", "lora"])
@torch.no_grad()
def test_what_a_run_trained_is_put_onto_a_base_of_another_size(vision: str, tmp_path: Path) -> None:
    settings = ModelConfig(str(write_instructblip(tmp_path / "base")), image_size=40)
    towers = TowersConfig(vision=vision)
    model, texts = prepare_model(RunConfig(model=settings, towers=towers), [], tmp_path, lambda line: None)
    assert model.config.vision_config.image_size == 40
    prepare_towers(model, towers)
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.05 * torch.randn_like(parameter)
    state = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    save_trained(tmp_path / "run", model, state, settings, towers, texts)
    again, _ = load_model(str(tmp_path / "run"))
    part, _ = join(ModelConfig(vision=str(tmp_path / "run")), torch.float32, lambda: (texts.llm, texts.qformer))
    expected = model.eval().encode_images(pictures(40))
    for read in (again, part):
        assert read.config.vision_config.image_size == 40
        torch.testing.assert_close(read.eval().encode_images(pictures(40)), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_first_stage_takes_a_size_too(tmp_path: Path) -> None:
    stage1 = write_blip2(tmp_path / "stage1", retrieval=True)
    settings = ModelConfig(vision=str(stage1), qformer=str(stage1), image_size=40)
    model, captions = prepare_pretraining(RunConfig(model=settings), [], tmp_path, lambda line: None)
    plain = Blip2ForImageTextRetrieval.from_pretrained(stage1).eval()
    expected = plain.vision_model(pixel_values=pictures(40), interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(model.eval().encode_images(pictures(40)), expected, atol=1e-6, rtol=1e-6)
    save_pretraining(model, captions, tmp_path / "saved")
    plain, info = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values()), info
    found = plain.eval().vision_model(pixel_values=pictures(40)).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_a_size_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    model, _ = tiny_model()
    with pytest.raises(UserError, match=r"model\.image_size=30: patches of 8 pixels do not fill such a side; take 32"):
        larger(model, 30)
    base = ModelConfig(str(write_blip2(tmp_path / "base")), instruction_aware=False, image_size=36)
    with pytest.raises(UserError, match=r"model\.image_size=36: patches of 8"):
        model_on_shapes(RunConfig(model=base))
    clip = ModelConfig(
        str(write_instructblip(tmp_path / "blip")), vision=str(write_vision(tmp_path / "clip", "clip")), image_size=32
    )
    with pytest.raises(UserError, match=r"model\.image_size=32: a CLIPVisionModel reads pictures of the size"):
        prepare_model(RunConfig(model=clip), [], tmp_path, lambda line: None)
