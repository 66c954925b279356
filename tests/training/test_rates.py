"""Learning rates by tower and layer under every way that DeepSpeed keeps an optimizer, and through a stop."""

from __future__ import annotations

import pytest
import torch

from instructkit.models.save import load_model
from tests.matrix import mostly_full
from tests.training.mini import Runs, losses

OWN = ["optimizer=adamw", "warmup_steps=0", "learning_rate=0.01", "rates.vision=0.001", "rates.llm=0.003"]
DECAY = "layer_decay=0.5"


@pytest.fixture(scope="module")
def runs(words, tmp_path_factory):
    plain = [*words, *OWN[:3], "checkpoint_every=0"]
    own = [*words, *OWN, DECAY]
    plans = {"plain": (1, plain), "2/own": (2, own)}
    plans |= {f"zero{stage}": (1, [*own, f"zero_stage={stage}"]) for stage in (0, 2, 3)}
    plans["resumed"] = (1, [*own, "zero_stage=0", "after=zero0:2"])
    plans["resumed2"] = (1, [*own, "zero_stage=2", "after=zero2:2"])
    still = [*words, *OWN[:3], "rates.vision=1e-9", "checkpoint_every=0"]
    plans |= {"still": (1, still), "still-2": (1, [*still, "max_steps=2"])}
    return Runs(tmp_path_factory.mktemp("rates"), plans)


@pytest.mark.parametrize("run", mostly_full(["zero2", "zero3", "2/own"], "zero2"))
def test_rates_are_the_same_however_the_optimizer_is_sharded(runs, run):
    assert losses(runs / run) == pytest.approx(losses(runs / "zero0"), rel=2e-3)
    assert losses(runs / run) != pytest.approx(losses(runs / "plain"), rel=2e-3)


@pytest.mark.parametrize(
    ("resumed", "whole"), mostly_full([("resumed", "zero0"), ("resumed2", "zero2")], ("resumed2", "zero2"))
)
def test_a_stopped_run_goes_on_with_its_rates(runs, resumed, whole):
    assert losses(runs / resumed) == losses(runs / whole)


def test_a_tower_of_hardly_any_rate_stands_still_while_the_others_learn(runs):
    short, long = (load_model(str(runs / name / "model"))[0].state_dict() for name in ("still-2", "still"))
    moved = {name: (long[name] - short[name]).abs().max().item() for name in short if long[name].is_floating_point()}
    encoder = {
        name
        for name in moved
        if name.startswith("vision_model.") and not name.startswith("vision_model.post_layernorm")
    }
    assert max(moved[name] for name in encoder) < 1e-6
    assert min(moved[name] for name in moved if "language_model.model.layers" in name) > 1e-4
    assert moved["query_tokens"] > 1e-4
    assert not torch.equal(long["vision_model.post_layernorm.weight"], short["vision_model.post_layernorm.weight"])
