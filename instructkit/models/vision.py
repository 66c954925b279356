"""Image encoders of other families in the place of InstructBLIP's: CLIP, SigLIP, DINO, whatever gives patch features.

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

from instructkit.media import CLIP_MEAN, CLIP_STD


class VisionEncoder(nn.Module):
    """An image encoder of another family with a new layer norm behind it.

    Args:
        encoder: gives `last_hidden_state` for `pixel_values`.
        width: of its features.
        mean: of the pictures that it was trained on, by channel.
        std: likewise.
    """

    def __init__(self, encoder: nn.Module, width: int, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.encoder = encoder
        self.post_layernorm = nn.LayerNorm(width)
        self.mean, self.std = mean, std

    @classmethod
    def from_config(cls, facts: dict[str, Any], width: int) -> VisionEncoder:
        """An encoder without weights of its own yet, from `InstructBlipConfig.vision_encoder`."""
        config = AutoConfig.for_model(**facts["config"])
        return cls(AutoModel.from_config(config, dtype=torch.get_default_dtype()), width, facts["mean"], facts["std"])

    def patches(self, pixel_values: Tensor) -> Tensor:
        """Features before the layer norm, `[images, patches, width]`, of pictures in CLIP's normalisation."""
        mean, std, clip_mean, clip_std = (
            torch.tensor(value, device=pixel_values.device, dtype=torch.float32)[:, None, None]
            for value in (self.mean, self.std, CLIP_MEAN, CLIP_STD)
        )
        own = (pixel_values.float() * clip_std + (clip_mean - mean)) / std
        features: Tensor = self.encoder(pixel_values=own.to(next(self.encoder.parameters()).dtype)).last_hidden_state
        return features

    def forward(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = False, return_dict: bool = True
    ) -> BaseModelOutputWithPooling:
        """Features as the Q-Former reads them."""
        if interpolate_pos_encoding:
            raise ValueError("this image encoder takes pictures of one size: no interpolate_pos_encoding")
        features = self.patches(pixel_values).to(self.post_layernorm.weight.dtype)
        return BaseModelOutputWithPooling(last_hidden_state=self.post_layernorm(features))
