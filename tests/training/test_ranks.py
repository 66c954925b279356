"""Several ranks where each has other work to do: all take part in every step, and the losses are those of one rank."""

from __future__ import annotations

from typing import Any

import pytest

from tests.matrix import mostly_full
from tests.training.mini import Runs, log, losses, run_all, write_model, write_releases

TIMEOUT = 600
"""Seconds; a rank that waits for another for ever fails here."""


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Runs over two datasets, whose rows differ in length."""
    folder = tmp_path_factory.mktemp("ranks")
    return [
        *write_releases(folder),
        "data.train=[easy_vqa, coco_caption]",
        f"model.name={write_model(folder / 't5', 't5')}",
        "batch_size=8",
        "group_size=2",
        "max_steps=4",
        "log_every=1",
    ]


MATRIX = {f"zero{stage}-{'packed' if on else 'padded'}": (stage, on) for stage in (0, 2, 3) for on in (True, False)}


@pytest.fixture(scope="module")
def t5(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Runs]:
    """An encoder-decoder LLM under ZeRO 0, 2 and 3, on one rank and on two."""
    runs = {name: [*words, f"zero_stage={stage}", f"packing={str(on).lower()}"] for name, (stage, on) in MATRIX.items()}
    watched = ["zero_stage=3", "every=2", "evaluation.validation=[easy_vqa, coco_caption]", "watch_limit=7"]
    runs["watched"] = [*words, *watched, "eval_batch_size=3"]
    return {
        ranks: Runs(tmp_path_factory.mktemp(f"t5-{ranks}"), {name: (ranks, words) for name, words in runs.items()})
        for ranks in (1, 2)
    }


@pytest.mark.parametrize(
    ("ranks", "name"),
    mostly_full(
        [(ranks, name) for ranks in (1, 2) for name in MATRIX if (ranks, name) != (1, "zero0-padded")],
        *((1, "zero0-packed"), (2, "zero3-packed")),
    ),
)
def test_an_encoder_decoder_has_the_same_losses_however_it_is_sharded_and_packed(
    t5: dict[int, Runs], ranks: int, name: str
) -> None:
    plain = log(t5[1] / "zero0-padded")
    found = log(t5[ranks] / name)
    assert len(found) == 4
    for key in ("loss", "gradient_norm"):
        assert [line[key] for line in found] == pytest.approx([line[key] for line in plain], rel=1e-4)
    assert losses(t5[ranks] / name) == pytest.approx(losses(t5[1] / "zero0-padded"), abs=1e-5)


@pytest.mark.full
def test_an_encoder_decoder_that_is_sharded_is_watched_as_on_one_rank(t5: dict[int, Runs]) -> None:
    one, two = ([line for line in log(t5[n] / "watched") if "validation_loss" in line] for n in (1, 2))
    assert [line["step"] for line in two] == [2, 4]
    assert [line["validation_loss"] for line in two] == pytest.approx(
        [line["validation_loss"] for line in one], abs=1e-5
    )
    assert losses(t5[2] / "watched") == losses(t5[2] / "zero3-packed")


@pytest.fixture(scope="module")
def cached(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs of which a rank has all features of a step while the other has not."""
    folder = tmp_path_factory.mktemp("cached")
    frozen = [*words, "data.train=[easy_vqa]", "towers.vision=frozen", "batch_size=4", "max_steps=6"]
    run_all(1, folder, {"plain": frozen, "filled": [*frozen, f"feature_cache={folder / 'kept'}"]}, timeout=TIMEOUT)
    kept = sorted((folder / "kept").rglob("*.safetensors"))
    for file in kept[::2]:
        file.unlink()
    run_all(2, folder, {"half": [*frozen, f"feature_cache={folder / 'kept'}", "zero_stage=3"]}, timeout=TIMEOUT)
    return folder, kept


def test_ranks_whose_features_are_kept_stay_in_step_with_those_whose_are_not(cached: Any) -> None:
    folder, kept = cached
    assert len(kept) > 10
    assert set(kept) <= set((folder / "kept").rglob("*.safetensors"))
    assert losses(folder / "half") == pytest.approx(losses(folder / "plain"), abs=1e-5)
