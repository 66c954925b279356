"""Embeddings of photos and texts by a model of BLIP-2's first stage, from Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, Blip2ForImageTextRetrieval

import instructkit as ik
from tests.evaluation.world import World

TEXTS = ["a red circle on a light background", "is there a triangle?", "yes"]


def photos(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("batch_size", [1, 32])
def test_similarities_are_those_of_transformers(world: World, tmp_path: Path, batch_size: int) -> None:
    paths, folder = photos(tmp_path), world.first_stage()
    found = ik.load_model(folder, device="cpu").embed(images=paths, texts=TEXTS, batch_size=batch_size)
    assert found.images is not None
    assert found.texts is not None
    torch.testing.assert_close(found.images.norm(dim=-1), torch.ones(found.images.shape[:2]))
    plain = Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder)([Image.open(path) for path in paths], return_tensors="pt")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for column, text in enumerate(TEXTS):
        rows = tokenizer([text] * len(paths), return_tensors="pt")
        with torch.no_grad():
            theirs = plain(**pixels, input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits_per_image
        torch.testing.assert_close(found.similarity[:, column], theirs[:, 0], rtol=0, atol=1e-3)


def test_one_photo_or_text_alone_in_memory_or_on_disk(world: World, tmp_path: Path) -> None:
    paths = photos(tmp_path)
    model = ik.load_model(world.first_stage(), device="cpu")
    every = model.embed(images=paths, texts=TEXTS)
    assert every.images is not None
    assert every.texts is not None
    for one in (paths[1], Image.open(paths[1]), paths[1].read_bytes(), np.asarray(Image.open(paths[1]))):
        alone = model.embed(images=one)
        assert alone.images is not None
        torch.testing.assert_close(alone.images, every.images[1:2])
    assert alone.texts is None
    text = model.embed(texts=TEXTS[2])
    assert text.texts is not None
    torch.testing.assert_close(text.texts, every.texts[2:])
    with pytest.raises(ik.UserError, match="embed both"):
        _ = text.similarity


def test_what_does_not_fit_is_one_line(world: World, tmp_path: Path) -> None:
    stage = ik.load_model(world.first_stage(), device="cpu")
    with pytest.raises(ik.UserError, match="nothing to embed"):
        stage.embed()
    with pytest.raises(ik.UserError, match="text 2 is blank"):
        stage.embed(texts=["a", " "])
    with pytest.raises(ik.UserError, match=r"gone\.jpg"):
        stage.embed(images=tmp_path / "gone.jpg")
    with pytest.raises(ik.UserError, match="no videos"):
        stage.embed(images="film.mp4")
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 32 tokens"):
        stage.embed(texts=["red " * 60, "red"])
    for call in (stage.ask, lambda *what: stage.rank(*what, ["yes", "no"]), stage.attention):
        with pytest.raises(ik.UserError, match="first stage, which has no LLM and answers nothing"):
            call(photos(tmp_path)[0], "What is it?")
    with pytest.raises(ik.UserError, match="embeds nothing; load a model of BLIP-2's first stage"):
        ik.load_model(world.model(), device="cpu").embed(texts="a")


def test_a_model_in_memory_is_evaluated(world: World, tmp_path: Path) -> None:
    world.benchmark("flickr30k_retrieval")
    model = ik.load_model(world.first_stage(), device="cpu")
    found = ik.evaluate(model, ["flickr30k_retrieval"], data=world.data, out=tmp_path)
    assert list(found.scores) == ["flickr30k_retrieval"]
    assert "tr_r1" in repr(found)
