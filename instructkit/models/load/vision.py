"""The image encoder of a joined model, from a checkpoint of BLIP-2, InstructBLIP, CLIP, SigLIP, DINO, a CNN.

Pictures have the size that the encoder's own preprocessor states. As everywhere here the whole picture is resized to a
square, where CLIP's preprocessor would cut its edges off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import AutoModel, InstructBlipVisionConfig, InstructBlipVisionModel, PreTrainedConfig
from transformers.image_processing_base import ImageProcessingMixin

from instructkit.errors import UserError
from instructkit.models.blip2 import Blip2Pretraining
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.parts import Loaded, failing, has_qformer, place_of, quiet, read_config, read_part
from instructkit.models.vision import VisionEncoder, read_features


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


def load_vision(name: str, dtype: torch.dtype, layer: int | None = None) -> Vision:
    """The image encoder of a checkpoint.

    Args:
        name: of BLIP-2 or InstructBLIP (EVA-CLIP's ViT-g), or of a model that AutoModel loads and that gives features
            of patches for pixels; of CLIP and SigLIP the text side is left out.
        dtype: of its weights.
        layer: which of its layers is read (`model.vision_layer`); None for the last, of CLIP the one before.

    Raises:
        UserError: there is none, or no such layer.
    """
    config = read_config(name, "vision")
    if has_qformer(config):
        return _load_of_whole(name, config, dtype, layer)
    return _load_other(name, getattr(config, "vision_config", config), dtype, layer)


def _load_of_whole(name: str, whole: PreTrainedConfig, dtype: torch.dtype, layer: int | None) -> Vision:
    epsilon = getattr(whole, "post_layernorm_eps", None)
    if (foreign := getattr(whole, "vision_encoder", None)) is not None:
        if layer is not None and layer != foreign.get("layer"):
            raise UserError(
                f"model.vision_layer={layer}: the encoder of {name} was trained on with layer {foreign.get('layer')}; "
                "name the encoder's own checkpoint as model.vision"
            )
        kind = Blip2Pretraining if whole.model_type == "blip-2" else InstructBlip
        loaded = read_part(kind, name, "vision", config=whole, dtype=dtype)
        module = loaded.module.vision_model
        shape = InstructBlipVisionConfig.from_dict(whole.vision_config.to_dict())
        return Vision(Loaded(module, frozenset()), shape, foreign, type(module.encoder).__name__, epsilon)
    config = InstructBlipVisionConfig.from_dict(whole.vision_config.to_dict())
    loaded = read_part(
        InstructBlipVisionModel, name, "vision", config=config, dtype=dtype, key_mapping={r"^vision_model\.": ""}
    )
    _complete(name, loaded)
    if epsilon is not None:
        loaded.module.post_layernorm.eps = epsilon
    if layer is not None:
        _keep_layers(loaded.module, layer)
        config.num_hidden_layers = loaded.module.config.num_hidden_layers
    note = f"{config.num_hidden_layers} layers, {config.image_size} pixels, width {config.hidden_size}"
    return Vision(loaded, config, None, note, epsilon)


def _load_other(name: str, config: PreTrainedConfig, dtype: torch.dtype, layer: int | None) -> Vision:
    if getattr(config, "vision_use_head", False):
        config.vision_use_head = False  # SigLIP's pooling: nothing here reads it
    loaded = read_part(AutoModel, name, "vision", config=config, dtype=dtype)
    pooling = frozenset(key for key in loaded.fresh if "pool" in key)
    _complete(name, Loaded(loaded.module, loaded.fresh - pooling))
    encoder = loaded.module
    if config.model_type == "clip_vision_model" and layer is None:
        _drop_last_layer(encoder)
    size, mean, std = _preprocessing(name, config)
    features = _probe(name, encoder, size, dtype, layer)
    _, tokens, width = features.shape
    shape = _shape(encoder.config, size, tokens, width)
    layers = shape.num_hidden_layers
    foreign = _facts(encoder.config, mean, std, layer)
    module = VisionEncoder(encoder, width, mean, std, layer).to(dtype)
    depth = f"{layers} layers, " if layers else ""
    read = "" if layer is None else f"layer {layer}, "
    note = f"{type(encoder).__name__}, {depth}{read}{size} pixels, {tokens} patches of {width}"
    return Vision(Loaded(module, frozenset({"post_layernorm.weight", "post_layernorm.bias"})), shape, foreign, note)


def vision_shape(
    name: str, layer: int | None, read: Callable[[str, str], PreTrainedConfig]
) -> tuple[InstructBlipVisionConfig, dict[str, Any] | None]:
    """Shape and facts (`Vision.config`, `Vision.foreign`) of an encoder that `load_vision` would load, without weights.

    Args:
        name: as `load_vision` takes it.
        layer: likewise.
        read: gives the configuration of a checkpoint, by its name and the setting that named it.

    Raises:
        UserError: there is none.
    """
    whole = read(name, "vision")
    if has_qformer(whole):
        config = InstructBlipVisionConfig.from_dict(whole.vision_config.to_dict())
        if layer is not None:
            config.num_hidden_layers = layer if layer > 0 else config.num_hidden_layers + 1 + layer
        return config, getattr(whole, "vision_encoder", None)
    own = getattr(whole, "vision_config", whole)
    if getattr(own, "vision_use_head", False):
        own.vision_use_head = False
    if own.model_type == "clip_vision_model" and layer is None:
        own.num_hidden_layers -= 1
    size, mean, std = _preprocessing(name, own)
    with torch.device("meta"), torch.no_grad(), failing(f"model.vision={name}", "gives no features of patches"):
        encoder = AutoModel.from_config(own)
        _, tokens, width = read_features(encoder.eval(), torch.empty(1, 3, size, size), layer).shape
    return _shape(encoder.config, size, tokens, width), _facts(encoder.config, mean, std, layer)


def _shape(own: Any, size: int, tokens: int, width: int) -> InstructBlipVisionConfig:
    """An encoder's shape in InstructBLIP's terms."""
    return InstructBlipVisionConfig(
        hidden_size=width,
        intermediate_size=getattr(own, "intermediate_size", 4 * width),
        num_hidden_layers=getattr(own, "num_hidden_layers", None) or sum(getattr(own, "depths", ())),
        num_attention_heads=_number(own, "num_attention_heads") or 1,
        image_size=size,
        patch_size=_number(own, "patch_size") or max(1, size // math.isqrt(tokens)),
    )


def _facts(own: PreTrainedConfig, mean: list[float], std: list[float], layer: int | None) -> dict[str, Any]:
    """What `VisionEncoder.from_config` needs."""
    facts: dict[str, Any] = {"config": _plain(own), "mean": mean, "std": std}
    if layer is not None:
        facts["layer"] = layer
    return facts


@torch.no_grad()
def _probe(name: str, encoder: Any, size: int, dtype: torch.dtype, layer: int | None) -> torch.Tensor:
    """What an encoder makes of a picture, `[1, patches, width]`, where it is something to read.

    Raises:
        UserError: it gives no features of patches, or others each time.
    """
    picture = torch.linspace(-1, 1, 3 * size * size).to(dtype).reshape(1, 3, size, size)
    with failing(f"model.vision={name}", f"gives no features of patches for pictures of {size} pixels"):
        try:
            features, again = (read_features(encoder, picture, layer) for _ in range(2))
        except IndexError as error:
            if layer is None:
                raise ValueError(str(error)) from error
            raise UserError(f"model.vision_layer={layer}: of {name} there is no such layer; {error}") from error
    if not torch.equal(features, again):
        raise UserError(
            f"model.vision={name}: a {encoder.config.model_type} gives other features for the same picture each time; "
            "take an encoder that draws nothing at random"
        )
    return features


def _number(config: PreTrainedConfig, key: str) -> int:
    """A size that some encoders state as one number, others stage by stage or not at all: 0 for these."""
    value = getattr(config, key, 0)
    return value if isinstance(value, int) else 0


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


def _keep_layers(encoder: InstructBlipVisionModel, layer: int) -> None:
    """Leave out the layers of EVA-CLIP's ViT behind the one that is read."""
    layers = encoder.encoder.layers
    kept = layer if layer > 0 else len(layers) + 1 + layer
    if not 0 < kept <= len(layers):
        raise UserError(f"model.vision_layer={layer}: the encoder's layers are 1 to {len(layers)}")
    del layers[kept:]
    encoder.config.num_hidden_layers = kept


def _preprocessing(name: str, config: PreTrainedConfig) -> tuple[int, list[float], list[float]]:
    """Side in pixels, and the mean and standard deviation that the checkpoint's preprocessor comes to.

    They are those of colours from 0 to 1, whatever range the preprocessor brings colours to before it normalises them.
    """
    if (own := getattr(config, "pretrained_cfg", None)) is not None:  # timm's
        return int(own["input_size"][-1]), list(own["mean"]), list(own["std"])
    with failing(f"model.vision={name}", "its preprocessor_config.json cannot be read"), quiet():
        facts, _ = ImageProcessingMixin.get_image_processor_dict(place_of(name))
    size = facts.get("crop_size") if facts.get("do_center_crop") else facts.get("size")
    side = size if isinstance(size, int) else next(iter((size or {}).values()), getattr(config, "image_size", None))
    if not isinstance(side, int):
        raise UserError(f"model.vision={name}: its preprocessor_config.json states no size of pictures")
    mean, std = facts.get("image_mean"), facts.get("image_std")
    if facts.get("do_normalize", True) and (mean is None or std is None):
        raise UserError(f"model.vision={name}: its preprocessor_config.json states no image_mean and image_std")
    if not facts.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    scale, shift = 255.0, 0.0  # as in a file
    if facts.get("do_rescale", True):
        scale, shift = 255 * facts.get("rescale_factor", 1 / 255), float(facts.get("rescale_offset") or 0)
    kind = str(facts.get("image_processor_type") or facts.get("feature_extractor_type"))
    twice = facts.get("include_top", kind.startswith("EfficientNet"))  # EfficientNet's divides by it once more
    return (
        int(side),
        [(value + shift) / scale for value in mean],
        [(value * value if twice else value) / scale for value in std],
    )


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    content: dict[str, Any] = config.to_diff_dict()
    content["model_type"] = config.model_type
    return {key: value for key, value in content.items() if key not in ("dtype", "architectures", "_name_or_path")}
