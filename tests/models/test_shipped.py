"""The model that comes with this package: its size, its card, and what it tells of pictures that no training showed."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import instructkit as ik
from instructkit.config.settings import ModelConfig
from instructkit.errors import UserError
from instructkit.models.load.bases import bases_of, find_base
from instructkit.models.load.presets import SHIPPED
from instructkit.world.draw import draw_picture
from instructkit.world.scene import Scene, draw, draw_scene

FOLDER = Path(SHIPPED["mini"])
MOST_PARAMETERS, MOST_BYTES = 5_500_000, 12_000_000
SCENES = 24


@pytest.fixture(scope="module")
def model() -> Any:
    return ik.load_model("mini")


def test_it_is_small_and_in_half_precision(model: Any) -> None:
    assert sum(weight.numel() for weight in model.model.parameters()) <= MOST_PARAMETERS
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= MOST_BYTES
    assert {tensor.dtype for tensor in load_file(FOLDER / "model.safetensors").values()} == {torch.float16}
    assert model.tokens.qformer is not None


def test_its_card_says_what_it_is_made_by_and_what_it_reaches() -> None:
    card = (FOLDER / "README.md").read_text()
    config = json.loads((FOLDER / "config.json").read_text())
    assert "@@" not in card
    assert f"{config['num_query_tokens']} query tokens" in card
    for wanted in ("python recipes/pretrain_mini.py", "seed 0", "MIT", "tokens of text", "pictures", "minutes"):
        assert wanted in card, wanted
    assert re.search(r"\d+(\.\d)?%", card)


def test_it_tells_what_is_to_be_seen_in_scenes_of_the_tests(model: Any) -> None:
    right = asked = 0
    for number in range(SCENES):
        scene: Scene = draw(7, "shipped", number, "test", partial(draw_scene, least=1, most=4))
        for thing in scene.things[:2]:
            told = model.ask(draw_picture(scene), f"The {thing.kind} is")
            words = {thing.size, thing.colour, thing.texture, *thing.place.split()}
            asked += len(words)
            right += len(words & set(re.findall(r"\w+", told)))
    assert right / asked > 0.8, (right, asked)


def test_what_is_trained_from_it_finds_it_again_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base,) = bases_of(ModelConfig(name="mini"), tmp_path).values()
    assert (base.place, base.relative) == ("mini", None)
    assert find_base(base, tmp_path) == "mini"
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    monkeypatch.setitem(SHIPPED, "mini", str(other))
    with pytest.raises(UserError, match="the model mini of this instructkit is not the one that this was trained on"):
        find_base(base, tmp_path)
