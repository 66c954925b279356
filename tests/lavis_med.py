"""LAVIS's BLIP with tiny recorded weights, and what it made of recorded inputs (`tests.lavis_stage1` says how).

No size is written here: all follow from the files.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformers import BlipConfig, BlipTextConfig, BlipVisionConfig

from instructkit.models.blip import Blip
from tests.lavis_stage1 import FOLDER, recorded


def facts(name: str = "med_pretrain") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


class Features(nn.Module):
    """In the place of an image encoder: pictures are its outputs, which were recorded."""

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=pixel_values)


def ours(name: str) -> str:
    """A parameter of LAVIS under its name here."""
    return "temperature" if name == "temp" else name


def config() -> BlipConfig:
    size, ids = facts()["config"], facts()["ids"]
    same = "hidden_size num_hidden_layers num_attention_heads intermediate_size vocab_size max_position_embeddings"
    text = BlipTextConfig(
        **{key: size[key] for key in [*same.split(), "layer_norm_eps"]},
        bos_token_id=ids["dec_bos"],
        eos_token_id=ids["sep"],
        sep_token_id=ids["sep"],
        pad_token_id=ids["pad"],
    )
    vision = BlipVisionConfig(
        hidden_size=size["encoder_width"], num_hidden_layers=0, num_attention_heads=1, image_size=8, patch_size=8
    )
    made = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=size["embed_dim"])
    made.sharing, made.enc_token_id = "all_but_self_attention", ids["enc"]
    return made


def model() -> Blip:
    """The recorded model; its image encoder is none."""
    made = Blip(config()).eval()
    made.vision_model = Features()
    named = {ours(name): tensor for name, tensor in recorded("med_weights").items() if not _of_training(name)}
    named["temperature"] = named["temperature"].reshape(1)
    found = made.load_state_dict(named, strict=False)
    assert not found.unexpected_keys, found.unexpected_keys
    assert not set(found.missing_keys) & {name for name, _ in made.named_parameters()}, found.missing_keys
    return made


def _of_training(name: str) -> bool:
    return "queue" in name or "_m." in name
