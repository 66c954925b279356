"""A run asks for pictures before it loads a model, and trains again where one was replaced."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from PIL import Image

from instructkit.config.settings import DataConfig, EvaluationConfig, RunConfig
from instructkit.conversion.convert import convert
from instructkit.errors import UserError
from instructkit.reports import once
from instructkit.runs.log import RunLog
from instructkit.runs.run import Run
from instructkit.training.datasets import media_digests
from tests.miniatures import write_release
from tests.training.runs import recipe


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, list[Any]]:
    """The recipe, and the identities of the runs that would have been trained."""
    module, identities = recipe(), []
    report = once.write_report

    def write(config: RunConfig, folder: Path, identity: Any) -> Any:
        identities.append(identity)
        return report(config, folder, identity)

    monkeypatch.setattr(module, "train", lambda run: None)
    monkeypatch.setattr(module, "evaluate_run", lambda config, folder, say: None)
    monkeypatch.setattr(once, "write_report", write)
    monkeypatch.setattr(once, "last_lines", lambda folder: [])
    return module, identities


def config_of(tmp_path: Path) -> RunConfig:
    return RunConfig(
        output=str(tmp_path / "run"),
        data=DataConfig(root=str(tmp_path / "data"), train=["vqav2"]),
        evaluation=EvaluationConfig(),
    )


def instruct(recipe: ModuleType, config: RunConfig) -> None:
    folder = Path(config.output)
    recipe.instruct(Run(config, folder, 0, 1, RunLog(folder, {}, None)))


def test_a_run_without_pictures_ends_before_the_model_is_made(
    tmp_path: Path, trained: tuple[ModuleType, list[Any]]
) -> None:
    write_release("vqav2", tmp_path / "raw")
    convert("vqav2", tmp_path / "raw", tmp_path / "data", split="train")
    (tmp_path / "raw" / "train2014").rename(tmp_path / "elsewhere")
    recipe, identities = trained
    with pytest.raises(UserError, match=r"vqav2/train: none of .* is there: looked for .*--images FOLDER"):
        instruct(recipe, config_of(tmp_path))
    assert identities == []


def test_the_pictures_are_part_of_what_a_run_is(tmp_path: Path, trained: tuple[ModuleType, list[Any]]) -> None:
    write_release("vqav2", tmp_path / "raw")
    convert("vqav2", tmp_path / "raw", tmp_path / "data", split="train")
    recipe, identities = trained
    run = tmp_path / "run"
    (run / "report").mkdir(parents=True)
    (run / "log.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    for _ in range(2):
        instruct(recipe, config_of(tmp_path))
    assert len(identities) == 1, "nothing had changed"
    picture = next((tmp_path / "raw" / "train2014").iterdir())
    Image.new("RGB", (40, 40), "red").save(picture)
    instruct(recipe, config_of(tmp_path))
    assert len(identities) == 2
    first, second = identities
    assert {name for name in first if first[name] != second[name]} == {"media"}


def test_splits_that_only_give_candidates_need_no_videos(tmp_path: Path) -> None:
    write_release("vqav2", tmp_path / "raw")
    convert("vqav2", tmp_path / "raw", tmp_path / "data", split="train")
    write_release("msvd_qa", tmp_path / "msvd")
    for split in ("train", "val", "test"):
        convert("msvd_qa", tmp_path / "msvd", tmp_path / "data", split=split)
    evaluation = EvaluationConfig(benchmarks=["msvd_qa"])
    config = msgspec.structs.replace(config_of(tmp_path), evaluation=evaluation)
    assert set(media_digests(config, print)) == {"vqav2/train", "msvd_qa/test"}
