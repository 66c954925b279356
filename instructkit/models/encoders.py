"""The image encoder of a joined model, from a checkpoint of BLIP-2, InstructBLIP, CLIP, SigLIP, DINO or the like.

Pictures have the size that the encoder's own preprocessor states. As everywhere here the whole picture is resized to a
square, where CLIP's preprocessor would cut its edges off.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import AutoModel, InstructBlipVisionConfig, InstructBlipVisionModel, PreTrainedConfig
from transformers.image_processing_base import ImageProcessingMixin

from instructkit.errors import UserError
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.parts import Loaded, failing, is_blip, place_of, quiet, read_config, read_part
from instructkit.models.vision import VisionEncoder


class Vision(NamedTuple):
    """An image encoder for a joined model.

    Attributes:
        loaded: `InstructBlipVisionModel` or `VisionEncoder`.
        config: its shape in InstructBLIP's terms: width, picture size, patch size.
        foreign: for `InstructBlipConfig.vision_encoder`: the encoder's own configuration, mean and standard deviation;
            None for InstructBLIP's own.
        note: what it is, in a few words.
        epsilon: of the layer norm over the features where it is not the one that `config` states.
    """

    loaded: Loaded
    config: InstructBlipVisionConfig
    foreign: dict[str, Any] | None
    note: str
    epsilon: float | None = None


def load_vision(name: str, dtype: torch.dtype) -> Vision:
    """The image encoder of a checkpoint.

    Args:
        name: of BLIP-2 or InstructBLIP (EVA-CLIP's ViT-g), or of a model that AutoModel loads and that gives features
            of patches for pixels; of CLIP and SigLIP the text side is left out.
        dtype: of its weights.

    Raises:
        UserError: there is none.
    """
    config = read_config(name, "vision")
    if is_blip(config):
        return _load_blip(name, config, dtype)
    return _load_other(name, getattr(config, "vision_config", config), dtype)


def _load_blip(name: str, whole: PreTrainedConfig, dtype: torch.dtype) -> Vision:
    epsilon = getattr(whole, "post_layernorm_eps", None)
    if (foreign := getattr(whole, "vision_encoder", None)) is not None:
        loaded = read_part(InstructBlip, name, "vision", config=whole, dtype=dtype)
        module = loaded.module.vision_model
        return Vision(Loaded(module, frozenset()), whole.vision_config, foreign, type(module.encoder).__name__, epsilon)
    config = InstructBlipVisionConfig.from_dict(whole.vision_config.to_dict())
    loaded = read_part(
        InstructBlipVisionModel, name, "vision", config=config, dtype=dtype, key_mapping={r"^vision_model\.": ""}
    )
    _complete(name, loaded)
    if epsilon is not None:
        loaded.module.post_layernorm.eps = epsilon
    note = f"{config.num_hidden_layers} layers, {config.image_size} pixels, width {config.hidden_size}"
    return Vision(loaded, config, None, note, epsilon)


def _load_other(name: str, config: PreTrainedConfig, dtype: torch.dtype) -> Vision:
    if getattr(config, "vision_use_head", False):
        config.vision_use_head = False  # SigLIP's pooling: nothing here reads it
    loaded = read_part(AutoModel, name, "vision", config=config, dtype=dtype)
    pooling = frozenset(key for key in loaded.fresh if "pool" in key)
    _complete(name, Loaded(loaded.module, loaded.fresh - pooling))
    encoder = loaded.module
    if config.model_type == "clip_vision_model":
        _drop_last_layer(encoder)
    size, mean, std = _preprocessing(name, config)
    with (
        failing(f"model.vision={name}", f"gives no features of patches for pictures of {size} pixels"),
        torch.no_grad(),
    ):
        features = encoder(pixel_values=torch.zeros(1, 3, size, size, dtype=dtype)).last_hidden_state
        _, tokens, width = features.shape
    shape = InstructBlipVisionConfig(
        hidden_size=width,
        intermediate_size=getattr(config, "intermediate_size", 4 * width),
        num_hidden_layers=encoder.config.num_hidden_layers,
        num_attention_heads=encoder.config.num_attention_heads,
        image_size=size,
        patch_size=encoder.config.patch_size,
    )
    foreign = {"config": _plain(encoder.config), "mean": mean, "std": std}
    module = VisionEncoder(encoder, width, mean, std).to(dtype)
    note = f"{type(encoder).__name__}, {shape.num_hidden_layers} layers, {size} pixels, {tokens} patches of {width}"
    return Vision(Loaded(module, frozenset({"post_layernorm.weight", "post_layernorm.bias"})), shape, foreign, note)


def _complete(name: str, loaded: Loaded) -> None:
    if loaded.fresh:
        raise UserError(
            f"model.vision={name}: the checkpoint lacks {len(loaded.fresh)} tensors of its image encoder, among them "
            f"{min(loaded.fresh)}"
        )


def _drop_last_layer(encoder: Any) -> None:
    """CLIP's last layer is made for its class token; BLIP-2 (section 3.4) reads the patches one layer before."""
    layers = encoder.encoder.layers
    del layers[-1]
    encoder.config.num_hidden_layers = len(layers)


def _preprocessing(name: str, config: PreTrainedConfig) -> tuple[int, list[float], list[float]]:
    """Side in pixels, mean and standard deviation that the checkpoint's preprocessor states."""
    with failing(f"model.vision={name}", "its preprocessor_config.json cannot be read"), quiet():
        facts, _ = ImageProcessingMixin.get_image_processor_dict(place_of(name))
    size = facts.get("crop_size") if facts.get("do_center_crop") else facts.get("size")
    side = size if isinstance(size, int) else next(iter((size or {}).values()), config.image_size)
    mean, std = facts.get("image_mean"), facts.get("image_std")
    if facts.get("do_normalize", True) and (mean is None or std is None):
        raise UserError(f"model.vision={name}: its preprocessor_config.json states no image_mean and image_std")
    if not facts.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    return int(side), list(mean), list(std)


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    content: dict[str, Any] = config.to_diff_dict()
    content["model_type"] = config.model_type
    return {key: value for key, value in content.items() if key not in ("dtype", "architectures", "_name_or_path")}
