"""Cases of the first stage's objective: LAVIS's recorded pairs, and random ones."""

from __future__ import annotations

from random import Random
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from instructkit.config.settings import ModelConfig
from instructkit.models.batches import padded
from instructkit.models.blip2 import Blip2Pretraining
from instructkit.models.load.new_tokenizers import train_qformer_tokenizer
from instructkit.models.load.pretraining import join_pretraining
from instructkit.training.data import Batch
from instructkit.training.pretraining import PretrainingObjective, StepComparison
from tests import lavis_stage1
from tests.tiny import SENTENCES

PAIRS, PATCHES = 6, 5
IMAGE_IDS = [7, 3, 7, 9, 4, 3]
"""Two images come twice."""


class Recorded(PretrainingObjective):
    """With negatives that LAVIS drew in place of own ones."""

    def __init__(self, image: Tensor, text: Tensor) -> None:
        self.drawn = image, text

    def __call__(self, model: Any, batch: Batch) -> Any:
        with patch.object(StepComparison, "negatives", lambda _: self.drawn):
            return super().__call__(model, batch)


def recorded_case(name: str, rank: int = 0, world: int = 1) -> tuple[Blip2Pretraining, PretrainingObjective, Batch]:
    """LAVIS's pairs, this rank's part of them."""
    drawn = lavis_stage1.recorded(name)
    fixture = lavis_stage1.recorded("stage1") if name == "stage1_world2" else drawn
    prefix = f"rank{rank}." if name == "stage1_world2" else ""
    pairs = len(fixture["input_ids"]) // world
    mine = slice(rank * pairs, (rank + 1) * pairs)
    ids = fixture.get("image_id", torch.arange(len(fixture["input_ids"])))[mine]
    inputs = {**lavis_stage1.inputs(fixture, mine), "image_ids": ids, "chances": torch.zeros(pairs, 2).double()}
    objective = Recorded(drawn[f"{prefix}neg_image_idx"], drawn[f"{prefix}neg_text_idx"])
    return lavis_stage1.model(), objective, Batch(inputs, [str(row) for row in range(pairs)], ["a"] * pairs)


def random_model() -> Blip2Pretraining:
    """A small one, without dropout, that reads kept features."""
    model, _ = join_pretraining(ModelConfig(), torch.float32, lambda: train_qformer_tokenizer(SENTENCES, 110))
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    return model.eval()


def random_inputs(pairs: int = PAIRS, image_ids: list[int] | None = None) -> dict[str, Tensor]:
    """Pairs with texts of 2 to 12 tokens; pairs of one image have its features."""
    random, noise = Random(5), torch.Generator().manual_seed(3)
    image_ids = IMAGE_IDS[:pairs] if image_ids is None else image_ids
    looks = {number: torch.randn(PATCHES, 128, generator=noise) for number in sorted(set(image_ids))}
    texts = [[2, *(random.randrange(5, 100) for _ in range(random.randrange(0, 11))), 3] for _ in range(pairs)]
    return {
        "pixel_values": torch.empty(0, 3, 64, 64),
        "image_patches": torch.stack([looks[number] for number in image_ids]),
        "image_order": torch.arange(pairs),
        "input_ids": padded(texts, 0),
        "attention_mask": padded([[1] * len(text) for text in texts], 0),
        "image_ids": torch.tensor(image_ids),
        "chances": torch.tensor([[random.random(), random.random()] for _ in range(pairs)], dtype=torch.float64),
    }


def random_case(
    rank: int = 0, world: int = 1, image_ids: list[int] | None = None
) -> tuple[Blip2Pretraining, PretrainingObjective, Batch]:
    """The random pairs, this rank's part of them, no longer padded than it needs."""
    inputs = random_inputs(image_ids=image_ids)
    each = PAIRS // world
    mine = slice(rank * each, (rank + 1) * each)
    kept = {name: part[mine] for name, part in inputs.items() if name not in ("pixel_values", "image_order")}
    longest = int(kept["attention_mask"].sum(1).max())
    kept |= {name: kept[name][:, :longest] for name in ("input_ids", "attention_mask")}
    kept |= {"pixel_values": inputs["pixel_values"], "image_order": torch.arange(each)}
    return random_model(), PretrainingObjective(), Batch(kept, [str(row) for row in range(each)], ["a"] * each)


def gradients_by_loss(model: Blip2Pretraining, objective: PretrainingObjective, batch: Batch) -> dict[str, Tensor]:
    """The mean of each loss over this rank's part, `loss.<name>`, and its gradients, `<name>.<parameter>`."""
    found: dict[str, Tensor] = {}
    for name in objective.losses:
        model.zero_grad()
        each = objective(model, batch)[name]
        mean = each.total / each.count
        mean.backward()
        found[f"loss.{name}"] = mean.detach()
        found[f"rows.{name}"] = each.rows
        for key, weight in model.named_parameters():
            found[f"{name}.{key}"] = torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
    return found
