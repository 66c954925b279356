"""Every config under `recipes/configs` is read and its run started: miniature releases, a tiny model of its family.

The losses follow from templates, tokenisers, shapes and data: where one of these changes on purpose, record them anew
with RECORD_LOSSES=1 and look at what moved.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from instructkit import sources
from instructkit.config.read import load_config
from instructkit.config.settings import RunConfig, to_dict
from instructkit.conversion.convert import convert
from instructkit.evaluation.select import GROUPS
from instructkit.models.load.trained import load_tokenizers
from instructkit.models.save import load_model, save_blip
from instructkit.prompts.protocols import load_protocol
from instructkit.training.datasets import splits_of
from tests.models.checkpoints import write_bert, write_blip2, write_encoder, write_llm
from tests.models.test_blip import joined, write_vit
from tests.tiny import SENTENCES
from tests.training.mini import ROOT, log, losses, run_all, write_model, write_releases

CONFIGS = sorted(path for path in (ROOT / "recipes" / "configs").glob("*.yaml") if path.stem != "capfilt")
QUICK = ("easy_vqa", "flan_t5_xl", "gemma_270m", "retrieval_coco", "stage2_opt", "vicuna_7b")
"""One of each kind: all from random weights, each family of LLMs, joined parts, the first stage, the second."""
PAPER = ("flan_t5_xl", "flan_t5_xxl", "vicuna_7b", "vicuna_13b")
RECORDED = Path(__file__).with_name("golden_losses.json")
GOLDEN = json.loads(RECORDED.read_text())
"""Losses of ten steps by config, seed 0, recorded on x86-64."""


LLMS = {"gemma3": "gemma3_text", "opt": "opt", "smollm2": "llama", "t5": "t5", "vicuna": "llama"}


def family(config: RunConfig) -> str:
    return "t5" if "t5" in config.model.name else "llama"


class Started:
    """Runs of ten steps by the name of their config, each started when a test first asks for it: `started / name`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.easy = write_releases(folder / "easy")
        self.models = {name: write_model(folder / name, name) for name in ("llama", "t5")}

    def __truediv__(self, name: str) -> Path:
        run = self.folder / "runs" / name
        if not run.is_dir():
            path = next(path for path in CONFIGS if path.stem == name)
            run_all(1, run.parent, {name: [str(path), *self.words(load_config(path))]})
            if os.environ.get("RECORD_LOSSES"):
                GOLDEN[name] = [round(loss, 4) for loss in losses(run)]
                lines = ",\n".join(f' "{k}": {v}' for k, v in sorted(GOLDEN.items()))
                RECORDED.write_text(f"{{\n{lines}\n}}\n")
        return run

    def words(self, config: RunConfig) -> list[str]:
        """Settings that make a config's run small."""
        shrunk = ["max_steps=10", "warmup_steps=5", "log_every=1", "data.workers=0", "benchmarks=[]", "batch_size=8"]
        if config.recipe == "instruct" and config.data.world:
            shrunk.append("data.world=null")
        if config.recipe == "pretrain_text":
            return [*shrunk, f"data.text={write_sentences(self.folder)}"]
        if config.recipe == "pretrain_qformer":
            # In bf16 rounding decides which negatives are drawn, on another CPU others.
            parts = first_stage_parts(config, self.folder)
            return [*shrunk, *self.easy, "data.train=[coco_caption]", "precision=fp32", *parts]
        if config.recipe == "pretrain_blip":
            shrunk += ["precision=fp32", *(["queue=16"] if config.pairs.compares else [])]
            train = "easy_vqa" if config.pairs.losses == ["vqa"] else "coco_caption"
            return [*shrunk, *self.easy, f"data.train=[{train}]", *blip_parts(config, self.folder)]
        if config.model.name == "nano":
            return [*shrunk, *self.easy, "group_size=1", *tiny_parts(config, self.folder)]
        for split in splits_of(config)[: len(config.data.train)]:
            convert_mini(split, self.folder)
        words = [f"data.root={self.folder / 'data'}", f"model.name={self.models[family(config)]}", "checkpoint_every=0"]
        words += ["model.image_size=32"] if config.model.image_size else []
        return [*shrunk, *words]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Started:
    return Started(tmp_path_factory.mktemp("configs"))


def write_sentences(folder: Path) -> Path:
    """A text of 25 documents, two sentences each."""
    path = folder / "text.jsonl"
    texts = [f"{first} {second}" for first in SENTENCES for second in SENTENCES]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def tiny_parts(config: RunConfig, folder: Path) -> list[str]:
    """Small parts in the places of those that a config names: a first-stage BLIP-2, an LLM of the same family."""
    words = []
    if config.model.qformer:
        stage1 = folder / "stage1"
        if not stage1.is_dir():
            write_blip2(stage1, retrieval=True)
        words = [f"model.vision={stage1}", f"model.qformer={stage1}"]
    if config.model.llm:
        kind = next((kind for kind in LLMS if kind in config.model.llm), "vicuna")
        words.append(f"model.llm={write_llm(folder / f'llm_{kind}', LLMS[kind])}")
    return words


def first_stage_parts(config: RunConfig, folder: Path) -> list[str]:
    """Tiny parts in place of those that a config of BLIP-2's first stage names."""
    if config.model.name != "nano":
        return [f"model.name={write_blip2(folder / 'first', retrieval=True)}", "model.image_size=24"]
    if config.model.vision is None:
        return []
    family = next((family for family in ("clip", "efficientnet") if family in config.model.vision), None)
    vision = write_encoder(folder / family, family) if family else write_blip2(folder / "blip2")
    layer = ["model.vision_layer=1"] if config.model.vision_layer else []
    return [f"model.vision={vision}", f"model.qformer={write_bert(folder / 'bert')}", *layer]


def blip_parts(config: RunConfig, folder: Path) -> list[str]:
    """Tiny parts in place of those that a config of BLIP names."""
    if config.model.name != "nano":
        if not (folder / "blip").is_dir():
            save_blip(*joined(), folder / "blip")
        return [f"model.name={folder / 'blip'}", "model.image_size=48"]
    if config.model.vision is None:
        return []
    return [f"model.vision={write_vit(folder / 'vit', 'vit')}", f"model.text={write_bert(folder / 'bert')}"]


def convert_mini(split: str, folder: Path) -> None:
    name, _, part = split.partition("/")
    raw = folder / "raw" / name
    if not raw.is_dir():
        raw.mkdir(parents=True)
        importlib.import_module(f"tests.sources.test_{name}").write(raw)
    convert(name, raw, folder / "data", split=part)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_names_sources_and_protocols_that_are_there(path):
    config = load_config(path)
    for entry in config.data.train:
        assert entry.split("/")[0] in sources.names()
    for benchmark in config.evaluation.benchmarks:
        if benchmark not in GROUPS:
            load_protocol(benchmark.partition("/")[0])
    assert config.output == f"runs/{path.stem}"


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_configs_train_on_what_is_held_in_and_report_on_what_is_held_out(name):
    config = load_config(ROOT / "recipes" / "configs" / f"{name}.yaml")
    roles = {source.name: source.role for source in sources.sources()}
    assert set(config.data.train) == {source for source, role in roles.items() if role == "held-in"}
    tested = {load_protocol(benchmark).source for benchmark in config.evaluation.benchmarks}
    assert tested == {source for source, role in roles.items() if role == "held-out"}
    assert (config.towers.vision, config.towers.qformer, config.towers.llm) == ("frozen", "full", "frozen")


@pytest.mark.parametrize("name", PAPER)
def test_a_lora_form_differs_from_its_config_in_the_llm_alone(name):
    plain, lora = (to_dict(load_config(ROOT / "recipes" / "configs" / f"{name}{form}.yaml")) for form in ("", "_lora"))
    assert lora.pop("towers")["llm"] == "lora"
    assert lora.pop("output") == f"runs/{name}_lora"
    assert lora == {key: value for key, value in plain.items() if key not in ("towers", "output")}


@pytest.mark.parametrize(
    "name", [pytest.param(path.stem, marks=() if path.stem in QUICK else pytest.mark.full) for path in CONFIGS]
)
def test_a_configs_run_starts_and_its_ten_losses_are_those_recorded(started, name):
    run = started / name
    assert not list(run.glob("error-*.txt")), (run / "error-0.txt").read_text()
    assert [line["step"] for line in log(run)] == list(range(1, 11))
    assert losses(run) == pytest.approx(GOLDEN[name], abs=0.02)


def test_a_run_of_joined_parts_saves_all_but_what_the_parts_checkpoints_hold(started):
    folder = started / "gemma_270m" / "model"
    kept = load_file(folder / "trained.safetensors")
    assert {name.partition(".")[0] for name in kept} == {
        "vision_model",
        "qformer",
        "query_tokens",
        "language_projection",
    }
    model, texts = load_model(str(folder))
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in kept.items())
    assert kept.keys() == {name for name, _ in model.named_parameters() if not name.startswith("language_model.")}
    trained_on = load_tokenizers(started / "gemma_270m" / "tokenizers")[1]
    assert texts.qformer("is there a circle?")["input_ids"] == trained_on("is there a circle?")["input_ids"]


def test_rows_of_llms_with_an_attention_window_are_packed_like_others(started):
    for config in ("gemma_270m", "vicuna_7b"):
        assert not [line for line in log_lines(started / config) if line.startswith("packing")]


def log_lines(run: Path) -> list[str]:
    return (run / "run.log").read_text(encoding="utf-8").splitlines()
