"""Image encoders of other families in the place of InstructBLIP's: CLIP, SigLIP, DINO, EfficientNet, ConvNeXt, timm's.

An encoder gives features of patches, or a map of features, whose places then are the patches, row by row.
`VisionEncoder` has the interface that `InstructBlip` needs. Pictures come in CLIP's normalisation, as everywhere here;
the encoder's own mean and standard deviation are applied inside. A new layer norm stands behind the encoder, BLIP-2's
`ln_vision`, and is trained with the Q-Former.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from instructkit.data.media import CLIP_MEAN, CLIP_STD


class VisionEncoder(nn.Module):
    """An image encoder of another family with a new layer norm behind it.

    Args:
        encoder: gives `last_hidden_state` for `pixel_values`.
        width: of its features.
        mean: of the pictures that it was trained on, by channel.
        std: likewise.
        layer: which of its `hidden_states` is read in place of the last one, as transformers counts them: 0 is what
            enters the first layer (or stage), n what leaves the n-th; negative numbers count from the end.
    """

    def __init__(
        self, encoder: nn.Module, width: int, mean: list[float], std: list[float], layer: int | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.post_layernorm = nn.LayerNorm(width)
        self.mean, self.std, self.layer = mean, std, layer

    @classmethod
    def from_config(cls, facts: dict[str, Any], width: int) -> VisionEncoder:
        """An encoder without weights of its own yet, from `InstructBlipConfig.vision_encoder`."""
        config = AutoConfig.for_model(**facts["config"])
        encoder = AutoModel.from_config(config, dtype=torch.get_default_dtype())
        return cls(encoder, width, facts["mean"], facts["std"], facts.get("layer"))

    def patches(self, pixel_values: Tensor) -> Tensor:
        """Features before the layer norm, `[images, patches, width]`, of pictures in CLIP's normalisation."""
        mean, std, clip_mean, clip_std = (
            torch.tensor(value, device=pixel_values.device, dtype=torch.float32)[:, None, None]
            for value in (self.mean, self.std, CLIP_MEAN, CLIP_STD)
        )
        own = (pixel_values.float() * clip_std + (clip_mean - mean)) / std
        return read_features(self.encoder, own.to(next(self.encoder.parameters()).dtype), self.layer)

    def forward(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = False, return_dict: bool = True
    ) -> BaseModelOutputWithPooling:
        """Features as the Q-Former reads them."""
        if interpolate_pos_encoding:
            raise ValueError("this image encoder takes pictures of one size: no interpolate_pos_encoding")
        features = self.patches(pixel_values).to(self.post_layernorm.weight.dtype)
        return BaseModelOutputWithPooling(last_hidden_state=self.post_layernorm(features))


def read_features(encoder: nn.Module, pixel_values: Tensor, layer: int | None = None) -> Tensor:
    """An encoder's features of square pictures in its own normalisation: `[images, patches, width]`.

    Args:
        encoder: as `VisionEncoder` takes it.
        pixel_values: `[images, 3, size, size]`.
        layer: as `VisionEncoder` takes it.

    Raises:
        ValueError: the features are none of patches.
        IndexError: there is no such layer; the message says which there are.
    """
    if layer is None:
        return patch_rows(encoder(pixel_values=pixel_values).last_hidden_state)
    states = encoder(pixel_values=pixel_values, output_hidden_states=True).hidden_states
    if not -len(states) <= layer < len(states):
        raise IndexError(f"its layers are 0 to {len(states) - 1}, or -{len(states)} to -1 from the end")
    return patch_rows(states[layer])


def patch_rows(features: Tensor) -> Tensor:
    """Features of patches as `[images, patches, width]`.

    A map is `[images, width, rows, columns]` or `[images, rows, columns, width]`: of a square picture it has as many
    rows as columns.

    Raises:
        ValueError: the features are neither of patches nor a map.
    """
    if features.ndim == 3:
        return features
    if features.ndim != 4:
        raise ValueError(f"features of shape {tuple(features.shape)}")
    _, first, second, third = features.shape
    if first == second != third:
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)
