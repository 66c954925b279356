"""Training runs on one rank and on two that several tests look at; each is started when a test first asks for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.mini import Runs, write_model, write_releases

ZERO = [(stage, precision) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")]
HARD = [
    "data.train=[easy_vqa, coco_caption]",
    "data.augment=true",
    "accumulation=2",
    "workers=1",
    "towers.vision=frozen",
    "towers.qformer=full",
    "towers.llm=lora",
]
"""Everything that could break a repeat: a mixture, crops, micro-batches, workers, LoRA; the model has dropout."""


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("mini")
    return [
        *write_releases(folder),
        f"model.name={write_model(folder / 'model')}",
        "batch_size=8",
        "group_size=2",
        "max_steps=4",
        "warmup_steps=2",
        "log_every=1",
        "checkpoint_every=2",
        "keep_checkpoints=2",
    ]


@pytest.fixture(scope="session")
def hard(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    model = write_model(tmp_path_factory.mktemp("dropout") / "model", dropout=0.2)
    return [*words, f"model.name={model}", *HARD]


WATCHED = [
    "every=2",
    "evaluation.watch=[easy_vqa/train, coco_caption/train]",
    "evaluation.validation=[easy_vqa, coco_caption]",
    "watch_limit=7",
    "eval_batch_size=3",
]
"""Evaluations after every second step: by ranking, by generating and by the loss."""

WORSE = [
    "every=1",
    "evaluation.validation=[easy_vqa]",
    "watch_limit=7",
    "warmup_steps=3",
    "learning_rate=3",
    "patience=2",
]
"""The first step is a small one that helps, those behind it do harm."""


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own DeepSpeed file: the optimizer's state on the CPU, buckets far smaller than DeepSpeed's."""
    path = tmp_path_factory.mktemp("own") / "ds.json"
    path.write_text(
        json.dumps(
            {
                "bf16": {"enabled": "auto"},
                "gradient_accumulation_steps": "auto",
                "train_batch_size": "auto",
                "train_micro_batch_size_per_gpu": "auto",
                "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "weight_decay": "auto"}},
                "zero_optimization": {
                    "stage": 2,
                    "reduce_bucket_size": "auto",
                    "offload_optimizer": {"device": "cpu"},
                },
            }
        )
    )
    return path


def plans(ranks: int, words: list[str], hard: list[str], own: Path) -> dict[str, list[str]]:
    stages = ZERO if ranks == 1 else [(0, "fp32"), (2, "fp32"), (2, "bf16"), (3, "fp32")]
    frozen = [*words, "towers.vision=frozen", "towers.llm=frozen"]
    runs = {
        "split": [*words, "accumulation=4" if ranks == 1 else "accumulation=2"],
        "hard": hard,
        "hard-resumed": [*hard, "after=hard:2", "workers=0"],
        **with_resumed("frozen", frozen),
        **with_resumed("hard-zero2", [*hard, "zero_stage=2"]),
        **with_resumed("frozen-zero2", [*frozen, "zero_stage=2"]),
        "nan": [*words, "learning_rate=1e6", "weight_decay=1e6", "warmup_steps=0", "checkpoint_every=0"],
    }
    runs["watched"] = [*hard, *WATCHED, "checkpoint_every=0", "keep_checkpoints=1"]
    runs["worse"] = [*words, *WORSE]
    if ranks == 1:
        runs["watched-resumed"] = [*hard, *WATCHED, "after=watched:2"]
        runs["worse-resumed"] = [*words, *WORSE, "after=worse:3"]
        runs["worse-zero2"] = [*words, *WORSE, "zero_stage=2"]
        runs["first-step"] = [*words, *WORSE, "every=0", "max_steps=1"]
        runs["again"] = words
        windows = [*hard, "log_every=3"]
        runs |= {"windows": windows, "windows-resumed": [*windows, "after=windows:2"]}
        runs["other-seed"] = [*words, "seed=1"]
        runs |= with_resumed("own-file", [*words, "zero_stage=2", f"deepspeed={own}"])
    for stage, precision in stages:
        settings = [*words, f"zero_stage={stage}", f"precision={precision}"]
        runs |= with_resumed(f"zero{stage}-{precision}", settings)
    runs |= with_resumed("frozen-zero3", [*frozen, "zero_stage=3"])
    runs |= with_resumed("hard-zero3", [*hard, "zero_stage=3"])
    runs |= with_resumed("hard-offload", [*hard, "zero_stage=3", "offload=parameters"])
    merged = [*words, "model.name=nano", "towers.vision=lora", "towers.llm=lora", "max_steps=2"]
    runs |= {"merged": merged, "merged-zero3": [*merged, "zero_stage=3"]}
    runs["worse-zero3"] = [*words, *WORSE, "zero_stage=3"]
    runs["watched-zero3"] = [*hard, *WATCHED, "zero_stage=3"]
    if ranks == 1:
        runs["other-settings"] = [*words, "after=zero0-fp32:2", "learning_rate=0.5", "seed=7"]
    return runs


def with_resumed(name: str, settings: list[str]) -> dict[str, list[str]]:
    """A run, and one that goes on from its second step."""
    return {name: settings, f"{name}-resumed": [*settings, f"after={name}:2"]}


@pytest.fixture(scope="session")
def one(words: list[str], hard: list[str], own: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = plans(1, words, hard, own)
    return Runs(tmp_path_factory.mktemp("one"), {name: (1, settings) for name, settings in runs.items()})


@pytest.fixture(scope="session")
def two(words: list[str], hard: list[str], own: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = plans(2, words, hard, own)
    return Runs(tmp_path_factory.mktemp("two"), {name: (2, settings) for name, settings in runs.items()})
