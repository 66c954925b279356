"""Memory and time of retrieval beside the model: 5,000 images and 25,000 texts with random embeddings, k 128.

    python -m tests.benchmarks.retrieval [--images 5000] [--texts 25000]

The embeddings are 32 queries of width 256 an image and one of that width a text. The model is a stand-in whose features
are an image's number and whose logits cost nothing, so that what is measured is the rest: blocks, similarities,
shortlists, pairs, scores. Peak memory is what the process had at most beyond what it had with its libraries loaded.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from instructkit.evaluation.blocks import Blocks
from instructkit.evaluation.retrieve import Gallery, Pixels, retrieve
from instructkit.runs.ranks import Ranks

QUERIES, WIDTH, K, BATCH = 32, 256, 128, 1024


class Random:
    """Random embeddings, the same whenever an image or a text comes again."""

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        return pixel_values

    def embed_images(self, features: Tensor) -> Tensor:
        return torch.stack([_drawn(int(number), QUERIES) for number in features.flatten()])

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.cat([_drawn(-1 - int(number), 1) for number in input_ids[:, 0]])

    def match(self, features: Tensor, image_index: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.frac(features.flatten()[image_index] * 0.61803 + input_ids[:, 0] * 0.41421)

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter([nn.Parameter(torch.zeros(()))])


def _drawn(seed: int, rows: int) -> Tensor:
    found = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(found, dim=-1)


def random_gallery(images: int, texts: int) -> Gallery:
    """Texts of 8 to 19 tokens, of which the first is the text's number, shared out evenly over the images."""

    def numbered(numbers: Sequence[int]) -> Pixels:
        return Pixels(list(numbers), torch.tensor(numbers, dtype=torch.float32)[:, None, None], {})

    words = [[number, *range(7 + number % 12)] for number in range(texts)]
    return Gallery(images, numbered, words, [number * images // texts for number in range(texts)], "random")


def memory(name: str) -> int:
    """A figure of this process from the kernel, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(images: int, texts: int) -> dict[str, float]:
    """Peak memory beyond that of the libraries (GB), seconds, and what was found."""
    torch.randn(64, 64) @ torch.randn(64, 64)  # the kernels' own buffers
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, began = memory("VmRSS"), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        blocks = Blocks(Path(folder), Ranks())
        blocks.open({})
        found = retrieve(Random(), random_gallery(images, texts), K, BATCH, blocks)
        assert found is not None
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    assert found.of_images.numbers.shape == (images, min(K, texts))
    assert found.of_texts.numbers.shape == (texts, min(K, images))
    listed = float((found.of_texts.place > 0).float().mean())
    return {
        "images": images,
        "texts": texts,
        "peak_gb": round((memory("VmHWM") - before) / 1e9, 3),
        "seconds": round(time.monotonic() - began, 1),
        "files_gb": round(size / 1e9, 3),
        "own_image_listed": round(listed, 4),
    }


def main() -> None:
    """Measure, and print the figures as the last line in JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--texts", type=int, default=25000)
    given = parser.parse_args()
    print(json.dumps(measure(given.images, given.texts)))


if __name__ == "__main__":
    main()
