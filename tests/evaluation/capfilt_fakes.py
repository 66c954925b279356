"""A captioner and a filter without weights, and web datasets in miniature."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from instructkit.conversion.convert import convert
from instructkit.evaluation.capfilt.judge import Scored
from tests.sources import test_vg_caption, write_json, write_picture

LONG = 15
"""Letters of a text that are read."""
WORDS = ["red", "green", "blue", "round", "long", "old", "new", "big", "small", "one", "two", "three"]


class Fake:
    """Sees the mean colour, writes words that follow from the draws, scores by a digest of colour and text."""

    def __init__(self, size: int = 8) -> None:
        self.size = size
        self.encoded = 0
        self.read: list[str] = []

    def encode(self, pixel_values: Tensor) -> Tensor:
        assert pixel_values.shape[1:] == (3, self.size, self.size)
        self.encoded += len(pixel_values)
        return pixel_values.mean((2, 3))[:, None]

    def write(self, features: Tensor, draws: Sequence[Sequence[Random]]) -> list[list[str]]:
        assert len(features) == len(draws)
        return [[" ".join(draw.choices(WORDS, k=3)) + "." for draw in each] for each in draws]

    def score(self, features: Tensor, image_index: Tensor, texts: Sequence[str]) -> Scored:
        self.read += texts
        fits = [fit(features[index, 0], text) for index, text in zip(image_index.tolist(), texts, strict=True)]
        return Scored(torch.tensor(fits), [len(text) > LONG for text in texts])


def fit(colour: Tensor, text: str) -> float:
    """0 to 1 in steps that floats hold, by colour and text."""
    seen = "/".join(f"{value:.3f}" for value in colour.tolist())
    return blake2b(f"{seen}/{text}".encode(), digest_size=1).digest()[0] / 256


def write_web(folder: Path, pairs: Sequence[tuple[str, str]], source: str = "cc3m") -> None:
    """Convert a list of (picture, caption) below `folder/data`; pictures are drawn by their number but for `bad*`."""
    raw = folder / "raw" / source
    write_json(raw / f"{source}.json", [{"image": image, "caption": caption} for image, caption in pairs])
    for image in dict.fromkeys(image for image, _ in pairs):
        stem = Path(image).stem
        if stem.startswith("bad"):
            (raw / image).parent.mkdir(parents=True, exist_ok=True)
            (raw / image).write_bytes(b"torn")
        else:
            write_picture(raw / image, int(stem))
    convert(source, raw, folder / "data")


def write_human(folder: Path) -> None:
    """Four pairs written by people."""
    test_vg_caption.write(folder / "raw" / "vg_caption")
    convert("vg_caption", folder / "raw" / "vg_caption", folder / "data")


def many(pictures: int) -> list[tuple[str, str]]:
    """A caption a picture, now and then two, a repeat, a blank one once it is cleaned, and pictures that are torn."""
    pairs = []
    for number in range(pictures):
        name = f"web/bad{number}.jpg" if number % 17 == 3 else f"web/{number}.jpg"
        text = "..." if number % 13 == 5 else f"Picture no. {number}!"
        pairs.append((name, text))
        if number % 7 == 2:
            pairs.append((name, text if number % 2 else f"again {number}"))
    return pairs


def settings(folder: Path, **changed: Any) -> dict[str, Any]:
    """Plain settings of a run over what was written below a folder."""
    plain: dict[str, Any] = {
        "output": str(folder / "run"),
        "batch_size": 4,
        "data": {"root": str(folder / "data"), "web": ["cc3m"], "human": ["vg_caption"]},
        "captioner": {"model": str(folder / "data")},
        "filter": {"model": str(folder / "data")},
    }
    for key, value in changed.items():
        plain[key] = {**plain[key], **value} if isinstance(value, dict) else value
    return plain
