"""What random crops and flips are drawn from."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from instructkit.conversion import convert
from instructkit.data.dataset import load_examples
from instructkit.data.media import image_pixels, load_image
from instructkit.training.data import Part, TrainingData
from tests.tiny import tiny_model

NAMES = ["image.png", "1/image.png", "2/image.png", "2/deep/image.png"]


@pytest.fixture
def moved(tmp_path):
    """The same picture under one name in several folders, and its examples; the release lies where it is put."""

    def write(place):
        raw = tmp_path / place
        noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        rows = []
        for name in NAMES:
            (raw / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(raw / name)
            rows.append(json.dumps({"image": name, "instruction": "what is it?", "answer": "noise"}))
        (raw / "train.jsonl").write_text("\n".join(rows) + "\n")
        done = convert.convert("jsonl", raw, tmp_path / f"{place}-data", split="train")
        examples = load_examples(done.folder)
        return Part("jsonl", examples, "llava", raw)

    return write


def cropped(part, seed=7, epoch=0):
    """Pixels of each picture by its name, in the batch of an epoch."""
    _, texts = tiny_model()
    data = TrainingData([part], texts, 16, groups=len(NAMES), seed=seed, augment=True)
    positions = range(epoch * len(NAMES), (epoch + 1) * len(NAMES))
    names = [part.examples.take(data.mixture[position].rows.tolist())[0].images[0] for position in positions]
    inputs = data.batch(positions).inputs
    return dict(zip(names, inputs["pixel_values"][inputs["image_index"]], strict=True))


def test_pictures_of_one_name_in_several_folders_are_cropped_each_in_its_own_way(moved):
    part = moved("here")
    seen = cropped(part)
    assert sorted(seen) == sorted(NAMES)
    for name, pixels in seen.items():
        image = load_image(part.root / name)
        assert torch.equal(pixels, torch.from_numpy(image_pixels(image, 16, Random(f"7/0/{name}"))))
    stacked = torch.stack(list(seen.values())).flatten(1)
    assert len(stacked.unique(dim=0)) == len(NAMES)


def test_crops_follow_from_seed_epoch_and_place_in_the_release_alone(moved):
    first, elsewhere = cropped(moved("here")), cropped(moved("there"))
    assert all(torch.equal(first[name], elsewhere[name]) for name in NAMES)
    part = moved("again")
    for other in (cropped(part, seed=8), cropped(part, epoch=1)):
        assert not any(torch.equal(first[name], other[name]) for name in NAMES)
