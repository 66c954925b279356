"""Objectives of several losses: each is a mean over the global batch, however that is split."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from instructkit.errors import UserError
from instructkit.training.engine import Engine
from instructkit.training.meter import Meter
from instructkit.training.schedule import learning_rate
from tests.training.mini import launch
from tests.training.toy import NOTHING, ROWS, SETTINGS, Toy, ToyObjective, batches, config, rows


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What the toy reached on one rank and on two."""
    folder = tmp_path_factory.mktemp("toy")
    for ranks in (1, 2):
        launch(ranks, Path(__file__).with_name("toy.py"), [str(folder)])
    return {ranks: json.loads((folder / f"toy-{ranks}.json").read_text()) for ranks in (1, 2)}


def by_hand(weight: list[float], number: int) -> tuple[float, float, list[float]]:
    """Mean distance to the targets and to the words of a step's rows, and the gradient of their weighted sum."""
    data = {
        name: values.double().tolist()
        for name, values in rows(list(range(number * ROWS, ROWS + number * ROWS))).items()
    }
    words = [[word for word in row if word != NOTHING] for row in data["words"]]
    count = sum(map(len, words))
    fit = far = 0.0
    gradient = [0.0, 0.0]
    for x, y, ours in zip(data["x"], data["y"], words, strict=True):
        said = weight[0] * x[0] + weight[1] * x[1]
        fit += (said - y) ** 2 / ROWS
        far += sum((said - word) ** 2 for word in ours) / count
        slope = 2 * (said - y) / ROWS + 0.5 * sum(2 * (said - word) for word in ours) / count
        gradient = [gradient[0] + slope * x[0], gradient[1] + slope * x[1]]
    return fit, far, gradient


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_and_gradient_are_those_computed_by_hand(found: Any, ranks: int, name: str) -> None:
    """The reference: the formula in plain numbers, clipped, and PyTorch's AdamW."""
    weight = torch.nn.Parameter(torch.tensor([0.5, -0.25], dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8)
    for number, step in enumerate(found[ranks][name]["steps"]):
        fit, far, gradient = by_hand(weight.tolist(), number)
        assert step["loss/fit"] == pytest.approx(fit, rel=1e-4)
        assert step["loss/words"] == pytest.approx(far, rel=1e-4)
        assert step["loss"] == pytest.approx(fit + 0.5 * far, rel=1e-4)
        assert (step["rows/fit"], step["words/words"], step["samples"]) == (ROWS, 20, ROWS)
        assert step["gradient_norm"] == pytest.approx(math.hypot(*gradient), rel=1e-3)
        optimizer.param_groups[0]["lr"] = learning_rate(number, config())
        weight.grad = torch.tensor(gradient, dtype=torch.float64) * min(1.0, 0.5 / math.hypot(*gradient))
        optimizer.step()
    assert found[ranks][name]["weight"] == pytest.approx(weight.tolist(), abs=1e-4)


def test_two_ranks_and_micro_batches_take_the_steps_of_one_whole_batch(found: Any) -> None:
    whole = found[1]["plain"]
    for other in (found[1]["split"], found[2]["plain"], found[2]["split"], found[2]["zero2-split"]):
        assert other["weight"] == pytest.approx(whole["weight"], abs=1e-6)
        for mine, theirs in zip(whole["steps"], other["steps"], strict=True):
            assert theirs == pytest.approx(mine, rel=1e-5)


def test_a_loss_that_compares_examples_is_not_accumulated(tmp_path: Path) -> None:
    class Contrast(ToyObjective):
        contrastive = True

    with pytest.raises(UserError, match=r"accumulation=2 cannot be used with the loss fit \+ words, which compares"):
        Engine(Toy(), Contrast(), config(accumulation=2), tmp_path)


def test_the_log_has_the_mean_of_each_loss_by_dataset() -> None:
    objective, model = ToyObjective(), Toy()
    meter = Meter(objective, model, ["even", "odd", "never"], torch.device("cpu"))
    for batch in batches(0, 2, 0, 1):
        with meter.timed():
            meter.add(batch, objective(model, batch))
        meter.restore(list(meter.state()))
    values = meter.read()
    fit, far, _ = by_hand([0.5, -0.25], 0)
    assert values["mean_fit"] == pytest.approx(fit)
    assert values["mean_words"] == pytest.approx(far)
    assert values["mean_loss"] == pytest.approx(fit + 0.5 * far)
    assert (values["mean_fit/even"] + values["mean_fit/odd"]) / 2 == pytest.approx(fit)
    # Even rows have one or three words, odd ones two or four.
    assert (8 * values["mean_words/even"] + 12 * values["mean_words/odd"]) / 20 == pytest.approx(far)
    assert not [name for name in values if "never" in name or name.startswith(("mean_loss/", "useful", "flop"))]
