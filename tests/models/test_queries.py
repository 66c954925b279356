"""`model.queries`: as many query tokens as asked for, in every model that draws its own, and an error in others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from instructkit.config.settings import ModelConfig, RunConfig
from instructkit.errors import UserError
from instructkit.models.load.join import join
from instructkit.models.load.new_tokenizers import train_llm_tokenizer, train_qformer_tokenizer
from instructkit.models.load.pretraining import join_pretraining
from instructkit.models.save import load_model
from instructkit.training.model import prepare_model
from instructkit.training.plan.shapes import model_on_shapes, shape_of
from tests.models.checkpoints import write_bert, write_instructblip, write_llm, write_vision
from tests.tiny import SENTENCES
from tests.training.mini import Runs, write_releases


def qformer_words():
    return train_qformer_tokenizer(SENTENCES, 110)


def parts(kind: str, folder: Path) -> ModelConfig:
    qformer = str(write_bert(folder / "bert")) if kind == "bert" else None
    return ModelConfig(vision=str(write_vision(folder / "vit", "vit")), qformer=qformer, queries=3)


@pytest.mark.parametrize("kind", ["nano", "bert"])
def test_a_first_stage_has_as_many_queries_as_asked_for(kind: str, tmp_path: Path) -> None:
    model, _ = join_pretraining(parts(kind, tmp_path), torch.float32, qformer_words)
    assert model.query_tokens.shape[1] == model.config.num_query_tokens == 3
    assert model.embed_images(model.encode_images(torch.zeros(1, 3, *[size_of(model)] * 2))).shape[1] == 3


@pytest.mark.parametrize("kind", ["nano", "bert"])
def test_an_instructblip_has_as_many_queries_as_asked_for(kind: str, tmp_path: Path) -> None:
    settings = parts(kind, tmp_path)
    model, _ = join(settings, torch.float32, lambda: (train_llm_tokenizer(SENTENCES, 300), qformer_words()))
    assert model.query_tokens.shape[1] == model.config.num_query_tokens == 3
    assert shape_of(settings).num_query_tokens == 3


@pytest.mark.parametrize("part", ["name", "qformer"])
def test_a_checkpoint_keeps_its_own(part: str, tmp_path: Path) -> None:
    """Not another number in silence."""
    folder = str(write_instructblip(tmp_path / "whole"))
    config = RunConfig(model=ModelConfig(**{part: folder}, queries=3))
    with pytest.raises(UserError, match=r"model\.queries=3: .* queries of its own"):
        prepare_model(config, [], tmp_path, lambda line: None)
    with pytest.raises(UserError, match=r"model\.queries=3: .* queries of its own"):
        model_on_shapes(config)


def test_what_a_run_saved_has_them_too(tmp_path: Path) -> None:
    """The Q-Former alone is trained; folders of parts are read as a whole and as a part of another model."""
    words = [
        *write_releases(tmp_path),
        f"model.vision={write_vision(tmp_path / 'vit', 'vit')}",
        f"model.llm={write_llm(tmp_path / 'llm')}",
        *[
            "model.queries=3",
            "vocabulary=120",
            "batch_size=4",
            "max_steps=1",
            "towers.vision=frozen",
            "towers.llm=frozen",
        ],
    ]
    folder = Runs(tmp_path, {"run": (1, words)}) / "run" / "model"
    model, _ = load_model(str(folder))
    assert model.query_tokens.shape[1] == 3
    settings = ModelConfig(vision=str(folder), qformer=str(folder), llm=str(tmp_path / "llm"))
    again, _ = join(settings, torch.float32, lambda: (train_llm_tokenizer(SENTENCES, 300), qformer_words()))
    torch.testing.assert_close(again.query_tokens, model.query_tokens)


def size_of(model) -> int:
    return int(model.config.vision_config.image_size)
