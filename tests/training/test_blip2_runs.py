"""BLIP-2's second stage and its finetunings, as their configs name them: ranks, ZeRO, bf16 and going on.

Of each start two runs are looked at by default, the other combinations by `pytest -m full`. All of one kind share a
process group.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.models.checkpoints import write_blip2, write_llm
from tests.training.conftest import with_resumed
from tests.training.mini import ROOT, log, losses, repeatable, run_all, write_model, write_releases

STARTS = ("stage2_opt", "stage2_t5", "caption_coco", "vqa_vqav2", "retrieval_coco")
STAGES, PRECISIONS, RANKS = (0, 1, 2), ("fp32", "bf16"), (1, 2)
PLAIN, QUICK = "zero0-fp32", "zero2-fp32"


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The settings of each start: its config with small parts, without dropout, on a few pictures."""
    folder = tmp_path_factory.mktemp("blip2")
    first = write_blip2(folder / "first", retrieval=True)
    parts = {
        "stage2_opt": [
            f"model.vision={first}",
            f"model.qformer={first}",
            f"model.llm={write_llm(folder / 'opt', 'opt')}",
        ],
        "stage2_t5": [f"model.vision={first}", f"model.qformer={first}", f"model.llm={write_llm(folder / 't5', 't5')}"],
        "caption_coco": [f"model.name={write_blip2(folder / 'second')}", "model.image_size=24"],
        "vqa_vqav2": [f"model.name={write_model(folder / 'reads')}", "model.image_size=24", "data.train=[easy_vqa]"],
        "retrieval_coco": [f"model.name={first}", "model.image_size=24"],
    }
    shrunk = ["batch_size=4", "max_steps=4", "warmup_steps=2", "warmup_from=1e-5", "learning_rate=1e-3", "workers=0"]
    kept = ["log_every=1", "checkpoint_every=2", "data.train=[coco_caption]"]
    releases = write_releases(folder)
    config = ROOT / "recipes" / "configs"
    return {name: [str(config / f"{name}.yaml"), *releases, *shrunk, *kept, *words] for name, words in parts.items()}


def run(ranks: int, starts: dict[str, list[str]], combinations: list[str], folder: Path) -> Path:
    """Run every start in these combinations, `zero<stage>-<precision>`, each as a whole and as one that goes on."""
    plans: dict[str, list[str]] = {}
    for start, words in starts.items():
        for name in combinations:
            stage, _, precision = name.removeprefix("zero").partition("-")
            plans |= with_resumed(f"{start}-{name}", [*words, f"zero_stage={stage}", f"precision={precision}"])
    run_all(ranks, folder, plans, timeout=1800)
    return folder


@pytest.fixture(scope="module")
def quick(starts: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """One rank without ZeRO, and two under ZeRO 2."""
    return {
        ranks: run(ranks, starts, [name], tmp_path_factory.mktemp("quick")) for ranks, name in ((1, PLAIN), (2, QUICK))
    }


@pytest.fixture(scope="module")
def every(starts: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """All combinations, on one rank and on two."""
    names = [f"zero{stage}-{precision}" for stage in STAGES for precision in PRECISIONS]
    return {ranks: run(ranks, starts, names, tmp_path_factory.mktemp("every")) for ranks in RANKS}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.name}/{name}": tensor
        for file in (run / "model").glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def agrees(found: Path, plain: Path) -> None:
    """Whether two runs have the same losses, gradients and models."""
    assert [line["step"] for line in log(found)] == [1, 2, 3, 4]
    assert losses(found) == pytest.approx(losses(plain), abs=1e-5)
    norms = [line["gradient_norm"] for line in log(found)]
    assert norms == pytest.approx([line["gradient_norm"] for line in log(plain)], rel=1e-4)
    one, other = weights(found), weights(plain)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=2e-4, rtol=0, msg=name)


def repeats(resumed: Path, whole: Path) -> None:
    """Whether a run that went on is the one that never stopped, bit for bit."""
    assert [line["step"] for line in log(resumed)] == [1, 2, 3, 4]
    assert repeatable(resumed) == repeatable(whole)
    one, other = weights(resumed), weights(whole)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("start", STARTS)
def test_two_ranks_under_zero_train_as_one_does(quick: dict[int, Path], start: str) -> None:
    agrees(quick[2] / f"{start}-{QUICK}", quick[1] / f"{start}-{PLAIN}")


@pytest.mark.parametrize("start", STARTS)
def test_a_run_on_one_rank_and_on_two_goes_on_bit_for_bit(quick: dict[int, Path], start: str) -> None:
    for ranks, name in ((1, PLAIN), (2, QUICK)):
        repeats(quick[ranks] / f"{start}-{name}-resumed", quick[ranks] / f"{start}-{name}")


@pytest.mark.full
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("start", STARTS)
def test_every_stage_of_zero_trains_as_plain_training(
    every: dict[int, Path], start: str, stage: int, ranks: int
) -> None:
    agrees(every[ranks] / f"{start}-zero{stage}-fp32", every[1] / f"{start}-{PLAIN}")


@pytest.mark.full
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("start", STARTS)
def test_bf16_follows_fp32_within_its_precision(every: dict[int, Path], start: str, stage: int, ranks: int) -> None:
    half, whole = losses(every[ranks] / f"{start}-zero{stage}-bf16"), losses(every[1] / f"{start}-{PLAIN}")
    # Of the first stage's losses rounding decides some negatives.
    assert half == pytest.approx(whole, rel=0.05 if start == "retrieval_coco" else 0.01)
    assert half != whole


@pytest.mark.full
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("start", STARTS)
def test_every_combination_goes_on_bit_for_bit(
    every: dict[int, Path], start: str, stage: int, precision: str, ranks: int
) -> None:
    name = f"{start}-zero{stage}-{precision}"
    repeats(every[ranks] / f"{name}-resumed", every[ranks] / name)
