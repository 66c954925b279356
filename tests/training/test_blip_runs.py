"""Runs of BLIP's recipe: one rank and two, ZeRO, bf16, going on, what lies in the folder, and what is refused."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from instructkit.config.read import load_config
from instructkit.config.settings import ModelConfig
from instructkit.errors import UserError
from instructkit.models.load.blip import load_blip
from instructkit.models.load.blip_tasks import look_for_blip
from instructkit.models.save import export, save_blip
from instructkit.training.blip_model import check_blip
from tests.models.checkpoints import write_bert
from tests.models.test_blip import joined, write_vit
from tests.training.conftest import with_resumed
from tests.training.mini import ROOT, Runs, log, losses, repeatable, write_releases

CONFIG = ROOT / "recipes" / "configs" / "pretrain_blip_world.yaml"
BLIP = [
    "recipe=pretrain_blip",
    "towers.vision=full",
    "towers.llm=frozen",
    "vocabulary=120",
    "batch_size=4",
    "max_steps=4",
    "warmup_steps=2",
    "learning_rate=1e-3",
    "log_every=1",
    "checkpoint_every=2",
]
NEW = [*BLIP, "queue=8", "momentum=0.9"]
"""All towers from random weights, on eight pictures with two captions each; an epoch is two steps."""
FULL = pytest.mark.full
SHARDED = [(1, 1), (1, 2), (2, 1), (2, 2)]
RESUMED = ["zero0", "zero1", "zero2", "zero0-bf16", "zero1-bf16", "zero2-bf16"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*write_releases(tmp_path_factory.mktemp("blip")), "data.train=[coco_caption]"]


@pytest.fixture(scope="module")
def plans(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder, words = tmp_path_factory.mktemp("parts"), [*data, *NEW]
    parts = [f"model.vision={write_vit(folder / 'vit', 'vit')}", f"model.text={write_bert(folder / 'bert')}"]
    runs: dict[str, list[str]] = {}
    for stage in (0, 1, 2):
        runs |= with_resumed(f"zero{stage}", [*words, f"zero_stage={stage}"])
        runs |= with_resumed(f"zero{stage}-bf16", [*words, f"zero_stage={stage}", "precision=bf16"])
    hard = [*words, *parts, "augment=true", "data.workers=1", "model.sharing=none", "negatives=rank", "zero_stage=2"]
    runs |= with_resumed("hard", [*hard, "training.schedule=step", "warmup_steps=1", "decay=0.5"])
    runs |= {"recomputed": [*words, "activation_checkpointing=true"], "muon": [*words, "optimizer=muon"]}
    return runs


@pytest.fixture(scope="module")
def one(plans: dict[str, list[str]], data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("one")
    goes_on = [*data, *BLIP, f"model.name={folder / 'zero0' / 'model'}", "model.image_size=32"]
    captioning = [*goes_on, "pairs.losses=[lm]", "data.prompt=a shape with", "towers.vision=frozen", "accumulation=2"]
    retrieval = [*goes_on, "pairs.losses=[itc,itm]", "similarity=online", "queue=12"]
    answering = [*goes_on, "pairs.losses=[vqa]", "data.train=[easy_vqa]", "accumulation=2"]
    every = plans | {"captioning": captioning, "retrieval": retrieval, "answering": answering}
    return Runs(folder, {name: (1, settings) for name, settings in every.items()})


@pytest.fixture(scope="module")
def two(plans: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("two"), {name: (2, settings) for name, settings in plans.items()})


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def state(run: Path, step: int = 4) -> dict[str, torch.Tensor]:
    """Weights and buffers of a checkpoint."""
    (path,) = (run / "checkpoints" / f"step-{step:08}" / "state").glob("mp_rank_00_model_states.pt")
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=False)["module"]
    return found


def agree(run: Path, plain: Path) -> None:
    for name in ("loss", "loss/itc", "loss/itm", "loss/lm"):
        assert [line[name] for line in log(run)] == pytest.approx([line[name] for line in log(plain)], abs=1e-5)
    assert [line["gradient_norm"] for line in log(run)] == pytest.approx(
        [line["gradient_norm"] for line in log(plain)], rel=1e-4
    )


@pytest.mark.parametrize(("ranks", "stage"), [(2, 0), *(pytest.param(*each, marks=FULL) for each in SHARDED)])
def test_zero_stages_and_ranks_agree_with_plain_training(one, two, ranks, stage):
    assert len(log(one / "zero0")) == 4
    run = (one if ranks == 1 else two) / f"zero{stage}"
    agree(run, one / "zero0")
    mine, plain = state(run), state(one / "zero0")
    kept = [name for name in plain if name.startswith("momentum.")]
    assert len(kept) > 50, "the momentum encoder and the queue are in the checkpoint"
    for name in kept:
        torch.testing.assert_close(mine[name], plain[name], atol=1e-4, rtol=1e-4)
    assert [line["pairs/itc"] for line in log(run)] == [4] * 4


@FULL
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_bf16_follows_fp32_within_its_precision(one, stage):
    half, whole = losses(one / f"zero{stage}-bf16"), losses(one / "zero0")
    assert half[0] == pytest.approx(whole[0], abs=0.05)
    assert half == pytest.approx(whole, rel=0.05), "rounding decides some negatives, from the first step on"
    assert half != whole
    kept = {name: tensor for name, tensor in state(one / f"zero{stage}-bf16").items() if name.startswith("momentum.")}
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("name", ["hard", *(pytest.param(name, marks=FULL) for name in RESUMED)])
def test_a_resumed_run_repeats_the_log_bit_for_bit(one, name):
    assert [line["step"] for line in log(one / f"{name}-resumed")] == [1, 2, 3, 4]
    assert repeatable(one / f"{name}-resumed") == repeatable(one / name)
    whole, resumed = (state(one / run) for run in (name, f"{name}-resumed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    whole, resumed = (weights(one / run) for run in (name, f"{name}-resumed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@FULL
@pytest.mark.parametrize("name", ["zero0", "zero2", "zero2-bf16", "hard"])
def test_a_resumed_run_on_two_ranks_repeats_the_log_bit_for_bit(two, name):
    assert repeatable(two / f"{name}-resumed") == repeatable(two / name)


@FULL
def test_layers_that_are_computed_twice_change_no_loss(one):
    assert losses(one / "recomputed") == losses(one / "zero0")


@FULL
def test_muon_trains_it(one):
    assert losses(one / "muon")[-1] < losses(one / "muon")[0]


def test_the_momentum_encoder_follows_by_its_rate_before_it_looks(one):
    """Step three's mean is that of step two and of the weights that step two left."""
    rate, run = 0.9, one / "zero0"
    before, after = state(run, 2), state(run, 4)
    name = "text_encoder.encoder.layer.0.attention.self.query.weight"
    assert (after[f"momentum.{name}"] - before[f"momentum.{name}"]).abs().max() > 0
    # Two steps: m3 = r m2 + (1 - r) w2, m4 = r m3 + (1 - r) w3; w3 lies between.
    left = after[f"momentum.{name}"] - rate**2 * before[f"momentum.{name}"] - rate * (1 - rate) * before[name]
    step = (left / (1 - rate) - before[name]).abs().max()
    assert 0 < step < 5e-3, "w3 is one optimizer step away from w2"
    assert before["momentum.place"].tolist() == after["momentum.place"].tolist() == [0]
    assert len(set(after["momentum.ids"].tolist())) == 8, "the queue holds every picture of the last epoch"


def test_a_decay_comes_after_each_epoch(one):
    """Two steps are an epoch; the warm-up is one step."""
    assert [line["learning_rate"] for line in log(one / "hard")] == pytest.approx([1e-5, 1e-3, 5e-4, 5e-4])
    assert "decay_every: 2" in (one / "hard" / "config.yaml").read_text()


def test_the_folder_holds_the_model_without_its_momentum_encoder(one):
    model, captions = load_blip(str(one / "hard" / "model"))
    assert model.config.sharing == "none"
    stored = weights(one / "hard")
    assert not any(name.startswith("momentum.") for name in stored)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.named_parameters())
    assert model.temperature.item() != pytest.approx(0.07, abs=1e-7), "it is learned"
    ids = captions.rows(["a shape"])
    assert model.embed_texts(**ids).shape == (1, 256)
    said = (one / "hard" / "run.log").read_text()
    assert "8 pictures" in said
    assert "from random weights: itm_head" in said


def test_finetuning_for_captions_leaves_what_no_loss_reaches(one):
    before, after = weights(one / "zero0"), weights(one / "captioning")
    same = {name for name, tensor in after.items() if tensor.shape == before[name].shape}
    moved = {name for name in same if not torch.equal(after[name], before[name])}
    assert any(name.startswith("text_decoder.bert.encoder.layer.0.attention.") for name in moved)
    assert any(name.startswith("text_encoder.encoder.layer.0.crossattention.") for name in moved), "shared with it"
    still = ("vision_", "text_proj", "itm_head", "temperature", "text_encoder.encoder.layer.0.attention.")
    assert not any(name.startswith(still) for name in moved)
    tokens = [line["tokens"] for line in log(one / "captioning")]
    # Captions are "a shape with number 9" and "one shape on a light background" with the prompt in front and [SEP].
    assert all(count >= 4 * 3 for count in tokens)
    assert load_blip(str(one / "captioning" / "model"))[0].config.vision_config.image_size == 32


def test_finetuning_for_retrieval_goes_on_at_another_size(one):
    before, after = weights(one / "zero0"), weights(one / "retrieval")
    lines = log(one / "retrieval")
    assert {"loss/itc", "loss/itm"} <= lines[0].keys()
    assert "loss/lm" not in lines[0]
    decoders = [name for name in after if name.startswith("text_decoder.bert.")]
    assert decoders
    assert all(torch.equal(before[name], after[name]) for name in decoders)
    assert load_blip(str(one / "retrieval" / "model"))[0].config.vision_config.image_size == 32


def test_finetuning_for_answers_parts_the_decoder_from_the_encoder(one):
    before, after = weights(one / "zero0"), weights(one / "answering")
    name = "encoder.layer.0.crossattention.self.key.weight"
    assert f"text_decoder.bert.{name}" not in before
    assert not torch.equal(after[f"text_decoder.bert.{name}"], after[f"text_encoder.{name}"])
    assert not torch.equal(after[f"text_encoder.{name}"], before[f"text_encoder.{name}"])
    assert torch.equal(after["itm_head.weight"], before["itm_head.weight"])
    assert load_blip(str(one / "answering" / "model"))[0].config.sharing == "none"
    assert [line["questions"] for line in log(one / "answering")] == [4] * 4


# --- what is refused

REFUSED = {
    "model.llm=gpt2": "model.llm=gpt2: BLIP has no LLM",
    "model.qformer=bert": r"model.qformer=bert: BLIP has no Q-Former \(model.text",
    "towers.vision=lora": "towers.vision=lora: BLIP's image encoder is trained in full or frozen",
    "training.rates.qformer=1e-4": "training.rates.qformer: BLIP has no Q-Former",
    "group_size=2": "data.group_size=2: BLIP reads one caption of a picture a step",
    "benchmarks=[easy_vqa]": "is evaluated when it is trained",
    "zero_stage=3": "training.zero_stage=3: BLIP is trained under ZeRO 0 to 2",
    "'data.prompt=a picture of'": "data.prompt='a picture of': itc and itm and lm read texts as they are",
    "model.name=runs/blip/model model.text=bert": "model.name=runs/blip/model: a whole BLIP",
    "pairs.losses=[lm] 'data.prompt=about {{question}}'": "BLIP's prompt is the same text for all",
}


@pytest.mark.parametrize("words", REFUSED)
def test_settings_without_a_meaning_are_named(words):
    config = load_config(CONFIG, shlex.split(words))
    with pytest.raises(UserError, match=REFUSED[words]):
        check_blip(config)


def test_models_that_cannot_be_trained_are_named_before_data_are_converted(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        look_for_blip(ModelConfig(name="nowhere/at/all"))
    bert = str(write_bert(tmp_path / "bert"))
    for part, message in {"name": "is no BLIP", "vision": "starts from a ViT or DeiT"}.items():
        with pytest.raises(UserError, match=message):
            look_for_blip(ModelConfig(**{part: bert}))
    look_for_blip(ModelConfig(text=bert))
    save_blip(*joined(), tmp_path / "whole")
    look_for_blip(ModelConfig(name=str(tmp_path / "whole")))
    for task, message in {"captioning": "for captioning alone", "retrieval": "for retrieval alone", "vqa": ""}.items():
        export(str(tmp_path / "whole"), tmp_path / task, task=task)
        if message:
            with pytest.raises(UserError, match=message):
                look_for_blip(ModelConfig(name=str(tmp_path / task)))
        else:
            look_for_blip(ModelConfig(name=str(tmp_path / task)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["queue=100"], "pairs.queue = 100 is no multiple of training.batch_size = 64.*take queue=128"),
        (["pairs.losses=[itc,lm]"], "itc and itm go together"),
        (["pairs.losses=[lm,lm]"], "names one twice"),
        (["pairs.losses=[lm,vqa]"], "name vqa alone"),
        (["training.decay=0.5"], "belong to schedule=step"),
        (["recipe=instruct", "pairs={}", "alpha=0.1"], r"pairs.alpha is for BLIP \(recipe=pretrain_blip\)"),
        (["recipe=pretrain_qformer", "pairs={}", "model.text=bert"], r"model.text is for BLIP"),
    ],
)
def test_settings_that_do_not_go_together_are_said_when_they_are_read(words, message):
    with pytest.raises(UserError, match=message):
        load_config(
            CONFIG,
            [word for word in words if word != "pairs={}"] + ["queue=57600", "momentum=0.995"] * ("pairs={}" in words),
        )


def test_a_training_without_comparing_needs_no_queue():
    config = load_config(CONFIG, ["pairs.losses=[lm]", "queue=100"])
    assert not config.pairs.compares
