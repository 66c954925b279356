"""`recipes/configs/world.yaml` repeats the paper's experiment on the mini-world."""

from __future__ import annotations

from pathlib import Path

from instructkit import sources
from instructkit.config.read import load_config
from instructkit.evaluation.select import wanted_benchmarks

CONFIG = Path(__file__).parents[2] / "recipes" / "configs" / "world.yaml"


def test_it_trains_on_what_the_paper_holds_in_and_evaluates_all_that_it_holds_out() -> None:
    config = load_config(CONFIG)
    roles = {source.name: source.role for source in sources.sources()}
    assert set(config.data.train) == {name for name, role in roles.items() if role == "held-in"}
    evaluated = {wanted.protocol.source for wanted in wanted_benchmarks(config.evaluation.benchmarks)}
    assert evaluated == {name for name, role in roles.items() if role == "held-out"}
    assert (len(config.data.train), len(evaluated)) == (13, 13)
    assert config.data.weights == {}  # square roots alone, as in the paper


def test_it_leaves_the_folders_of_published_data_alone() -> None:
    config = load_config(CONFIG)
    assert (config.data.root, config.output) == ("data/world", "runs/world")
