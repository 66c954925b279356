"""Encoders of every family: read as their own library gives them, and left as they are while others are trained."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from instructkit.config.read import load_config
from instructkit.config.settings import ModelConfig, TowersConfig
from instructkit.data.media import CLIP_MEAN, CLIP_STD
from instructkit.errors import UserError
from instructkit.models.load.join import join
from instructkit.models.save import load_model, save_model
from instructkit.models.towers import prepare_towers, set_modes
from instructkit.training.features import FeatureCache, encoder_digest, keep, open_cache
from tests.matrix import mostly_full
from tests.models.checkpoints import ENCODERS, MAPS, write_blip2, write_encoder, write_instructblip
from tests.models.test_instruct_blip import batch
from tests.models.test_joining import joined, own_pixels, pixels_for, tokenizers
from tests.tiny import tiny_model

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "configs" / "easy_vqa.yaml"
NEEDS_TIMM = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("timm", "torchvision"))), reason="timm and torchvision are not installed"
)
FAMILIES = [
    *ENCODERS,
    *(pytest.param(f"timm:{name}", marks=NEEDS_TIMM) for name in ("resnet18", "swin_tiny_patch4_window7_224")),
]
TRAINED = {
    "the paper's": TowersConfig(),
    "all but the encoder": TowersConfig(qformer="full", llm="full"),
    "lora beside it": TowersConfig(qformer="lora", llm="lora"),
}


def as_rows(features: torch.Tensor, channels_last: bool = False) -> torch.Tensor:
    """The places of a map one behind the other, by hand."""
    if features.ndim == 3:
        return features
    if channels_last:
        features = features.permute(0, 3, 1, 2)
    rows = [features[:, :, row, column] for row in range(features.shape[2]) for column in range(features.shape[3])]
    return torch.stack(rows, 1)


def joined_at(layer, **parts):
    settings = ModelConfig(vision_layer=layer, **{name: str(place) for name, place in parts.items()})
    model, texts = join(settings, torch.float32, tokenizers)
    return model.eval(), texts


def plain_states(folder, pixel_values):
    """Last features and hidden states of a checkpoint by its own library."""
    encoder = AutoModel.from_pretrained(folder).eval()
    encoder = getattr(encoder, "vision_model", encoder)
    with torch.no_grad():
        out = encoder(pixel_values=own_pixels(pixel_values), output_hidden_states=True)
        last = encoder(pixel_values=own_pixels(pixel_values)).last_hidden_state
    return last, out.hidden_states


def pictures(model, count=2):
    size = model.config.vision_config.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", mostly_full(FAMILIES, "clip", "siglip", "beit", "swin", "resnet"))
def test_features_are_those_of_the_encoders_own_library(family, tmp_path):
    folder = write_encoder(tmp_path / "encoder", family)
    model, texts = joined(vision=folder)
    seen = pictures(model)
    last, states = plain_states(folder, seen)
    expected = states[-2] if family == "clip" else last
    assert (expected.ndim == 4) == (family in MAPS or family.startswith("timm:"))
    expected = as_rows(expected, channels_last="swin" in family)
    torch.testing.assert_close(model.encode_patches(seen), expected, atol=2e-5, rtol=1e-4)
    assert model.encode_images(seen).shape == expected.shape
    save_model(model, texts, tmp_path / "whole")
    again, _ = load_model(str(tmp_path / "whole"))
    torch.testing.assert_close(again.eval().encode_patches(seen), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", mostly_full(FAMILIES, "clip", "swin", "resnet"))
@pytest.mark.parametrize("layer", mostly_full([1, -2], -2))
def test_the_layer_that_is_asked_for_is_read(family, layer, tmp_path):
    folder = write_encoder(tmp_path / "encoder", family)
    model, texts = joined_at(layer, vision=folder)
    seen = pictures(model)
    expected = as_rows(plain_states(folder, seen)[1][layer])
    torch.testing.assert_close(model.encode_patches(seen), expected, atol=2e-5, rtol=1e-4)
    save_model(model, texts, tmp_path / "whole")
    again, _ = load_model(str(tmp_path / "whole"))
    torch.testing.assert_close(again.eval().encode_patches(seen), expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("write", [write_instructblip, write_blip2])
@pytest.mark.parametrize("layer", [1, -2])
def test_a_layer_of_blips_own_encoder(write, layer, tmp_path):
    source = write(tmp_path / "blip")
    model, _ = joined_at(layer, vision=source)
    seen = pictures(model)
    plain = joined(vision=source)[0].vision_model
    states = plain(seen, output_hidden_states=True).hidden_states
    assert len(states) == len(plain.encoder.layers) + 1
    torch.testing.assert_close(model.encode_patches(seen), states[layer], atol=1e-5, rtol=1e-4)


def test_a_layer_that_is_not_there_is_said_in_one_line(tmp_path):
    source, encoder = write_instructblip(tmp_path / "blip"), write_encoder(tmp_path / "resnet", "resnet")
    for layer, parts, message in [
        (9, {"vision": encoder}, r"model\.vision_layer=9: .*; its layers are 0 to 2"),
        (-9, {"vision": encoder}, r"model\.vision_layer=-9"),
        (9, {"vision": source}, r"model\.vision_layer=9: the encoder's layers are 1 to 2"),
        (0, {"vision": source}, r"model\.vision_layer=0"),
        (1, {}, r"model\.vision_layer=1: nano's own encoder"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            joined_at(layer, **parts)
        assert "\n" not in str(caught.value)


def test_an_encoder_that_draws_at_random_is_refused(tmp_path):
    with pytest.raises(UserError, match="a vit_mae gives other features for the same picture each time"):
        joined(vision=write_encoder(tmp_path / "mae", "vit_mae"))


@pytest.mark.parametrize(
    ("facts", "scale"),
    [
        ({"do_rescale": True, "rescale_factor": 1 / 127.5, "rescale_offset": True}, lambda x: x / 127.5 - 1),
        ({"do_rescale": False}, lambda x: x),
        ({"rescale_factor": 1 / 128}, lambda x: x / 128),
    ],
)
@pytest.mark.parametrize("twice", [True, False])
def test_pictures_are_normalised_as_the_preprocessor_does(facts, scale, twice, tmp_path):
    folder = write_encoder(tmp_path / "resnet", "resnet")
    path = folder / "preprocessor_config.json"
    own = json.loads(path.read_text())
    path.write_text(json.dumps({**own, **facts, "include_top": twice}))
    model, _ = joined(vision=folder)
    seen = pictures(model)
    colours = 255 * (seen * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1))
    mean, std = (torch.tensor(own[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    expected = (scale(colours) - mean) / std
    expected = expected / std if twice else expected
    encoder = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        features = as_rows(encoder(pixel_values=expected).last_hidden_state)
    torch.testing.assert_close(model.encode_patches(seen), features, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("trained", mostly_full(TRAINED, "all but the encoder"))
@pytest.mark.parametrize("family", mostly_full(FAMILIES, "vit", "swin", "resnet", "efficientnet"))
def test_a_frozen_encoder_stays_as_it_is_whatever_is_trained_beside_it(family, trained, tmp_path):
    model, texts = joined(vision=write_encoder(tmp_path / "encoder", family, dropout=0.3))
    seen = pictures(model)
    inputs = pixels_for(model, batch(texts))
    alone = model.encode_patches(seen)
    before = {name: value.clone() for name, value in model.vision_model.encoder.state_dict().items()}
    prepare_towers(model, TRAINED[trained])
    set_modes(model, training=True)
    norm = model.vision_model.post_layernorm
    assert norm.weight.requires_grad
    first = norm.weight.clone()
    assert not any(module.training for module in model.vision_model.encoder.modules())
    assert model.qformer.training
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(**inputs).total.backward()
        optimizer.step()
    assert not torch.equal(norm.weight, first)
    torch.testing.assert_close(model.encode_patches(seen), alone, atol=0, rtol=0)
    after = model.vision_model.encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("setting", ["full", "lora"])
def test_running_statistics_are_the_checkpoints_where_the_encoder_is_trained(setting, tmp_path):
    family = "efficientnet" if setting == "full" else "mobilevit"
    model, texts = joined(vision=write_encoder(tmp_path / "encoder", family))
    before = {name: value.clone() for name, value in model.vision_model.named_buffers()}
    assert any("running_mean" in name for name in before)
    prepare_towers(model, TowersConfig(vision=setting))
    set_modes(model, training=True)
    model(**pixels_for(model, batch(texts))).total.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.vision_model.named_buffers())
    assert any(weight.grad is not None for weight in model.vision_model.encoder.parameters())


def test_a_tower_with_lora_is_in_training_mode_but_not_its_frozen_layers():
    model, _ = tiny_model()
    prepare_towers(model, TowersConfig(llm="lora", lora_targets=["language_model.model.layers.1.*"]))
    set_modes(model, training=True)
    layers = model.language_model.model.layers
    assert not any(module.training for module in layers[0].modules())
    assert layers[1].training
    assert layers[1].self_attn.training
    set_modes(model, training=False)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("qformer", ["full", "lora", "frozen"])
@pytest.mark.parametrize("vision", ["frozen", "lora", "full"])
def test_the_norm_over_the_features_is_trained_with_the_qformer(vision, qformer):
    model, _ = tiny_model()
    prepare_towers(model, TowersConfig(vision=vision, qformer=qformer, llm="full"))
    trained = qformer != "frozen"
    assert model.query_tokens.requires_grad == model.language_projection.weight.requires_grad == trained
    norm = model.vision_model.post_layernorm.weight
    assert norm.requires_grad == (trained or vision == "full")


def test_a_tower_without_linear_layers_has_no_lora(tmp_path):
    model, _ = joined(vision=write_encoder(tmp_path / "encoder", "resnet"))
    with pytest.raises(UserError, match=r"vision_model .* it has no linear layer; set towers\.vision=frozen or full"):
        prepare_towers(model, TowersConfig(vision="lora"))


@pytest.mark.parametrize("family", mostly_full(["resnet", "efficientnet", "convnext", "swin"], "resnet", "swin"))
def test_features_of_a_map_are_kept_and_read_again(family, tmp_path):
    model, texts = joined(vision=write_encoder(tmp_path / "encoder", family))
    config = load_config(
        RECIPE,
        [f"feature_cache={tmp_path / 'kept'}", "data.augment=false", "towers.vision=frozen"],
    )
    prepare_towers(model, TowersConfig())
    set_modes(model, training=True)
    cache = open_cache(config, model)
    assert isinstance(cache, FeatureCache)
    inputs = pixels_for(model, batch(texts))
    patches = model.encode_patches(inputs["pixel_values"])
    assert patches.shape[1:] == cache.shape
    digest = encoder_digest(model, "fp32")
    file = tmp_path / "one.safetensors"
    keep([file], patches[:1])
    torch.testing.assert_close(cache._load(file), patches[0])
    order = torch.arange(len(patches))
    kept = model(**{**inputs, "pixel_values": inputs["pixel_values"][:0]}, image_patches=patches, image_order=order)
    torch.testing.assert_close(kept.rows, model.eval()(**inputs).rows, atol=1e-4, rtol=1e-5)
    assert encoder_digest(model, "fp32") == digest
