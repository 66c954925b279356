"""BLIP's three losses: LAVIS's recorded numbers, a slow plain reference, one rank and two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from instructkit.config.settings import PairsConfig
from instructkit.models.batches import padded
from instructkit.models.blip import Blip, Momentum, read_text
from instructkit.prompts.jinja import plain_question
from instructkit.training.blip import BlipObjective
from instructkit.training.data import Batch
from instructkit.training.questions import weighted
from tests import lavis_med, plain_med
from tests.lavis_stage1 import recorded
from tests.training.med import (
    PAIRS,
    QUEUE,
    gradients_by_loss,
    random_batch,
    random_inputs,
    random_model,
    recorded_case,
)
from tests.training.mini import launch

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def compare(found: Tensor, expected: Tensor, name: str) -> None:
    """To 1e-5 of the largest value: similarities are divided by a small temperature, so gradients are large."""
    scale = max(1.0, expected.abs().max().item()) if expected.is_floating_point() else 1.0
    torch.testing.assert_close(found, expected, atol=1e-5 * scale, rtol=1e-4, msg=lambda text: f"{name}: {text}")


SETTINGS = PairsConfig(queue=QUEUE)


@pytest.mark.parametrize("name", ["med_pretrain", "med_retrieval"])
def test_losses_gradients_queue_and_momentum_are_lavis(name):
    fixture, (model, objective, batch) = recorded(name), recorded_case(name)
    found = gradients_by_loss(model, objective, batch)
    for loss in objective.losses:
        assert found[f"loss.{loss}"].item() == pytest.approx(fixture[f"loss_{loss}"].item(), abs=1e-4)
    compared = 0
    for key, tensor in fixture.items():
        kind, _, rest = key.partition(".")
        if kind.startswith("grad_"):
            mine = found[f"{kind.removeprefix('grad_')}.{lavis_med.ours(rest)}"]
        elif kind == "after":
            tower, _, weight = rest.partition(".")
            mine = found[f"momentum.{tower.removesuffix('_m')}.{weight}"]
        else:
            continue
        torch.testing.assert_close(
            mine, tensor.reshape(mine.shape), **CLOSE, msg=lambda text, key=key: f"{key}: {text}"
        )
        compared += 1
    queues = {"image_queue": "images", "text_queue": "texts", "idx_queue": "ids", "queue_ptr": "place"}
    for theirs, mine in queues.items():
        if (tensor := fixture.get(f"{theirs}_after")) is not None:
            turned = tensor.T if theirs.endswith("e") and theirs != "idx_queue" else tensor[0:1].flatten()
            torch.testing.assert_close(found[f"momentum.{mine}"], turned.to(found[f"momentum.{mine}"].dtype), **CLOSE)
            compared += 1
    assert compared >= (11 if name == "med_pretrain" else 1)


@pytest.mark.parametrize("name", ["med_pretrain", "med_retrieval"])
def test_similarities_targets_and_shares_are_lavis(name):
    fixture, (model, objective, batch) = recorded(name), recorded_case(name)
    objective(model, batch)
    comparison = objective.comparison
    torch.testing.assert_close(comparison.text_targets, fixture["sim_i2t_targets"], **CLOSE)
    torch.testing.assert_close(comparison.image_targets, fixture["sim_t2i_targets"], **CLOSE)
    for shares, theirs in zip(comparison.shares, ("weights_t2i", "weights_i2t"), strict=True):
        expected = fixture[theirs].double()
        torch.testing.assert_close(
            shares / shares.sum(1, keepdim=True), expected / expected.sum(1, keepdim=True), **CLOSE
        )
    if name == "med_pretrain":
        torch.testing.assert_close(comparison.to_texts, fixture["sim_i2t"], **CLOSE)
        torch.testing.assert_close(comparison.to_images, fixture["sim_t2i"], **CLOSE)
        inputs = batch.inputs
        hidden = read_text(model.momentum.text_encoder, inputs["input_ids"], inputs["attention_mask"])
        valid = inputs["attention_mask"].bool()
        torch.testing.assert_close(hidden[valid], fixture["text_embeds_m"][valid], **CLOSE)


def plain_losses(model: Blip, objective: BlipObjective, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """By loops; gradients reach the model's parameters."""
    momentum: Momentum = model.momentum
    online = plain_med.PlainMed.of(model)
    weights = {
        name.replace("attention.self.", "attention.attention."): weight
        for name, weight in model.named_parameters(remove_duplicate=False)
    }
    online = online._replace(plain=online.plain._replace(weights=weights))
    means = {name.replace("attention.self.", "attention.attention."): t.clone() for name, t in momentum.named_buffers()}
    means = {name: tensor for name, tensor in means.items() if name in weights}
    lagging = online._replace(plain=online.plain._replace(weights=means))
    queue = zip(momentum.images.clone(), momentum.texts.clone(), momentum.ids.tolist(), strict=True)
    return plain_med.losses(
        online,
        plain_med.mean_of_weights(online, lagging, momentum.rate),
        list(inputs["pixel_values"]),
        [ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)],
        inputs["image_ids"].tolist(),
        inputs["chances"].tolist(),
        list(queue),
        objective.settings.alpha * min(1, inputs["epochs"].item() / 2),
        online=objective.settings.similarity == "online",
    )


@pytest.mark.parametrize(
    ("pairs", "image_ids", "sharing", "similarity"),
    [
        (PAIRS, None, "all_but_self_attention", "momentum"),
        (PAIRS, None, "all", "online"),
        (3, [5, 5, 5], "none", "momentum"),
        (1, [5], "all_but_cross_attention", "online"),
    ],
    ids=["images come twice", "shares of the trained encoders", "one image", "one pair"],
)
def test_losses_and_gradients_are_those_of_loops_over_pairs(pairs, image_ids, sharing, similarity):
    model, batch = random_model(sharing), random_batch(image_ids=image_ids, pairs=pairs)
    objective = BlipObjective(PairsConfig(queue=QUEUE, similarity=similarity))
    expected = plain_losses(model, objective, batch.inputs)
    found = gradients_by_loss(model, objective, batch)
    for name, loss in expected.items():
        assert found[f"loss.{name}"].item() == pytest.approx(loss.item(), abs=1e-5, rel=1e-5)
        model.zero_grad()
        loss.backward(retain_graph=True)
        for key, weight in model.named_parameters():
            by_loops = torch.zeros_like(weight) if weight.grad is None else weight.grad
            compare(found[f"{name}.{key}"], by_loops, f"{name}.{key}")


def test_the_queue_takes_pairs_in_turn_and_the_momentum_encoder_moves_by_its_rate():
    model, batch = random_model(), random_batch()
    momentum = model.momentum
    before = {name: tensor.clone() for name, tensor in momentum.state_dict().items()}
    objective = BlipObjective(SETTINGS)
    objective(model, batch)
    assert momentum.ids.tolist() == [*before["ids"][: QUEUE - PAIRS].tolist(), *batch.inputs["image_ids"].tolist()]
    assert momentum.place.item() == 0
    assert torch.equal(momentum.images[: QUEUE - PAIRS], before["images"][: QUEUE - PAIRS])
    torch.testing.assert_close(momentum.images.norm(dim=1), torch.ones(QUEUE))
    weight, name = model.text_proj.weight, "text_proj.weight"
    torch.testing.assert_close(momentum.text_proj.weight, 0.9 * before[name] + 0.1 * weight)
    objective(model, batch)
    assert momentum.place.item() == PAIRS
    assert momentum.ids[:PAIRS].tolist() == batch.inputs["image_ids"].tolist()


def test_the_momentum_encoder_has_no_parameters_stays_float32_and_is_in_the_state():
    model = random_model()
    names = {name for name, _ in model.named_parameters()}
    assert not any(name.startswith("momentum.") for name in names)
    assert {"momentum.text_proj.weight", "momentum.images", "momentum.place"} <= model.state_dict().keys()
    kept = model.momentum.text_proj.weight.clone()
    model.bfloat16()
    assert {tensor.dtype for tensor in model.momentum.buffers()} == {torch.float32, torch.long}
    assert torch.equal(model.momentum.text_proj.weight, kept)
    batch = random_batch()
    batch.inputs["pixel_values"] = batch.inputs["pixel_values"].bfloat16()
    before = model.momentum.text_proj.weight.clone()
    sums = BlipObjective(SETTINGS)(model, batch)
    assert all(each.total.isfinite() for each in sums.values())
    assert not torch.equal(model.momentum.text_proj.weight, before), "changes that bfloat16 would lose"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Tensor]]]:
    """What two ranks found, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    launch(2, Path(__file__).with_name("med_ranks.py"), [str(folder)])
    return {
        case: [load_file(folder / f"{case}-{rank}-2.safetensors") for rank in (0, 1)]
        for case in ("all", "online", "one image", "rank")
    }


@pytest.mark.parametrize(
    ("case", "settings", "image_ids"),
    [
        ("all", SETTINGS, None),
        ("online", PairsConfig(queue=QUEUE, similarity="online"), None),
        ("one image", SETTINGS, [5] * PAIRS),
    ],
)
def test_two_ranks_reach_what_one_reaches(ranks, case, settings, image_ids):
    """LM is a mean over tokens, of which the ranks have different numbers: weighted by these."""
    batch = random_batch(image_ids=image_ids)
    whole, parts = gradients_by_loss(random_model(), BlipObjective(settings), batch), ranks[case]
    tokens = batch.inputs["attention_mask"].sum(1) - 1
    for name in ("itc", "itm", "lm"):
        counts = [3, 3] if name != "lm" else [int(tokens[:3].sum()), int(tokens[3:].sum())]
        shares = [count / sum(counts) for count in counts]
        for key, tensor in whole.items():
            if key == f"rows.{name}":
                torch.testing.assert_close(torch.cat([part[key] for part in parts]), tensor)
            elif key == f"loss.{name}" or key.startswith(f"{name}."):
                mean = sum(share * part[key] for share, part in zip(shares, parts, strict=True))
                compare(mean, tensor, key)
    for key, tensor in whole.items():
        if key.startswith("momentum."):
            for part in parts:
                compare(part[key], tensor, key)


def test_negatives_of_a_rank_are_its_own_as_if_it_were_alone(ranks):
    """ITC has the queue beside them; the queue takes all ranks' pairs, as LAVIS's does."""
    for rank, found in enumerate(ranks["rank"]):
        objective = BlipObjective(PairsConfig(queue=QUEUE, negatives="rank"))
        alone = gradients_by_loss(random_model(), objective, random_batch(rank, 2))
        for key, tensor in alone.items():
            if not key.startswith("momentum."):
                compare(found[key], tensor, key)
    one, other = (found["momentum.ids"] for found in ranks["rank"])
    assert one.tolist() == other.tolist()
    assert one[-PAIRS:].tolist() == random_batch().inputs["image_ids"].tolist()


def test_only_what_is_asked_for_is_computed():
    model, batch = random_model(), random_batch()
    both = BlipObjective(PairsConfig(queue=QUEUE, losses=["itc", "itm"]))
    model.momentum.place.fill_(0)
    assert both(model, batch).keys() == {"itc", "itm"}
    model.momentum = None
    batch.inputs["given"] = torch.full((PAIRS,), 2)
    written = BlipObjective(PairsConfig(losses=["lm"]))
    assert not written.contrastive
    sums = written(model, batch)
    assert sums.keys() == {"lm"}
    assert sums["lm"].count == int((batch.inputs["attention_mask"].sum(1) - 2).sum())
    assert {name: int(count.sum()) for name, count in written.counts(batch).items()} == {"lm": sums["lm"].count}


def test_answers_cost_what_loops_over_them_say():
    """The decoder reads the question's padding as if it were not there, and weights by `separate` are its own."""
    model, inputs = random_model("all_but_self_attention"), random_inputs(4)
    model.separate()
    model.momentum = None
    with torch.no_grad():
        for weight in model.text_decoder.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    questions = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    answers, answered, weights = (
        [[2, 7, 3], [2, 9, 11, 12, 3], [2, 3], [2, 20, 3], [2, 8, 3]],
        [0, 0, 1, 3, 2],
        [0.7, 0.3, 1.0, 0.2, 0.5],
    )
    batch = questions | {
        "answer_ids": padded(answers, 0),
        "answer_mask": padded([[1] * len(answer) for answer in answers], 0),
        "answered": torch.tensor(answered),
        "weights": torch.tensor(weights),
    }
    objective = BlipObjective(PairsConfig(losses=["vqa"]))
    (found,) = objective(model, Batch(batch, list("abcd"), ["a"] * 4)).values()
    assert found.count == 4
    assert int(objective.counts(Batch(batch, list("abcd"), ["a"] * 4))["vqa"].sum()) == 4
    plain, expected = plain_med.PlainMed.of(model), torch.zeros(4)
    for ids, question, weight in zip(answers, answered, weights, strict=True):
        read = inputs["input_ids"][question][inputs["attention_mask"][question].bool()].tolist()
        told = plain.tell(plain.read_with(inputs["pixel_values"][question], read), ids).log_softmax(1)
        for place, token in enumerate(ids[1:]):
            expected[question] -= weight * (0.9 * told[place, token] + 0.1 * told[place].mean())
    torch.testing.assert_close(found.rows, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.total, expected.sum(), atol=1e-5, rtol=1e-5)


def test_answers_weigh_their_share():
    assert weighted(["yes", " yes", "no", "", "yes"]) == [("yes", 0.75), ("no", 0.25)]
    assert weighted(["a dog"]) == [("a dog", 0.2)]
    assert plain_question('What\'s the "colour" (of it)?') == "what's the colour of it?"


def test_the_objective_counts_what_it_announces():
    model, objective, batch = random_model(), BlipObjective(SETTINGS), random_batch()
    announced = {name: int(count.sum()) for name, count in objective.counts(batch).items()}
    sums = objective(model, batch)
    assert {name: each.count for name, each in sums.items()} == announced
    for each in sums.values():
        torch.testing.assert_close(each.rows.sum(), each.total.detach())


@pytest.mark.parametrize("outside", [-0.2, 0.9])
def test_a_temperature_beyond_its_bounds_counts_as_the_bound_and_comes_back(outside):
    model, batch = random_model(), random_batch()
    bound = 0.001 if outside < 0 else 0.5
    losses = {}
    for heat in (outside, bound):
        model.temperature.data.fill_(heat)
        losses[heat] = gradients_by_loss(model, BlipObjective(SETTINGS), batch)
        model.momentum = random_model().momentum
    for key in ("loss.itc", "itc.temperature"):
        torch.testing.assert_close(losses[outside][key], losses[bound][key], rtol=1e-5, atol=0)
    assert losses[bound]["itc.temperature"].abs().item() > 0
