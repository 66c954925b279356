"""Learning to look: the loss is the heads' cross entropy, and a training that was stopped goes on in the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from instructkit.config.settings import ModelConfig, TrainingConfig
from instructkit.models.load.mini import write_bert, write_encoder
from instructkit.models.load.pretraining import join_pretraining, load_pretraining
from instructkit.training import looks
from instructkit.training.looks import PICTURES, Looking, batch_of, train_looks
from instructkit.world.draw import SIDE
from instructkit.world.looks import VALUES_OF
from tests.tiny import SENTENCES

STEPS = 4


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("parts")
    write_encoder(folder / "encoder", SIDE)
    write_bert(folder / "bert", SENTENCES)
    return ModelConfig(vision=str(folder / "encoder"), qformer=str(folder / "bert"), queries=3)


def unused() -> PreTrainedTokenizerBase:
    raise AssertionError("the Q-Former has a tokeniser")


def config(steps: int = STEPS) -> TrainingConfig:
    return TrainingConfig(max_steps=steps, optimizer="muon", learning_rate=3e-3, warmup_steps=1)


def test_the_loss_is_the_sum_of_the_facts_mean_cross_entropies(settings: ModelConfig) -> None:
    model, captions = join_pretraining(settings, torch.float32, unused, 48)
    looking = Looking(model.eval())
    batch = batch_of(captions, seed=0, step=0)
    assert batch.pixels.shape == (PICTURES, 3, SIDE, SIDE)
    with torch.no_grad():
        loss, right = looking(batch)
        features = model.encode_images(batch.pixels)
        expected = 0.0
        for fact, values in VALUES_OF.items():
            costs, good = [], 0
            for row, true in enumerate(batch.facts[fact].tolist()):
                if true < 0:
                    continue
                words = batch.attention_mask[row].bool()
                image = features[batch.image_index[row]][None]
                read = model.look(image, torch.tensor([0]), batch.input_ids[row, words][None], words[words][None])
                told = looking.heads[fact](read.flatten())
                assert len(told) == len(values)
                costs.append(-told.log_softmax(0)[true].item())
                good += int(told.argmax()) == true
            expected += sum(costs) / len(costs)
            assert right[fact] == (good, len(costs))
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_one_that_was_stopped_goes_on_in_the_same_way(
    settings: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "KEEP_EVERY", 2)

    def train(folder: Path) -> None:
        train_looks(folder, settings, config(), frozen=False, seed=0, say=print)

    train(tmp_path / "whole")
    made = batch_of

    def stop(captions: Any, seed: int, step: int) -> looks.Batch:
        if step == STEPS - 1:
            raise KeyboardInterrupt
        return made(captions, seed, step)

    monkeypatch.setattr(looks, "batch_of", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped")
    steps: list[int] = []

    def count(captions: Any, seed: int, step: int) -> looks.Batch:
        steps.append(step)
        return made(captions, seed, step)

    monkeypatch.setattr(looks, "batch_of", count)
    train(tmp_path / "stopped")
    assert steps == [2, 3]
    train(tmp_path / "stopped")
    assert steps == [2, 3], "what is there is left as it is"
    whole, stopped = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "stopped"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, stopped[name]), name
    model, _ = load_pretraining(str(tmp_path / "whole" / "model"))
    assert model.query_tokens.shape[1] == 3


def test_a_frozen_encoder_stays_as_it_is(settings: ModelConfig, tmp_path: Path) -> None:
    train_looks(tmp_path, settings, config(2), frozen=True, seed=0, say=print)
    before, _ = join_pretraining(settings, torch.float32, unused, 48)
    after, _ = load_pretraining(str(tmp_path / "model"))
    moved = {
        name
        for name, weight in after.named_parameters()
        if not torch.equal(weight, dict(before.named_parameters())[name])
    }
    assert not {name for name in moved if name.startswith("vision_model.") and ".post_layernorm." not in f".{name}"}
    assert "query_tokens" in moved
