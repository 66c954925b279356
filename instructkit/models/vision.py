"""Image encoders of other families in the place of InstructBLIP's: CLIP, SigLIP, DINO, EfficientNet, ConvNeXt, timm's.

An encoder gives features of patches, or a map of features, whose places then are the patches, row by row.
`VisionEncoder` has the interface that `InstructBlip` needs. Pictures come in CLIP's normalisation, as everywhere here;
the encoder's own mean and standard deviation are applied inside. A new layer norm stands behind the encoder, BLIP-2's
`ln_vision`, and is trained with the Q-Former.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from instructkit.data.media import CLIP_MEAN, CLIP_STD


class ImageTower:
    """How models read pictures through `vision_model`: InstructBLIP's encoder, or another family's `VisionEncoder`.

    A layer norm (`post_layernorm`) stands behind either. It is trained though the encoder is frozen, so what a cache
    keeps are the features before it.

    Attributes:
        most_calls: gets how often this rank has to call a module and gives how often it must. ZeRO 3 fetches weights
            at every call with all ranks together, so there it gives the largest number of any rank.
    """

    config: Any
    vision_model: Any
    most_calls: Callable[[int], int] = staticmethod(int)

    def take_encoder(self) -> None:
        """Put the encoder that the configuration describes in the place of InstructBLIP's.

        `config.vision_encoder`, where it is there, is of another family, without weights yet; `post_layernorm_eps` is
        that of the layer norm behind the encoder.
        """
        if (facts := getattr(self.config, "vision_encoder", None)) is not None:
            self.vision_model = VisionEncoder.from_config(facts, self.config.vision_config.hidden_size)
        if (epsilon := getattr(self.config, "post_layernorm_eps", None)) is not None:
            self.vision_model.post_layernorm.eps = epsilon

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Features of distinct images: `[images, 3, height, width]` to `[images, patches + 1, vision width]`."""
        features: Tensor = self.vision_model(pixel_values=pixel_values).last_hidden_state
        return features

    @torch.no_grad()
    def encode_patches(self, pixel_values: Tensor) -> Tensor:
        """What `encode_images` gives before the last layer norm, which is trained though the encoder is frozen."""
        if isinstance(self.vision_model, VisionEncoder):
            return self.vision_model.patches(pixel_values)
        hidden = self.vision_model.embeddings(pixel_values)
        patches: Tensor = self.vision_model.encoder(inputs_embeds=hidden).last_hidden_state
        return patches

    def with_kept(self, pixel_values: Tensor, kept: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Features of images of which a cache has some.

        Args:
            pixel_values: those that it lacks, `[images, 3, height, width]`.
            kept: features of the others (`encode_patches`), `[images, patches + 1, vision width]`.
            order: where each image stands in (`pixel_values`, `kept`), `[images]`.

        Returns:
            Features as `encode_images` gives them, and those of `pixel_values` as `encode_patches` does.
        """
        patches = self._encode_missing(pixel_values, kept)
        together = torch.cat([patches, kept.to(patches.dtype)])[order]
        return self.vision_model.post_layernorm(together.to(self.vision_model.post_layernorm.weight.dtype)), patches

    def _encode_missing(self, pixel_values: Tensor, kept: Tensor) -> Tensor:
        """Features of the pictures that a cache lacks; on a rank that lacks none, one is encoded for the others' sake.

        Args:
            pixel_values: pictures that the cache lacks, `[images, 3, height, width]`.
            kept: features of the others, `[images, patches + 1, vision width]`.
        """
        if len(pixel_values):
            self.most_calls(1)
            return self.encode_patches(pixel_values)
        if self.most_calls(0):
            size = self.config.vision_config.image_size
            self.encode_patches(pixel_values.new_zeros(1, 3, size, size))
        return kept[:0]


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
