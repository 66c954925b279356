"""Pictures of another size than BLIP's ViT was trained on: its position embeddings are interpolated."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from instructkit.errors import UserError
from instructkit.models.vision import VisionEncoder


def set_image_size(vision: Any, config: Any, size: int) -> None:
    """Let an image encoder read pictures of another size, in place.

    Its position embeddings, a square of patches behind the class token, are interpolated once, bicubically: the same
    that transformers computes at every call with `interpolate_pos_encoding`. The parameter has its new length then, and
    the configuration the new size, so what is saved loads anywhere.

    Args:
        vision: `InstructBlipVisionModel`.
        config: of the encoder, as the whole model has it.
        size: pixels of a side.

    Raises:
        UserError: the encoder is of another family, whose size is part of it, or patches do not fill the side.
    """
    if isinstance(vision, VisionEncoder):
        raise UserError(
            f"model.image_size={size}: a {type(vision.encoder).__name__} reads pictures of the size that it was "
            "trained on; only BLIP's own encoder takes others"
        )
    check_image_size(size, config.patch_size)
    embeddings = vision.embeddings
    old = embeddings.position_embedding
    with torch.no_grad():
        embeddings.position_embedding = nn.Parameter(
            interpolate(old.data, size // config.patch_size), requires_grad=old.requires_grad
        )
    embeddings.num_patches = (size // config.patch_size) ** 2
    embeddings.num_positions = embeddings.num_patches + 1
    embeddings.image_size = size
    for each in (config, vision.config, embeddings.config):
        each.image_size = size


def check_image_size(size: int, patch: int) -> None:
    """Refuse a side that whole patches do not fill.

    Raises:
        UserError: they do not.
    """
    if size % patch:
        near = max(patch, round(size / patch) * patch)
        raise UserError(f"model.image_size={size}: patches of {patch} pixels do not fill such a side; take {near}")


def interpolate(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Position embeddings `[1, patches + 1, width]`, class token first, for `side` x `side` patches."""
    first, patches = positions[:, :1], positions[:, 1:]
    before = math.isqrt(patches.shape[1])
    square = patches.float().reshape(1, before, before, -1).permute(0, 3, 1, 2)
    other = nn.functional.interpolate(square, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([first, other.permute(0, 2, 3, 1).flatten(1, 2).to(patches.dtype)], dim=1)
