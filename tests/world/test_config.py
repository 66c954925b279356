"""`recipes/configs/world.yaml` and `mini_world.yaml` repeat the paper's experiment on the mini-world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from instructkit import sources
from instructkit.config.read import load_config
from instructkit.data.dataset import load_examples
from instructkit.errors import UserError
from instructkit.evaluation.select import wanted_benchmarks
from instructkit.training.datasets import prepare_data
from instructkit.world.build import build, is_drawn

CONFIG = Path(__file__).parents[2] / "recipes" / "configs" / "world.yaml"
MINI = CONFIG.with_name("mini_world.yaml")


@pytest.mark.parametrize("path", [CONFIG, MINI], ids=lambda path: path.stem)
def test_it_trains_on_what_the_paper_holds_in_and_evaluates_all_that_it_holds_out(path: Path) -> None:
    config = load_config(path)
    roles = {source.name: source.role for source in sources.sources()}
    assert set(config.data.train) == {name for name, role in roles.items() if role == "held-in"}
    evaluated = {wanted.protocol.source for wanted in wanted_benchmarks(config.evaluation.benchmarks)} - set(
        config.data.train
    )
    assert evaluated == {name for name, role in roles.items() if role == "held-out"}
    assert (len(config.data.train), len(evaluated)) == (13, 13)
    assert config.data.weights == {}  # square roots alone, as in the paper


def test_it_leaves_the_folders_of_published_data_alone() -> None:
    for path in (CONFIG, MINI):
        config = load_config(path)
        assert (config.data.root, config.output) == ("data/world", f"runs/{path.stem}")


def test_encoder_and_llm_of_the_mini_world_stay_frozen() -> None:
    config = load_config(MINI)
    assert (config.model.name, config.data.world) == ("mini", "full")
    assert (config.towers.vision, config.towers.qformer, config.towers.llm) == ("frozen", "full", "frozen")


def test_a_run_draws_the_world_and_converts_its_releases_once(tmp_path: Path) -> None:
    words = [f"data.root={tmp_path}", "data.world=tiny", "data.train=[okvqa, vqg_okvqa]", "benchmarks=[gqa]"]
    config = load_config(CONFIG, words)
    said: list[str] = []
    prepare_data(config, said.append)
    assert said[0] == f"world     {tmp_path / 'raw'}: tiny, 1,124 pictures drawn"
    assert [line.split(":")[0] for line in said[1:]] == ["data      okvqa/train", "data      gqa/testdev"]
    again: list[str] = []
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    assert len(before) > 900
    prepare_data(config, again.append)
    assert again[0] == f"world     {tmp_path / 'raw'}: tiny, drawn before"
    assert all("unchanged, not converted again" in line for line in again[1:])
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}


def test_a_run_finds_the_broken_pictures_of_the_world_before_it_trains(tmp_path: Path) -> None:
    config = load_config(
        CONFIG, [f"data.root={tmp_path}", "data.world=tiny", "data.train=[web_capfilt]", "benchmarks=[]"]
    )
    said: list[str] = []
    prepare_data(config, said.append)
    planted = json.loads((tmp_path / "raw" / "web_capfilt" / "planted.json").read_text())
    (line,) = (line for line in said if line.startswith("data      web_capfilt"))
    assert f"{sum(flaw['split'] == 'train' for flaw in planted)} rejected" in line
    data = load_examples(tmp_path / "web_capfilt" / "train")
    for example in data:
        for name in example.images:
            with Image.open(data.media_path(name)) as picture:
                picture.load()


def test_a_world_that_is_not_whole_or_another_is_drawn_anew(tmp_path: Path) -> None:
    assert not is_drawn(tmp_path)
    drawing = build(tmp_path)
    next(drawing)
    assert not is_drawn(tmp_path)
    for _ in drawing:
        pass
    assert is_drawn(tmp_path)
    assert not is_drawn(tmp_path, seed=1)
    assert not is_drawn(tmp_path, size="small")
    next(build(tmp_path, seed=1))
    assert not is_drawn(tmp_path)
    for _ in build(tmp_path, pictures=False):
        pass
    assert not is_drawn(tmp_path)


def test_another_world_that_lies_there_is_left_alone(tmp_path: Path) -> None:
    for _ in build(tmp_path / "raw", seed=3):
        pass
    config = load_config(CONFIG, [f"data.root={tmp_path}", "data.world=tiny", "data.train=[okvqa]", "benchmarks=[]"])
    with pytest.raises(
        UserError, match=r"data\.world=tiny: .*raw holds another world \(size tiny, seed 3, pictures True\)"
    ):
        prepare_data(config, lambda line: None)
    assert is_drawn(tmp_path / "raw", seed=3)
