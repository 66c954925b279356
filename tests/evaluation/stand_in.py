"""A model without layers that embeds and matches, for tests of retrieval: random weights, pictures and texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from instructkit.evaluation.retrieve import Gallery, Pixels

SIDE, PATCHES, QUERIES, WIDTH, WORDS = 4, 3, 2, 5, 11


class StandIn(nn.Module):
    """Random linear maps from pixels and word counts."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator))

        self.see, self.query = weight(3 * SIDE * SIDE, PATCHES * WIDTH), weight(PATCHES * WIDTH, QUERIES * WIDTH)
        self.word, self.pair = weight(WORDS, WIDTH), weight(WIDTH, WIDTH)
        self.encoded = 0

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        self.encoded += len(pixel_values)
        return (pixel_values.flatten(1) @ self.see).unflatten(1, (PATCHES, WIDTH))

    def embed_images(self, features: Tensor) -> Tensor:
        return nn.functional.normalize((features.flatten(1) @ self.query).unflatten(1, (QUERIES, WIDTH)), dim=-1)

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return nn.functional.normalize(self._said(input_ids, attention_mask), dim=-1)

    def match(self, features: Tensor, image_index: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return ((features.mean(1) @ self.pair)[image_index] * self._said(input_ids, attention_mask)).sum(-1) / WIDTH

    def _said(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.word[input_ids] * attention_mask[..., None]).sum(1)


def gallery(images: int, texts: int, seed: int = 0, broken: Sequence[int] = ()) -> Gallery:
    """Random pictures, each with one text at least, and texts of one to six random words."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, 3, SIDE, SIDE, generator=generator)
    owner = [*range(images), *torch.randint(images, (texts - images,), generator=generator).tolist()]
    lengths = torch.randint(1, 7, (texts,), generator=generator).tolist()

    def decoded(numbers: Sequence[int]) -> Pixels:
        good = [number for number in numbers if number not in broken]
        return Pixels(good, pixels[good], {number: f"{number}.jpg: torn" for number in numbers if number in broken})

    words = [torch.randint(1, WORDS, (length,), generator=generator).tolist() for length in lengths]
    return Gallery(images, decoded, words, sorted(owner), "random")
