"""Features of a frozen image encoder on disk: an image that was seen once is neither decoded nor encoded again.

One file an image, named by a digest of all that the features follow from: the encoder's weights and precision, the
picture's size in pixels, the file's path, length and time of change, for videos the frame. Files appear whole, by
renaming, so several runs and ranks may fill one folder. ViT-g's features take 724 KB an image in bf16.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from instructkit.config.settings import RunConfig
from instructkit.data.media import located
from instructkit.errors import UserError
from instructkit.models.batches import Picture
from instructkit.models.blip2 import Blip2Pretraining
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.vision import VisionEncoder

_FORMAT = "1"


class Found(NamedTuple):
    """What a cache has of some pictures.

    Attributes:
        patches: features of those it has, `[pictures, patches + 1, vision width]`.
        missing: numbers of those it has not.
        files: where these are to be kept.
        order: where each picture stands in the missing ones followed by the others, `[pictures]`.
    """

    patches: Tensor
    missing: list[int]
    files: list[Path]
    order: Tensor


class FeatureCache:
    """A folder of features.

    Args:
        folder: made if missing.
        encoder: digest of the encoder (`encoder_digest`).
        shape: patches + 1 and width of an image's features.
    """

    def __init__(self, folder: Path, encoder: str, shape: tuple[int, int]) -> None:
        self.folder, self.encoder, self.shape = folder, encoder, shape

    def file(self, picture: Picture) -> Path:
        """Where a picture's features are kept.

        Raises:
            UserError: there is no such picture.
        """
        path = located(picture.path.absolute())
        try:
            facts = path.stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        what = (_FORMAT, self.encoder, path, facts.st_size, facts.st_mtime_ns, picture[1:])
        digest = hashlib.blake2b(repr(what).encode(), digest_size=20).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:]}.safetensors"

    def find(self, pictures: Sequence[Picture]) -> Found:
        """What is kept of some distinct pictures.

        Raises:
            UserError: a picture is missing, or a kept file is damaged.
        """
        files = [self.file(picture) for picture in pictures]
        there = [file.is_file() for file in files]
        kept = [self._load(file) for file, known in zip(files, there, strict=True) if known]
        missing = [number for number, known in enumerate(there) if not known]
        sequence = [*missing, *(number for number, known in enumerate(there) if known)]
        patches = torch.stack(kept) if kept else torch.empty(0, *self.shape)
        return Found(patches, missing, [files[number] for number in missing], torch.tensor(sequence).argsort())

    def _load(self, file: Path) -> Tensor:
        try:
            patches = load_file(file)["patches"]
        except (SafetensorError, KeyError, OSError) as error:
            raise UserError(f"{file}: damaged ({error}); remove it and its features are made again") from error
        if tuple(patches.shape) != self.shape:
            raise UserError(f"{file}: features of shape {tuple(patches.shape)}, not {self.shape}; remove it")
        return patches


def keep(files: Sequence[Path], patches: Tensor) -> None:
    """Write features where `FeatureCache.find` will look for them.

    Args:
        files: one an image.
        patches: `[files, patches + 1, vision width]`.
    """
    for file, image in zip(files, patches.cpu().unbind(), strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=file.parent, suffix=".partial")
        os.close(handle)
        try:
            save_file({"patches": image.contiguous()}, aside)
            os.replace(aside, file)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise


def encoder_digest(model: InstructBlip | Blip2Pretraining, precision: str) -> str:
    """Digest of an image encoder: weights but the last layer norm's, settings and the precision it computes in."""
    config = model.config.vision_config
    facts = f"{precision} {config.image_size} {config.hidden_act}"
    if isinstance(model.vision_model, VisionEncoder):
        facts += f" {model.config.vision_encoder}"
    digest = hashlib.blake2b(facts.encode(), digest_size=20)
    for name, weight in model.vision_model.state_dict().items():
        if not name.startswith("post_layernorm."):
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            # Flat, as a single number has no bytes to view.
            digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def open_cache(config: RunConfig, model: InstructBlip | Blip2Pretraining) -> FeatureCache | None:
    """The cache that a run asks for."""
    if config.throughput.feature_cache is None:
        return None
    vision = model.config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    if isinstance(model.vision_model, VisionEncoder):  # with or without class token and registers
        weight = model.vision_model.post_layernorm.weight
        tokens = model.encode_patches(weight.new_zeros(1, 3, vision.image_size, vision.image_size)).shape[1]
    shape = (tokens, vision.hidden_size)
    digest = encoder_digest(model, config.training.precision)
    return FeatureCache(Path(config.throughput.feature_cache), digest, shape)
