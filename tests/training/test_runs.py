"""Runs of the recipe by DeepSpeed on one rank and on two: what the losses, logs, checkpoints and models agree on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from instructkit.models.save import load_model
from instructkit.prompts.templates import Prompt
from tests.matrix import mostly_full
from tests.training.mini import log, losses, repeatable, write_model

STAGES = [f"zero{stage}-fp32" for stage in (0, 1, 2, 3)]
HALF = [f"zero{stage}-bf16" for stage in (0, 1, 2, 3)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{k}": v
        for file in (run / "model").rglob("*.safetensors")
        for k, v in load_file(file).items()
    }


def test_the_same_seed_gives_the_same_losses_bit_for_bit_and_another_seed_others(one):
    assert len(losses(one / "again")) == 4
    assert losses(one / "again") == losses(one / "zero0-fp32")
    assert losses(one / "other-seed") != losses(one / "zero0-fp32")


@pytest.mark.parametrize("stage", mostly_full(STAGES[1:], "zero2-fp32", "zero3-fp32"))
def test_zero_stages_agree_with_plain_training(one, stage):
    assert losses(one / stage) == pytest.approx(losses(one / "zero0-fp32"), abs=1e-5)
    plain, sharded = weights(one / "zero0-fp32"), weights(one / stage)
    assert plain.keys() == sharded.keys()
    for name in plain:
        torch.testing.assert_close(sharded[name], plain[name], atol=2e-4, rtol=0, msg=name)


def test_a_users_own_deepspeed_file_changes_no_loss(one):
    assert losses(one / "own-file") == pytest.approx(losses(one / "zero2-fp32"), abs=1e-5)


@pytest.mark.full
def test_offloading_changes_no_loss(one):
    assert losses(one / "hard-offload") == pytest.approx(losses(one / "hard-zero3"), abs=1e-5)


@pytest.mark.parametrize("stage", mostly_full([STAGES[0], *STAGES[2:]], "zero0-fp32", "zero2-fp32"))
def test_two_ranks_train_as_one_does(one, two, stage):
    assert losses(two / stage) == pytest.approx(losses(one / "zero0-fp32"), abs=1e-5)
    assert [line["samples"] for line in log(two / stage)] == [line["samples"] for line in log(one / "zero0-fp32")]
    assert [line["tokens"] for line in log(two / stage)] == [line["tokens"] for line in log(one / "zero0-fp32")]
    norms = [line["gradient_norm"] for line in log(two / stage)]
    assert norms == pytest.approx([line["gradient_norm"] for line in log(one / "zero0-fp32")], rel=1e-4)


def test_micro_batches_add_up_to_the_whole_batch(one, two):
    assert losses(one / "split") == pytest.approx(losses(one / "zero0-fp32"), abs=1e-5)
    assert losses(two / "split") == pytest.approx(losses(one / "zero0-fp32"), abs=1e-5)


@pytest.mark.parametrize("stage", mostly_full(HALF, "zero2-bf16"))
def test_bf16_follows_fp32_within_its_precision(one, stage):
    assert losses(one / stage) == pytest.approx(losses(one / "zero0-fp32"), abs=0.05)
    assert losses(one / stage) != losses(one / "zero0-fp32")


def test_training_lowers_the_loss_and_the_model_loads_in_plain_transformers(one):
    assert losses(one / "zero3-fp32")[-1] < losses(one / "zero3-fp32")[0]
    model = AutoModelForImageTextToText.from_pretrained(one / "zero3-fp32" / "model")
    loaded = model.state_dict()
    for name, weight in load_file(one / "zero3-fp32" / "model" / "model.safetensors").items():
        torch.testing.assert_close(loaded[name], weight, atol=0, rtol=0)


HARD = ["hard", "hard-zero2", "hard-zero3", "hard-offload"]
FROZEN = ["frozen", "frozen-zero2", "frozen-zero3"]


@pytest.mark.parametrize(
    "name", mostly_full([*STAGES, *HALF, *HARD, *FROZEN, "own-file"], "zero2-bf16", "hard", "hard-zero3")
)
def test_a_resumed_run_repeats_the_log_bit_for_bit(one, name):
    assert [line["step"] for line in log(one / f"{name}-resumed")] == [1, 2, 3, 4]
    assert repeatable(one / f"{name}-resumed") == repeatable(one / name)
    whole, resumed = weights(one / name), weights(one / f"{name}-resumed")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize(
    "name", mostly_full(["zero0-fp32", "zero2-fp32", "zero2-bf16", "zero3-fp32", *HARD, *FROZEN], "hard-zero2")
)
def test_a_resumed_run_on_two_ranks_repeats_the_log_bit_for_bit(two, name):
    assert repeatable(two / f"{name}-resumed") == repeatable(two / name)


def test_going_on_with_other_settings_is_refused_and_names_them(one):
    message = (one / "other-settings" / "error-0.txt").read_text()
    assert "settings.training.learning_rate = 0.001, now 0.5" in message
    assert "settings.seed = 0, now 7" in message
    assert "weight_decay" not in message


@pytest.mark.parametrize("ranks", mostly_full(["one", "two"], "two"))
def test_a_loss_that_is_no_number_stops_the_run_and_leaves_its_batch_behind(ranks, request):
    run = request.getfixturevalue(ranks) / "nan"
    assert "not_finite.json" in (run / "error-0.txt").read_text()
    saved = json.loads((run / "not_finite.json").read_text())
    assert saved["step"] in (1, 2)
    assert not math.isfinite(float(saved["loss"]) + float(saved["gradient_norm"]))
    assert len(saved["ranks"]) == {"one": 1, "two": 2}[ranks]
    examples = [row["example"] for rank in saved["ranks"] for row in rank]
    assert len(examples) == int(saved["samples"])
    assert all(example.startswith("easy_vqa/train/") for example in examples)
    assert not (run / "model").exists()


def test_a_checkpoint_holds_no_frozen_weight(one):
    file = one / "hard" / "checkpoints" / "step-00000004" / "state" / "mp_rank_00_model_states.pt"
    names = torch.load(file, weights_only=False)["module"].keys()
    assert any(name.startswith("qformer.") for name in names)
    assert any(name.startswith("language_model.") and ".lora_" in name for name in names)
    assert not any(name.startswith("language_model.") and ".lora_" not in name for name in names)
    assert not any(name.startswith("vision_model.") and "post_layernorm" not in name for name in names)


@pytest.mark.parametrize(
    "run",
    mostly_full(
        [f"{ranks}/{name}" for ranks in ("one", "two") for name in HARD[1:]], "one/hard-zero3", "two/hard-zero2"
    ),
)
def test_lora_and_the_trained_part_are_the_same_whatever_is_sharded(run, request):
    ranks, _, name = run.partition("/")
    folder = request.getfixturevalue(ranks)
    plain, sharded = weights(folder / "hard"), weights(folder / name)
    assert plain.keys() == sharded.keys()
    assert any(".lora_B." in key and plain[key].abs().max() > 0 for key in plain)
    for key in plain:
        torch.testing.assert_close(sharded[key], plain[key], atol=2e-4, rtol=0, msg=key)
    assert losses(folder / name) == pytest.approx(losses(folder / "hard"), abs=1e-5)


def test_the_saved_part_loads_onto_its_base(one, hard):
    base = next(word for word in reversed(hard) if word.startswith("model.name=")).removeprefix("model.name=")
    trained, _ = load_model(str(one / "hard" / "model"))
    before = load_model(base)[0].state_dict()
    moved = {name for name, weight in trained.state_dict().items() if not torch.equal(weight, before[name])}
    assert {"query_tokens", "language_projection.weight", "vision_model.post_layernorm.weight"} <= moved
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in moved
    assert not any(name.startswith("vision_model.encoder") for name in moved)
    assert "language_model.model.embed_tokens.weight" not in moved


def drawn(name: str, llm: str, dropout: float, folder: Path) -> bool:
    """Whether a model in training mode has another loss after another seed."""
    model, texts = load_model(str(write_model(folder / name, llm, dropout)))
    model.train()
    prompt = Prompt("a/b/0", "t", "is there a triangle in the picture?", "no", ["0"])
    rows = texts.rows(texts.encode([prompt]), [1])
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = set()
    for seed in range(3):
        torch.manual_seed(seed)
        place = torch.zeros(1, dtype=torch.long)
        found.add(float(model.answer_loss(noise, place, place, **rows).total))
    return len(found) > 1


@pytest.mark.parametrize("llm", ["llama", "t5"])
def test_the_models_of_which_one_rank_and_two_are_compared_draw_nothing(llm, tmp_path):
    assert not drawn("plain", llm, 0.0, tmp_path)
    assert drawn("dropout", llm, 0.2, tmp_path)


def test_dropout_is_drawn_by_rank_so_that_another_split_has_other_losses(one, two):
    same = [abs(a - b) for a, b in zip(losses(one / "zero0-fp32"), losses(two / "zero0-fp32"), strict=True)]
    apart = [abs(a - b) for a, b in zip(losses(one / "hard"), losses(two / "hard"), strict=True)]
    assert max(same) < 1e-5
    assert max(apart) > 1e-4, "other machines draw otherwise: 0.0008 on one of them"
