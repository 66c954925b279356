"""A model of BLIP-2's first stage, or a BLIP, in a program's hands: photos and texts become points to be compared."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from instructkit.data.media import VIDEO_SUFFIXES
from instructkit.errors import UserError
from instructkit.evaluation.photos import Photo, Photos, photo_path
from instructkit.models.batches import Captions, Picture, decode
from instructkit.models.blip import Blip
from instructkit.models.blip2 import Blip2Pretraining, similarity


class Embeddings(NamedTuple):
    """Photos and texts as points that can be compared; float32, on the CPU.

    Attributes:
        images: each query's (BLIP has one), of length 1, `[images, queries, width]`; None without images.
        texts: of length 1, `[texts, width]`; None without texts.
    """

    images: Tensor | None
    texts: Tensor | None

    @property
    def similarity(self) -> Tensor:
        """Of each image and text, -1 to 1, `[images, texts]`: the cosine of the text and the nearest query.

        Raises:
            UserError: images or texts are missing.
        """
        if self.images is None or self.texts is None:
            raise UserError("similarity: is between images and texts; embed both")
        return similarity(self.images, self.texts)


class FirstStageModel:
    """A model of BLIP-2's first stage, which embeds photos and texts; it has no LLM, so it cannot be asked.

    Args:
        model: put into evaluation mode; a BLIP lends its embeddings alone (`BlipModel`).
        captions: its tokeniser.
        name: folder or hub name that it came from; an evaluation keeps it with what was found.
    """

    def __init__(self, model: Blip2Pretraining | Blip, captions: Captions, name: str = "") -> None:
        self.model, self.tokens, self.name = model.eval(), captions, name

    def ask(self, *args: Any, **options: Any) -> NoReturn:
        """There is no LLM that could answer, rank candidates or be looked into.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{self.name or 'the model'}: is a model of BLIP-2's first stage, which has no LLM and answers nothing; it "
            "embeds photos and texts (embed)"
        )

    rank = attention = respond = ask

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.itm_head.weight.device

    @property
    def dtype(self) -> str:
        """What the Q-Former computes in: `float32`, `bfloat16` or `float16`."""
        return str(self.model.itm_head.weight.dtype).removeprefix("torch.")

    @torch.no_grad()
    def embed(
        self, images: Photos | None = None, texts: str | Sequence[str] | None = None, *, batch_size: int = 32
    ) -> Embeddings:
        """Embeddings that compare photos with texts.

        Example:
            >>> model = load_model("runs/stage1_world/model")
            >>> found = model.embed(images=["a.jpg", "b.jpg"], texts=["a red bus", "two dogs"])
            >>> found.similarity                                             # [images, texts], 1 at most
            >>> model.embed(texts="a red bus").texts                         # [1, width]

        Args:
            images: a photo or several.
            texts: a text or several, read as they stand; what is longer than 32 tokens (BLIP: 30) is cut at its end,
                with a warning.
            batch_size: images or texts a forward pass.

        Raises:
            UserError: a photo cannot be read, or there is nothing to embed.
        """
        photos: list[Any] = [] if images is None else list(images) if isinstance(images, list | tuple) else [images]
        words = [] if texts is None else [texts] if isinstance(texts, str) else list(texts)
        if not photos and not words:
            raise UserError("embed: there is nothing to embed; give images=, texts= or both")
        for number, text in enumerate(words, 1):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"embed: text {number} is blank or no text: {text!r}"[:300])
        return Embeddings(
            self._embed_photos(photos, batch_size) if photos else None,
            self._embed_texts(words, batch_size) if words else None,
        )

    def _embed_photos(self, photos: Sequence[Photo], batch_size: int) -> Tensor:
        model, found = self.model, []
        size, weight = model.config.vision_config.image_size, model.itm_head.weight
        with tempfile.TemporaryDirectory(prefix="instructkit-") as scratch:
            paths = [photo_path(each, Path(scratch), f"image {number}") for number, each in enumerate(photos, start=1)]
            for path in paths:
                if path.suffix.lower() in VIDEO_SUFFIXES:
                    raise UserError(f"{path}: pictures are embedded, no videos")
            for start in range(0, len(paths), batch_size):
                pixels = decode([Picture(path) for path in paths[start : start + batch_size]], size)
                features = model.encode_images(pixels.to(weight.device, weight.dtype))
                found.append(model.embed_images(features).float().cpu())
        return torch.cat(found)

    def _embed_texts(self, texts: Sequence[str], batch_size: int) -> Tensor:
        ids, cut = self.tokens.encode(texts)
        if any(cut):
            warnings.warn(
                f"{sum(cut):,} of {len(cut):,} texts are longer than {self.tokens.limit} tokens; their beginning "
                "alone was read",
                stacklevel=3,
            )
        found = []
        for start in range(0, len(ids), batch_size):
            rows = self.tokens.padded(ids[start : start + batch_size])
            found.append(self.model.embed_texts(**{name: each.to(self.device) for name, each in rows.items()}))
        return torch.cat(found).float().cpu()
