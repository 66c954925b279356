"""The feature cache: the same loss with it as without, no second pass over an image, no stale or torn features."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from instructkit.config.read import load_config
from instructkit.config.settings import TowersConfig
from instructkit.conversion import convert
from instructkit.data.dataset import load_examples
from instructkit.errors import UserError
from instructkit.models.batches import Picture
from instructkit.models.towers import prepare_towers
from instructkit.sources.easy_vqa import default_raw
from instructkit.training.data import Part, TrainingData
from instructkit.training.features import FeatureCache, encoder_digest, keep, open_cache
from tests.tiny import tiny_model

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "configs" / "easy_vqa.yaml"
SHAPE = (5, 24)


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """The questions of easy-VQA's first 12 pictures."""
    folder = tmp_path_factory.mktemp("easy")
    raw = default_raw()
    images = folder / "raw" / "train" / "images"
    images.mkdir(parents=True)
    shutil.copy(raw / "answers.txt", folder / "raw")
    questions = [row for row in json.loads((raw / "train" / "questions.json").read_text()) if row[2] < 12]
    (folder / "raw" / "train" / "questions.json").write_text(json.dumps(questions))
    for number in range(12):
        shutil.copy(raw / "train" / "images" / f"{number}.png", images)
    done = convert.convert("easy_vqa", folder / "raw", folder / "data", split="train")
    examples = load_examples(done.folder)
    return Part("easy_vqa", examples, "vqa", Path(examples.manifest.media_root))


def trained_model():
    model, texts = tiny_model()
    prepare_towers(model, TowersConfig())
    return model, texts


def data(part, texts, cache=None):
    return TrainingData([part], texts, 16, groups=6, group_size=2, cache=cache)


def learned(model, batch):
    model.zero_grad()
    answer = model(**batch.inputs)
    answer.total.backward()
    return answer, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_loss_and_gradients_are_those_without_a_cache_and_images_are_encoded_once(part, tmp_path):
    model, texts = trained_model()
    cache = FeatureCache(tmp_path, encoder_digest(model, "fp32"), SHAPE)
    plain, cached = data(part, texts), data(part, texts, cache)
    encoded = []
    model.vision_model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: encoded.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    seen = set()
    epoch = -(-plain.mixture.groups_per_epoch // 6)
    for index in range(epoch + 1):
        answer, gradients = learned(model, plain[index])
        encoded.clear()
        batch = cached[index]
        again, others = learned(model, batch)
        keep(batch.unkept, again.patches)
        assert sum(encoded) == len(batch.unkept)
        assert not seen & set(batch.unkept)
        seen |= set(batch.unkept)
        torch.testing.assert_close(again.total, answer.total, atol=1e-4, rtol=1e-5)
        assert gradients.keys() == others.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, atol=1e-4, rtol=1e-3)
    assert len(seen) == 12
    assert encoded == []
    assert sorted(seen) == sorted(tmp_path.rglob("*.safetensors"))


def test_another_picture_encoder_precision_or_frame_has_other_features(tmp_path):
    model, _ = trained_model()
    picture = tmp_path / "a.png"
    picture.write_bytes(b"one")
    digest = encoder_digest(model, "fp32")
    cache = FeatureCache(tmp_path, digest, SHAPE)
    names = {cache.file(Picture(picture)), cache.file(Picture(picture, 0, 4)), cache.file(Picture(picture, 1, 4))}
    os.utime(picture, ns=(1, 1))
    names.add(cache.file(Picture(picture)))
    os.truncate(picture, 2)
    os.utime(picture, ns=(1, 1))
    names.add(cache.file(Picture(picture)))
    with torch.no_grad():
        model.vision_model.post_layernorm.weight.add_(1)
        assert encoder_digest(model, "fp32") == digest
        model.vision_model.encoder.layers[0].mlp.fc1.weight[0, 0] += 1
    others = {encoder_digest(model, "fp32"), encoder_digest(model, "bf16"), digest}
    assert len(others) == 3
    names |= {FeatureCache(tmp_path, other, SHAPE).file(Picture(picture)) for other in others}
    assert len(names) == 7


def write_often(file: Path, value: float) -> None:
    for _ in range(50):
        keep([file], torch.full((1, *SHAPE), value))


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"one")
    cache = FeatureCache(tmp_path / "cache", "digest", SHAPE)
    file = cache.file(Picture(picture))
    with ProcessPoolExecutor(2) as pool:
        writers = [pool.submit(write_often, file, value) for value in (1.0, 2.0)]
        while not all(writer.done() for writer in writers):
            found = cache.find([Picture(picture)])
            if not found.missing:
                assert found.patches.unique().tolist() in ([1.0], [2.0])
    for writer in writers:
        writer.result()
    assert list((tmp_path / "cache").rglob("*.*")) == [file]


def test_damaged_features_are_named(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"one")
    cache = FeatureCache(tmp_path / "cache", "digest", SHAPE)
    file = cache.file(Picture(picture))
    keep([file], torch.zeros(1, *SHAPE))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{file}: damaged"):
        cache.find([Picture(picture)])
    keep([file], torch.zeros(1, 3, 24))
    with pytest.raises(UserError, match="not \\(5, 24\\)"):
        cache.find([Picture(picture)])


def test_no_cache_of_features_that_change():
    model, _ = tiny_model()
    assert open_cache(load_config(RECIPE), model) is None
    for setting in ("data.augment=true", "towers.vision=full"):
        with pytest.raises(UserError, match=f"throughput.feature_cache=kept cannot be used with {setting}"):
            load_config(
                RECIPE, ["throughput.feature_cache=kept", "data.augment=false", "towers.vision=frozen", setting]
            )
    config = load_config(RECIPE, ["feature_cache=kept", "data.augment=false", "towers.vision=frozen"])
    cache = open_cache(config, model)
    assert cache is not None
    assert cache.shape == SHAPE
    assert model.encode_patches(torch.zeros(1, 3, 16, 16)).shape[1:] == SHAPE


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_hand_over_cached_features(part, tmp_path, workers):
    model, texts = trained_model()
    cache = FeatureCache(tmp_path, encoder_digest(model, "fp32"), SHAPE)
    cached = data(part, texts, cache)
    for index in range(4):
        batch = cached[index]
        keep(batch.unkept, model(**batch.inputs).patches)
    plain = data(part, texts)
    for index, batch in enumerate(cached.loader(0, 4, workers)):
        assert len(batch.inputs["pixel_values"]) == 0
        torch.testing.assert_close(model(**batch.inputs).rows, model(**plain[index].inputs).rows, atol=1e-4, rtol=1e-5)


def test_a_signal_to_all_processes_leaves_workers_at_their_batches(part):
    _, texts = trained_model()
    batches = data(part, texts).loader(0, 12, workers=2)  # more than are made ahead of time
    made = [next(batches)]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGINT):
        for worker in workers:
            os.kill(worker.pid, number)
    made += batches
    plain = data(part, texts)
    assert [batch.examples for batch in made] == [plain[index].examples for index in range(12)]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
