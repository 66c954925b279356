"""BLIP-2's three losses: LAVIS's recorded numbers, a slow plain reference, one rank and two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from instructkit.models.blip2 import Blip2Pretraining
from instructkit.training.data import Batch
from instructkit.training.pretraining import PretrainingObjective, draw
from tests import lavis_stage1, plain_stage1
from tests.training.mini import launch
from tests.training.stage1 import PAIRS, gradients_by_loss, random_case, random_inputs, random_model, recorded_case

LOSSES = {"itc": "itc", "itm": "itm", "itg": "lm"}
"""Under their names here, and in LAVIS."""
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def recorded_gradients(fixture: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """LAVIS's gradients under the names that they have here."""
    found = {}
    for name, theirs in LOSSES.items():
        start = f"{prefix}grad_{theirs}."
        for key, tensor in fixture.items():
            if key.startswith(start):
                found[f"{name}.{lavis_stage1.ours(key.removeprefix(start))}"] = tensor.reshape(tensor.shape or (1,))
    return found


@pytest.mark.parametrize("name", ["stage1", "stage1_image_id"])
def test_losses_and_gradients_are_lavis(name):
    fixture = lavis_stage1.recorded(name)
    found = gradients_by_loss(*recorded_case(name))
    for ours, theirs in LOSSES.items():
        assert found[f"loss.{ours}"].item() == pytest.approx(fixture[f"loss_{theirs}"].item(), abs=1e-4)
    gradients = recorded_gradients(fixture)
    assert len(gradients) == 21
    for key, tensor in gradients.items():
        torch.testing.assert_close(found[key], tensor, **CLOSE, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["stage1", "stage1_image_id"])
def test_the_gradient_norm_of_every_parameter_is_lavis(name):
    norms = json.loads((lavis_stage1.FOLDER / f"{name}.json").read_text())["grad_norms"]
    found = gradients_by_loss(*recorded_case(name))
    compared = 0
    for ours, theirs in LOSSES.items():
        for key, norm in norms[theirs].items():
            if (mine := lavis_stage1.ours(key)) is not None and f"{ours}.{mine}" in found:
                assert found[f"{ours}.{mine}"].norm().item() == pytest.approx(norm or 0.0, abs=1e-4, rel=1e-4), key
                compared += 1
    assert compared > 200


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Tensor]]]:
    """What two ranks found, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    launch(2, Path(__file__).with_name("stage1_ranks.py"), [str(folder)])
    return {
        case: [load_file(folder / f"{case}-{rank}-2.safetensors") for rank in (0, 1)]
        for case in ("recorded", "random", "one image")
    }


def test_two_ranks_losses_and_gradients_are_lavis(ranks):
    fixture = lavis_stage1.recorded("stage1_world2")
    for rank, found in enumerate(ranks["recorded"]):
        for ours, theirs in LOSSES.items():
            expected = fixture[f"rank{rank}.loss_{theirs}"].item()
            assert found[f"loss.{ours}"].item() == pytest.approx(expected, abs=1e-4)
        gradients = recorded_gradients(fixture, f"rank{rank}.")
        assert len(gradients) == 10
        for key, tensor in gradients.items():
            torch.testing.assert_close(found[key], tensor, **CLOSE, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(("case", "image_ids"), [("random", None), ("one image", [5] * PAIRS)])
def test_two_ranks_reach_what_one_reaches(ranks, case, image_ids):
    """ITG is a mean over tokens, of which the ranks have different numbers: weighted by these."""
    whole, parts = gradients_by_loss(*random_case(image_ids=image_ids)), ranks[case]
    tokens = random_inputs()["attention_mask"].sum(1) - 1
    for name in LOSSES:
        counts = [3, 3] if name != "itg" else [int(tokens[:3].sum()), int(tokens[3:].sum())]
        shares = [count / sum(counts) for count in counts]
        for key, tensor in whole.items():
            if key == f"rows.{name}":
                torch.testing.assert_close(torch.cat([part[key] for part in parts]), tensor)
            elif key == f"loss.{name}" or key.startswith(f"{name}."):
                mean = sum(share * part[key] for share, part in zip(shares, parts, strict=True))
                torch.testing.assert_close(
                    mean, tensor, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
                )


def plain_losses(model: Blip2Pretraining, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    config = model.config.qformer_config
    weights = dict(model.named_parameters())
    plain = plain_stage1.Plain(
        weights, config.num_attention_heads, config.num_hidden_layers, config.layer_norm_eps, model.config.dec_token_id
    )
    norm = model.vision_model.post_layernorm
    ended = plain._replace(epsilon=norm.eps)
    return plain_stage1.losses(
        plain,
        [ended.norm("vision_model.post_layernorm", image) for image in inputs["image_patches"]],
        [ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)],
        inputs["image_ids"].tolist(),
        inputs["chances"].tolist(),
    )


@pytest.mark.parametrize(
    ("pairs", "image_ids"),
    [(PAIRS, None), (PAIRS, list(range(PAIRS))), (3, [5, 5, 5]), (1, [5])],
    ids=["images come twice", "all differ", "one image", "one pair"],
)
def test_losses_and_gradients_are_those_of_loops_over_pairs(pairs, image_ids):
    model, inputs = random_model(), random_inputs(pairs, image_ids)
    found = gradients_by_loss(model, PretrainingObjective(), Batch(inputs, ["a"] * pairs, ["a"] * pairs))
    expected = plain_losses(model, inputs)
    for name, loss in expected.items():
        assert found[f"loss.{name}"].item() == pytest.approx(loss.item(), abs=1e-5, rel=1e-5)
        model.zero_grad()
        if loss.requires_grad:
            loss.backward(retain_graph=True)
        for key, weight in model.named_parameters():
            by_loops = torch.zeros_like(weight) if weight.grad is None else weight.grad
            torch.testing.assert_close(
                found[f"{name}.{key}"], by_loops, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_negatives_are_drawn_by_their_share_and_never_of_the_same_image():
    scores = torch.tensor([[0.0, 1.0, 2.0, 5.0]])
    excluded = torch.tensor([[False, False, False, True]])
    chances = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    found = draw(scores.expand(len(chances), -1), excluded.expand(len(chances), -1), chances).bincount(minlength=4)
    shares = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    torch.testing.assert_close(found[:3] / 10_000, shares, atol=2e-4, rtol=0)
    assert found[3] == 0
    for chance in (0.0, 1 - 2**-53):
        assert draw(scores, excluded, torch.tensor([chance], dtype=torch.float64)).item() != 3


def test_the_objective_counts_what_it_announces():
    model, objective, batch = random_case()
    announced = {name: int(count.sum()) for name, count in objective.counts(batch).items()}
    sums = objective(model, batch)
    assert {name: each.count for name, each in sums.items()} == announced
    for each in sums.values():
        torch.testing.assert_close(each.rows.sum(), each.total.detach())
