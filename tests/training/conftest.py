"""Training runs that several tests look at, started once for one rank and once for two."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.mini import run_all, write_model, write_releases

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


def plans(ranks: int, words: list[str], hard: list[str]) -> dict[str, list[str]]:
    stages = ZERO if ranks == 1 else [(0, "fp32"), (2, "fp32"), (2, "bf16"), (3, "fp32")]
    runs = {
        "split": [*words, "accumulation=4" if ranks == 1 else "accumulation=2"],
        "hard": hard,
        "hard-resumed": [*hard, "after=hard:2", "workers=0"],
        "nan": [*words, "learning_rate=1e30", "warmup_steps=0", "checkpoint_every=0"],
    }
    if ranks == 1:
        runs["again"] = words
        windows = [*hard, "log_every=3"]
        runs |= {"windows": windows, "windows-resumed": [*windows, "after=windows:2"]}
        runs["other-seed"] = [*words, "seed=1"]
    # ZeRO 3 comes last and every run before what goes on from it: DeepSpeed then replaces torch's linear layer for the
    # whole process, by one that rounds otherwise.
    for stage, precision in stages:
        name, settings = f"zero{stage}-{precision}", [*words, f"zero_stage={stage}", f"precision={precision}"]
        runs |= {name: settings, f"{name}-resumed": [*settings, f"after={name}:2"]}
    runs |= {f"hard-zero{stage}": [*hard, f"zero_stage={stage}"] for stage in ((2, 3) if ranks == 1 else (3,))}
    if ranks == 1:
        runs["other-settings"] = [*words, "after=zero0-fp32:2", "learning_rate=0.5", "seed=7"]
    return runs


@pytest.fixture(scope="session")
def one(words: list[str], hard: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    run_all(1, folder, plans(1, words, hard))
    return folder


@pytest.fixture(scope="session")
def two(words: list[str], hard: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run_all(2, folder, plans(2, words, hard))
    return folder
