"""Square-root balancing: the paper's numbers, and what every order must keep."""

from __future__ import annotations

import math
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructkit.config.read import load_config
from instructkit.data.mixture import Mixture, probabilities
from instructkit.errors import UserError

PAPER = {
    "web_capfilt": (13_873_136, 0.457),
    "ocrvqa": (801_579, 0.110),
    "coco_caption": (566_747, 0.092),
    "vqav2": (443_757, 0.082),
    "vqg_vqav2": (443_757, 0.082),
    "textcaps": (109_765, 0.041),
    "llava_reasoning": (77_000, 0.034),
    "llava_conversation": (58_000, 0.030),
    "llava_detail": (23_000, 0.019),
    "aokvqa": (17_056, 0.016),
    "vqg_aokvqa": (17_056, 0.016),
    "okvqa": (9_009, 0.012),
    "vqg_okvqa": (9_009, 0.012),
}


def images(sizes, per_image=1):
    return {name: np.arange(size) // per_image for name, size in sizes.items()}


def test_the_papers_thirteen_sets_get_the_shares_of_the_square_root():
    found = probabilities({name: size for name, (size, _) in PAPER.items()})
    for name, (_, share) in PAPER.items():
        assert found[name] == pytest.approx(share, abs=6e-4), name
    assert sum(found.values()) == pytest.approx(1)


def test_overrides_are_factors_on_the_root():
    found = probabilities({"a": 100, "b": 400, "c": 900}, {"a": 2.0, "c": 0})
    assert found == {"a": pytest.approx(20 / 40), "b": pytest.approx(20 / 40), "c": 0}


@pytest.mark.parametrize(
    ("sizes", "overrides", "message"),
    [
        ({"a": 1}, {"b": 1.0}, "no such dataset in the mixture; it has a"),
        ({"a": 1}, {"a": -1.0}, "at least 0"),
        ({"a": 1}, {"a": math.nan}, "at least 0"),
        ({"a": 1}, {"a": 0.0}, "the mixture is empty"),
        ({"a": 0}, {}, "the mixture is empty"),
    ],
)
def test_weights_that_cannot_be(sizes, overrides, message):
    with pytest.raises(UserError, match=message):
        probabilities(sizes, overrides)


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    per_image=st.integers(1, 7),
    group_size=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_every_example_comes_exactly_once_an_epoch_in_groups_of_one_image(sizes, per_image, group_size, seed):
    named = {f"d{index}": size for index, size in enumerate(sizes)}
    mixture = Mixture(images(named, per_image), group_size=group_size, seed=seed)
    seen = {name: Counter() for name in named}
    position = 0
    while any(len(rows) < named[name] for name, rows in seen.items()):
        draw = mixture[position]
        position += 1
        assert 1 <= len(draw.rows) <= group_size
        assert len(set((draw.rows // per_image).tolist())) == 1
        if draw.epoch == 0:
            seen[mixture.names[draw.dataset]].update(draw.rows.tolist())
    for name, rows in seen.items():
        assert rows == Counter(range(named[name]))


def test_another_epoch_has_another_order_and_other_groups():
    mixture = Mixture(images({"a": 60}, per_image=6), group_size=2, seed=5)
    epochs = [[tuple(mixture[e * 30 + i].rows.tolist()) for i in range(30)] for e in range(2)]
    assert [mixture[30 + i].epoch for i in range(30)] == [1] * 30
    assert epochs[0] != epochs[1]
    assert set(epochs[0]) != set(epochs[1])
    assert sorted(row for group in epochs[1] for row in group) == list(range(60))


def test_the_same_seed_gives_the_same_order_and_another_seed_another():
    def order(seed):
        mixture = Mixture(images({"a": 50, "b": 20}), seed=seed)
        return [(mixture[i].dataset, mixture[i].epoch, mixture[i].rows.tolist()) for i in range(300)]

    assert order(3) == order(3)
    assert order(3) != order(4)


def test_a_position_does_not_depend_on_what_was_read_before():
    def mixture():
        return Mixture(images({"a": 500, "b": 90, "c": 7}, per_image=3), group_size=2, seed=9)

    positions = [200_000, 3, 131_072, 65_535, 65_536, 0, 70_000, 199_999]
    jumping = mixture()
    for position in positions:
        jumped, fresh = jumping[position], mixture()[position]
        assert (jumped.dataset, jumped.epoch, jumped.rows.tolist()) == (fresh.dataset, fresh.epoch, fresh.rows.tolist())


def test_shares_of_examples_are_the_probabilities_also_where_datasets_have_groups_of_other_sizes():
    sizes = {"a": 4000, "b": 1000, "c": 250}
    rows = {"a": np.arange(4000) // 8, "b": np.arange(1000), "c": np.arange(250) // 3}
    mixture = Mixture(rows, group_size=4, seed=1)
    count = Counter()
    for position in range(40_000):
        draw = mixture[position]
        count[mixture.names[draw.dataset]] += len(draw.rows)
    total = sum(count.values())
    for name, chance in probabilities(sizes).items():
        # 40,000 draws of at most 4 examples: a standard deviation of some 0.003
        assert count[name] / total == pytest.approx(chance, abs=0.012)
    assert mixture.examples_per_group == pytest.approx(total / 40_000, rel=0.02)


def test_every_seed_that_a_config_takes_gives_an_order_of_its_own(tmp_path):
    sizes = images({"a": 50, "b": 50})
    seeds = [0, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40 + 1, 2**63 - 1]
    path = tmp_path / "run.yaml"
    path.write_text("{}")
    orders = set()
    for seed in seeds:
        mixture = Mixture(sizes, seed=load_config(path, [f"seed={seed}"]).seed)
        drawn = [mixture[position] for position in range(100)]
        orders.add(tuple((draw.dataset, *draw.rows.tolist()) for draw in drawn))
        first, second = ([draw.rows[0] for draw in drawn if draw.dataset == number][:20] for number in (0, 1))
        assert first != second, seed  # datasets of one size have orders of their own
    assert len(orders) == len(seeds)
    for seed in (-1, 2**63, 2**80, 1.5):
        with pytest.raises(UserError, match="seed") as caught:
            load_config(path, [f"seed={seed}"])
        assert "\n" not in str(caught.value)


def test_small_seeds_keep_the_order_that_they_had():
    """Numbers of NumPy's generator by hand: a run that was recorded repeats."""
    mixture = Mixture(images({"a": 5}), seed=3)
    key = (3 << 32) ^ zlib.crc32(b"a")
    draws = np.random.Generator(np.random.Philox(key=key + (0 << 64)))
    rows = np.lexsort((draws.random(5), np.arange(5)))
    assert [mixture[position].rows.tolist() for position in range(5)] == [[rows[i]] for i in draws.permutation(5)]
