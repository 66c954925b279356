"""How long a run is: epochs, passes over each dataset, and what the run warns of."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from instructkit.config.read import load_config
from instructkit.config.settings import RunConfig
from instructkit.data.mixture import Mixture
from instructkit.errors import UserError
from instructkit.models.load.presets import build, preset
from instructkit.models.towers import prepare_towers
from instructkit.reports.html import html
from instructkit.reports.markdown import markdown
from instructkit.training.datasets import prepare_data
from instructkit.training.length import length_warnings, passes, planned_steps, steps_of
from instructkit.training.model import frozen_warnings
from tests.sources.test_jsonl import write
from tests.training.mini import run_all, write_releases

MINI = Path(__file__).with_name("mini.yaml")
CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"


def mixture(sizes: dict[str, list[int]], config: RunConfig) -> Mixture:
    """A mixture of datasets given as questions a picture."""
    images = {
        name: torch.arange(len(each)).repeat_interleave(torch.tensor(each)).numpy() for name, each in sizes.items()
    }
    return Mixture(images, config.data.weights, config.data.group_size, config.seed)


@pytest.mark.parametrize(
    ("words", "sizes", "steps"),
    [
        (["epochs=1", "batch_size=10"], {"a": [1] * 100}, 10),
        (["epochs=3", "batch_size=32"], {"a": [1] * 100}, 10),  # 9.375 steps; the last is whole
        (["epochs=0.01", "batch_size=32"], {"a": [1] * 100}, 1),
        (["epochs=2", "batch_size=5", "group_size=4"], {"a": [4] * 25}, 10),  # 25 groups of 4
        (["epochs=1", "batch_size=5", "group_size=3"], {"a": [4] * 25}, 10),  # 50 groups of 3 and 1
        (["epochs=1", "batch_size=10"], {"a": [1] * 100, "b": [1] * 400}, 50),
        (["epochs=1", "batch_size=10", "data.weights.b=0"], {"a": [1] * 100, "b": [1] * 400}, 10),
        (["max_steps=7"], {"a": [1] * 100}, 7),
    ],
)
def test_an_epoch_is_as_many_samples_as_the_datasets_have_examples(
    words: list[str], sizes: dict[str, list[int]], steps: int
) -> None:
    config = load_config(MINI, words)
    assert steps_of(config, mixture(sizes, config)) == steps


def test_the_passes_that_are_said_are_those_that_the_mixture_makes() -> None:
    config = load_config(MINI, ["batch_size=16", "group_size=2", "data.weights.a=2", "max_steps=400"])
    drawn = mixture({"a": [3] * 20, "b": [1] * 500, "c": [2] * 900}, config)
    counts: Counter[str] = Counter()
    for position in range(16 * 400):
        draw = drawn[position]
        counts[drawn.names[draw.dataset]] += len(draw.rows)
    said = passes(config, drawn)
    for name, count in counts.items():
        assert said[name] == pytest.approx(count / drawn.sizes[name], rel=0.05)
    assert [line.split(":")[0] for line in length_warnings(config, drawn)] == [
        name for name, count in said.items() if count > 20
    ]


def test_a_plan_counts_epochs_of_converted_data_and_else_of_published_sizes(tmp_path: Path) -> None:
    words = ["epochs=3", "batch_size=32", f"data.root={tmp_path / 'data'}"]
    config, told = planned_steps(load_config(MINI, [*words, "data.train=[okvqa]"]))
    assert (config.training.max_steps, config.training.epochs) == (845, None)  # 3 x 9,009 / 32
    assert told == "training.epochs=3: 845 steps, of published sizes, every group full"
    write(tmp_path / "mine")
    own = load_config(CONFIGS / "finetune.yaml", [f"data={tmp_path / 'mine'}", f"data.root={tmp_path / 'data'}"])
    with pytest.raises(UserError, match=r"training\.epochs: jsonl/train is not converted and has no published size"):
        planned_steps(own)
    prepare_data(msgspec.structs.replace(own), lambda line: None)
    assert planned_steps(own)[0].training.max_steps == 1  # 10 epochs of 3 examples are 30 samples, one step of 32
    assert planned_steps(load_config(MINI)) == (load_config(MINI), None)


def test_what_is_random_and_never_trained_is_warned_of() -> None:
    model = build(preset("nano", 64, 64), 0)
    config = load_config(MINI, ["towers.vision=frozen", "towers.llm=lora"])
    prepare_towers(model, config.towers, 0)
    vision, llm = frozen_warnings(config, model)
    assert vision.startswith("towers.vision=frozen, but ")
    assert llm.startswith("towers.llm=lora, but ")
    whole = build(preset("nano", 64, 64), 0)
    prepare_towers(whole, load_config(MINI).towers, 0)
    assert frozen_warnings(load_config(MINI), whole) == []
    published = load_config(MINI, ["towers.vision=frozen", "model.name=vicuna-7b"])
    assert frozen_warnings(published, model) == []
    model.fresh = frozenset({"vision_model.post_layernorm.weight", "vision_model.encoder.layers.0.mlp.fc1.weight"})
    model.vision_model.requires_grad_(False)
    size = dict(model.named_parameters())["vision_model.encoder.layers.0.mlp.fc1.weight"].numel()
    (line,) = frozen_warnings(published, model)
    assert f"but {size + model.vision_model.post_layernorm.weight.numel():,} of its " in line


def test_log_and_report_of_a_run_warn_of_many_passes_and_of_random_weights(tmp_path: Path) -> None:
    words = [*write_releases(tmp_path), "data.train=[coco_caption]", "towers.vision=frozen", "towers.llm=frozen"]
    run_all(1, tmp_path, {"run": [str(MINI), *words, "epochs=21", "batch_size=16", "log_every=7"]})
    run = tmp_path / "run"
    said = (run / "run.log").read_text().splitlines()
    (passed,) = [line for line in said if line.startswith("mixture")]
    assert passed.endswith("16 examples   probability 1.0000   21.00 passes")
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [7, 14, 21]
    warned = [line.removeprefix("warning   ") for line in said if line.startswith("warning   ")]
    named = {line.split(",")[0].split(":")[0] for line in warned}
    assert (len(warned), named) == (3, {"coco_caption", "towers.vision=frozen", "towers.llm=frozen"})
    report: dict[str, Any] = json.loads((run / "report" / "report.json").read_text())
    assert report["warnings"] == warned
    assert report["config"]["training"]["max_steps"] == 21
    for text in (html(report), markdown(report)):
        assert "21 passes over 16 examples" in text
    again = load_config(run / "config.yaml")  # what is written can be read, as one length
    assert (again.training.max_steps, again.training.epochs) == (21, None)
