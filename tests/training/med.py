"""Cases of BLIP's objective: LAVIS's recorded pairs, and random ones."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor

from instructkit.config.settings import PairsConfig
from instructkit.models.batches import padded
from instructkit.models.blip import Blip, Momentum
from instructkit.models.load.blip import join_blip
from instructkit.models.load.new_tokenizers import train_qformer_tokenizer
from instructkit.training.blip import BlipObjective, MomentumComparison
from instructkit.training.data import Batch
from tests import lavis_med
from tests.lavis_stage1 import recorded
from tests.tiny import SENTENCES

PAIRS, PATCHES, QUEUE = 6, 5, 12
IMAGE_IDS = [7, 3, 7, 9, 4, 3]
"""Two images come twice."""


class Recorded(BlipObjective):
    """With negatives that LAVIS drew in place of own ones; `shares` are those that own ones would be drawn by."""

    def __init__(self, settings: PairsConfig, image: Tensor, text: Tensor) -> None:
        super().__init__(settings)
        self.drawn = image, text
        self.comparison: MomentumComparison

    def __call__(self, model: Any, batch: Batch) -> Any:
        negatives = MomentumComparison.negatives

        def drawn(comparison: MomentumComparison) -> tuple[Tensor, Tensor]:
            self.comparison = comparison
            return self.drawn

        MomentumComparison.negatives = drawn  # type: ignore[method-assign]
        try:
            return super().__call__(model, batch)
        finally:
            MomentumComparison.negatives = negatives  # type: ignore[method-assign]


def recorded_case(name: str) -> tuple[Blip, Recorded, Batch]:
    """LAVIS's pairs of `med_pretrain`, as it trained on them there, or in `med_retrieval`."""
    fixture, inputs, facts = recorded(name), recorded("med_pretrain"), lavis_med.facts(name)
    size = lavis_med.facts()["config"]
    retrieval = "image_id" in fixture
    model = lavis_med.model()
    model.momentum = Momentum(model, size["momentum"], size["queue_size"])
    weights = recorded("med_weights")
    own = model.momentum.state_dict()
    for key, tensor in weights.items():
        tower, _, rest = key.partition(".")
        if tower.endswith("_m"):
            own[f"{tower.removesuffix('_m')}.{rest}"].copy_(tensor)
    own["images"].copy_(weights["image_queue"].T)
    own["texts"].copy_(weights["text_queue"].T)
    if retrieval:
        own["ids"].copy_(fixture["idx_queue_before"][0])
    own["place"].copy_(weights["queue_ptr"])
    settings = PairsConfig(
        losses=["itc", "itm"] if retrieval else ["itc", "itm", "lm"],
        similarity="online" if retrieval else "momentum",
        queue=size["queue_size"],
        momentum=size["momentum"],
        alpha=size["alpha"],
    )
    pairs = len(inputs["input_ids"])
    batch = {
        "pixel_values": inputs["image_embeds"],
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "given": torch.ones(pairs, dtype=torch.long),
        "image_ids": fixture.get("image_id", torch.arange(pairs)),
        "chances": torch.zeros(pairs, 2).double(),
        "epochs": torch.tensor([facts["epoch"] + facts["iters"] / facts["num_iters_per_epoch"]]).double(),
    }
    objective = Recorded(settings, fixture["neg_image_idx"], fixture["neg_text_idx"])
    return model, objective, Batch(batch, [str(row) for row in range(pairs)], ["a"] * pairs)


def random_model(sharing: str = "all_but_self_attention") -> Blip:
    """A small one, whose momentum encoder lags behind; its image encoder is none."""
    model, _ = join_blip(None, None, sharing, lambda: train_qformer_tokenizer(SENTENCES, 110))
    model.vision_model = lavis_med.Features()
    noise = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=noise)
        model.temperature.fill_(0.1)
        model.momentum = Momentum(model, 0.9, QUEUE)
        for mean, weight in model.momentum.followed(model):
            mean.copy_(weight + 0.05 * torch.randn(weight.shape, generator=noise))
        for queue in (model.momentum.images, model.momentum.texts):
            queue.copy_(torch.nn.functional.normalize(torch.randn(queue.shape, generator=noise), dim=1))
        model.momentum.ids[5] = IMAGE_IDS[1]
        model.momentum.place.fill_(QUEUE - PAIRS)
    return model.eval()


def random_inputs(pairs: int = PAIRS, image_ids: list[int] | None = None) -> dict[str, Tensor]:
    """Pairs with texts of 2 to 12 tokens; pairs of one image have its features."""
    random, noise = Random(5), torch.Generator().manual_seed(3)
    image_ids = IMAGE_IDS[:pairs] if image_ids is None else image_ids
    looks = {number: torch.randn(PATCHES, 128, generator=noise) for number in sorted(set(image_ids))}
    texts = [[2, *(random.randrange(5, 100) for _ in range(random.randrange(0, 11))), 3] for _ in range(pairs)]
    return {
        "pixel_values": torch.stack([looks[number] for number in image_ids]),
        "input_ids": padded(texts, 0),
        "attention_mask": padded([[1] * len(text) for text in texts], 0),
        "given": torch.ones(pairs, dtype=torch.long),
        "image_ids": torch.tensor(image_ids),
        "chances": torch.tensor([[random.random(), random.random()] for _ in range(pairs)], dtype=torch.float64),
        "epochs": torch.tensor([1.3]).double(),
    }


def random_batch(rank: int = 0, world: int = 1, image_ids: list[int] | None = None, pairs: int = PAIRS) -> Batch:
    """The random pairs, this rank's part of them, no longer padded than it needs."""
    inputs = random_inputs(pairs, image_ids)
    each = pairs // world
    mine = slice(rank * each, (rank + 1) * each)
    kept = {name: part if name == "epochs" else part[mine] for name, part in inputs.items()}
    longest = int(kept["attention_mask"].sum(1).max())
    kept |= {name: kept[name][:, :longest] for name in ("input_ids", "attention_mask")}
    return Batch(kept, [str(row) for row in range(each)], ["a"] * each)


def gradients_by_loss(model: Blip, objective: BlipObjective, batch: Batch) -> dict[str, Tensor]:
    """The mean of each loss over this rank's part, `loss.<name>`, its gradients, `<name>.<parameter>`, and the state.

    Every loss starts from the same momentum encoder and queue, which end as behind one step.
    """
    found: dict[str, Tensor] = {}
    assert model.momentum is not None
    before = {name: tensor.clone() for name, tensor in model.momentum.state_dict().items()}
    for name in objective.losses:
        model.momentum.load_state_dict(before)
        model.zero_grad()
        each = objective(model, batch)[name]
        mean = each.total / each.count
        mean.backward()
        found[f"loss.{name}"] = mean.detach()
        found[f"rows.{name}"] = each.rows
        for key, weight in model.named_parameters():
            found[f"{name}.{key}"] = torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
    return found | {f"momentum.{name}": tensor.clone() for name, tensor in model.momentum.state_dict().items()}
