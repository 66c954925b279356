"""Clipping, micro-batches, ranks and ZeRO together; and evaluations in which a rank has nothing to do."""

from __future__ import annotations

import json

import pytest

from tests.matrix import mostly_full
from tests.training.conftest import WATCHED
from tests.training.mini import Runs, log, losses, repeatable

TIGHT = ["gradient_clipping=0.01", "checkpoint_every=0", "warmup_steps=0", "learning_rate=0.02", "optimizer=adamw"]
"""A norm far below the gradients': what is clipped otherwise ends elsewhere, as moments of AdamW keep the scale."""

FP16 = {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 2}


@pytest.fixture(scope="module")
def runs(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clipped")
    ds = folder / "ds.json"
    ds.write_text(json.dumps({"fp16": FP16, "bf16": {"enabled": "auto"}, "gradient_clipping": "auto"}))
    watched = [*words, *WATCHED, "watch_limit=1", "checkpoint_every=0"]
    plans: dict[str, tuple[int, list[str]]] = {}
    for ranks in (1, 2):
        plans[f"{ranks}/watched"] = (ranks, watched)
        for stage in (0, 2, 3):
            for pieces in (4,) if ranks == 1 else (1, 2):
                settings = [*words, *TIGHT, f"zero_stage={stage}", f"accumulation={pieces}"]
                plans[f"{ranks}/zero{stage}-{pieces}"] = (ranks, settings)
        plans[f"{ranks}/free"] = (ranks, [*words, *TIGHT, "gradient_clipping=0"])
        plans[f"{ranks}/fp16-file"] = (ranks, [*words, *TIGHT, f"deepspeed={ds}"])
    plans |= {f"{ranks}/zero0-1": (ranks, [*words, *TIGHT]) for ranks in (1, 2)}
    return Runs(folder, plans)


@pytest.mark.parametrize(
    ("stage", "ranks", "pieces"),
    mostly_full(
        [(stage, *split) for stage in (0, 2, 3) for split in ((1, 4), (2, 1), (2, 2))], (0, 1, 4), (2, 2, 2), (3, 1, 4)
    ),
)
def test_the_whole_gradient_is_clipped_once_however_the_batch_is_split(runs, stage, ranks, pieces):
    whole, split = runs / "1/zero0-1", runs / f"{ranks}/zero{stage}-{pieces}"
    assert losses(split) == pytest.approx(losses(whole), rel=2e-3)
    norms = [[line["gradient_norm"] for line in log(run) if "gradient_norm" in line] for run in (whole, split)]
    assert len(norms[0]) == 4
    assert min(norms[0]) > 1  # before clipping
    assert norms[1] == pytest.approx(norms[0], rel=2e-2)


def test_clipping_is_what_makes_the_difference(runs):
    assert losses(runs / "1/free") != pytest.approx(losses(runs / "1/zero0-1"), rel=2e-3)


@pytest.mark.parametrize("ranks", mostly_full([1, 2], 1))
def test_a_deepspeed_file_that_leaves_fp16_to_the_run_changes_nothing(runs, ranks):
    assert losses(runs / f"{ranks}/fp16-file") == losses(runs / f"{ranks}/zero0-1")


def test_a_rank_without_a_question_waits_for_the_one_that_has_it(runs):
    """One example of each dataset: the second rank has none, in ranking, in generating and in the loss."""
    one, two = (repeatable(runs / f"{ranks}/watched") for ranks in ("1", "2"))
    assert len(one) == len(two)
    for line, other in zip(one, two, strict=True):
        assert line.keys() == other.keys()
        for name in line:
            assert other[name] == pytest.approx(line[name], abs=1e-4), name
    assert any("validation_loss" in line for line in one)
