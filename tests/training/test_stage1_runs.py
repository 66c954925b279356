"""Runs of the recipe of BLIP-2's first stage: one rank and two, ZeRO, bf16, going on, and what lies in the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Blip2ForImageTextRetrieval

from instructkit.config.conflicts import check_recipe
from instructkit.config.read import load_config
from instructkit.errors import UserError
from instructkit.models.load.pretraining import load_pretraining
from instructkit.training.recipe import launch_command
from tests.matrix import mostly_full
from tests.models.checkpoints import write_bert, write_encoder
from tests.training.conftest import with_resumed
from tests.training.mini import ROOT, Runs, log, losses, repeatable, run_all, write_releases

STAGES = ["zero0", "zero1", "zero2"]
CONFIG = ROOT / "recipes" / "configs" / "stage1_world.yaml"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All towers from random weights, on eight pictures with two captions each."""
    return [
        "recipe=pretrain_qformer",
        *write_releases(tmp_path_factory.mktemp("stage1")),
        "data.train=[coco_caption]",
        "towers.llm=frozen",
        "vocabulary=120",
        "batch_size=4",
        "max_steps=4",
        "log_every=1",
        "checkpoint_every=2",
    ]


@pytest.fixture(scope="module")
def plans(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("parts")
    parts = [f"model.vision={write_encoder(folder / 'vit', 'vit')}", f"model.qformer={write_bert(folder / 'bert')}"]
    frozen = [*words, *parts, "towers.vision=frozen"]
    hard = [*frozen, "augment=true", "data.workers=1", "caption_tokens=6"]
    runs: dict[str, list[str]] = {}
    for stage in (0, 1, 2):
        runs |= with_resumed(f"zero{stage}", [*words, f"zero_stage={stage}"])
        runs |= with_resumed(f"zero{stage}-bf16", [*words, f"zero_stage={stage}", "precision=bf16"])
    runs |= with_resumed("hard", hard) | with_resumed("hard-zero2", [*hard, "zero_stage=2"])
    cached = [*frozen, f"feature_cache={folder / 'features'}"]
    runs |= {"frozen": frozen, "cached": cached, "cached-again": cached}
    runs |= {"recomputed": [*words, "activation_checkpointing=true"], "muon": [*words, "optimizer=muon"]}
    runs |= {
        "lora": [*words, "towers.vision=lora"],
        "epochs": [*(word for word in words if "max_steps" not in word), "epochs=3"],
    }
    return runs


@pytest.fixture(scope="module")
def one(plans: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("one"), {name: (1, settings) for name, settings in plans.items()})


@pytest.fixture(scope="module")
def two(plans: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("two"), {name: (2, settings) for name, settings in plans.items()})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {**load_file(run / "model" / "model.safetensors"), **load_file(run / "model" / "stage1.safetensors")}


@pytest.mark.parametrize("stage", mostly_full(STAGES, "zero2"))
def test_zero_stages_and_ranks_agree_with_plain_training(one, two, stage):
    plain = log(one / "zero0")
    assert len(plain) == 4
    for run in (one / stage, two / stage):
        for name in ("loss", "loss/itc", "loss/itm", "loss/itg"):
            assert [line[name] for line in log(run)] == pytest.approx([line[name] for line in plain], abs=1e-5)
        assert [line["gradient_norm"] for line in log(run)] == pytest.approx(
            [line["gradient_norm"] for line in plain], rel=1e-4
        )
    assert [line["pairs/itc"] for line in plain] == [4] * 4


@pytest.mark.parametrize("stage", mostly_full(STAGES, "zero2"))
def test_bf16_follows_fp32_within_its_precision(one, stage):
    half, whole = losses(one / f"{stage}-bf16"), losses(one / "zero0")
    assert half[0] == pytest.approx(whole[0], abs=0.02)
    assert half == pytest.approx(whole, rel=0.05), "rounding decides some negatives, from the first step on"
    assert half != whole


@pytest.mark.parametrize(
    "name",
    mostly_full([*STAGES, *(f"{stage}-bf16" for stage in STAGES), "hard", "hard-zero2"], "zero2-bf16", "hard"),
)
def test_a_resumed_run_repeats_the_log_bit_for_bit(one, name):
    assert [line["step"] for line in log(one / f"{name}-resumed")] == [1, 2, 3, 4]
    assert repeatable(one / f"{name}-resumed") == repeatable(one / name)
    whole, resumed = weights(one / name), weights(one / f"{name}-resumed")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("name", mostly_full(["zero0", "zero2", "zero2-bf16", "hard-zero2"], "zero2"))
def test_a_resumed_run_on_two_ranks_repeats_the_log_bit_for_bit(two, name):
    assert repeatable(two / f"{name}-resumed") == repeatable(two / name)


def test_kept_features_change_no_loss(one):
    """Dropout is drawn by step, so that runs with and without a cache draw alike."""
    assert losses(one / "cached") == pytest.approx(losses(one / "frozen"), abs=1e-5)
    assert losses(one / "cached-again") == pytest.approx(losses(one / "frozen"), abs=1e-5)


def test_layers_that_are_computed_twice_change_no_loss(one):
    assert losses(one / "recomputed") == losses(one / "zero0")


@pytest.mark.parametrize("name", mostly_full(["zero0", "hard", "lora", "muon"], "zero0", "hard", "lora"))
def test_the_folder_holds_a_model_that_transformers_and_the_toolkit_open(one, name):
    folder = one / name / "model"
    model, captions = load_pretraining(str(folder))
    assert model.fresh == frozenset()
    assert model.temperature.item() != pytest.approx(0.07, abs=1e-7), "it is learned"
    if name != "hard":  # whose encoder is another family's
        _, info = Blip2ForImageTextRetrieval.from_pretrained(folder, output_loading_info=True)
        assert not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    assert captions.rows(["a shape"])["input_ids"].shape[0] == 1


def test_the_log_and_the_report_say_what_was_trained(one):
    run = one / "hard"
    said = (run / "run.log").read_text()
    assert "model     qformer         from random weights: encoder.layer.*.crossattention" in said.replace(
        "qformer.encoder", "encoder"
    )
    assert "8 pictures" in said
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["training"]["step"] == 4
    last = log(run)[-1]
    assert last["cut/qformer/coco_caption"] > 0, "captions of more than 6 tokens are cut, and that is counted"
    assert {"mean_itc", "mean_itm", "mean_itg", "mean_itg/coco_caption"} <= last.keys()


def test_an_epoch_is_a_pass_over_the_pictures(one):
    assert len(log(one / "epochs")) == 3 * 8 / 4


def test_the_same_settings_do_not_train_twice(one, tmp_path):
    _ = one / "zero0"
    before = (one.folder / "zero0" / "model" / "model.safetensors").stat().st_mtime_ns
    del one.said["zero0"]
    assert "it is not trained again" in (one / "zero0" / "run.log").read_text()
    assert (one.folder / "zero0" / "model" / "model.safetensors").stat().st_mtime_ns == before


# --- what is refused

REFUSED = {
    "towers.llm=lora": "towers.llm=lora: BLIP-2's first stage has no LLM",
    "model.llm=gpt2": "model.llm=gpt2: BLIP-2's first stage has no LLM",
    "group_size=2": "data.group_size=2: BLIP-2's first stage reads one caption of a picture a step",
    "benchmarks=[easy_vqa]": "ends with a model that answers nothing yet",
    "answer_tokens=8": "data.caption_tokens cuts captions",
    "zero_stage=3": "training.zero_stage=3: BLIP-2's first stage runs under ZeRO 0 to 2",
    "accumulation=2": "accumulation=2 cannot be used with the loss itc + itm + itg",
    "data.train=[easy_vqa]": "easy_vqa holds no captions, its task is vqa",
}


def test_settings_that_cannot_be_honoured_are_named(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    run_all(1, folder, {str(number): [*words, word] for number, word in enumerate(REFUSED)})
    for number, message in enumerate(REFUSED.values()):
        assert message in (folder / str(number) / "error-0.txt").read_text()


def test_settings_go_to_the_recipe_that_they_are_for():
    config = load_config(CONFIG)
    with pytest.raises(UserError, match=r"these settings are for recipes/pretrain_qformer\.py"):
        check_recipe(config, "instruct")
    words: list[Any] = launch_command(["stage1_world"])
    assert Path(words[words.index("--config") - 1]).name == "pretrain_qformer.py"
    assert Path(launch_command(["easy_vqa"])[3]).name == "instruct.py"
