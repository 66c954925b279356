"""BLIP-2's first-stage model: its masks, LAVIS's recorded numbers, transformers' own class, and what it is made of."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BertForMaskedLM,
    Blip2ForImageTextRetrieval,
)

from instructkit.config.settings import ModelConfig
from instructkit.errors import UserError
from instructkit.models.batches import DEC, Captions
from instructkit.models.blip2 import (
    PADDING,
    QUERY,
    TEXT,
    WRITTEN,
    Blip2Pretraining,
    Candidates,
    Pretraining,
    similarity,
    visible,
)
from instructkit.models.load.join import join
from instructkit.models.load.new_tokenizers import train_llm_tokenizer, train_qformer_tokenizer
from instructkit.models.load.pretraining import join_pretraining, load_pretraining
from instructkit.models.recompute import compile_layers, recompute_layers
from instructkit.models.save import save_pretraining
from tests import lavis_stage1
from tests.models.checkpoints import write_bert, write_blip2, write_encoder, write_instructblip
from tests.tiny import SENTENCES

TEXTS = ["a red circle on a light background", "is there a triangle?", "yes no red green blue triangle circle"]


def joined(seed: int = 0, **parts: Path | str) -> tuple[Blip2Pretraining, Captions]:
    settings = ModelConfig(**{name: str(place) for name, place in parts.items()})
    model, captions = join_pretraining(
        settings, torch.float32, lambda: train_qformer_tokenizer(SENTENCES, 110), seed=seed
    )
    return model.eval(), captions


def noise(model: Blip2Pretraining, count: int = 3, seed: int = 1) -> torch.Tensor:
    size = model.config.vision_config.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def own_pairs(batch: dict[str, torch.Tensor]):
    """ITM judges the pairs as they are."""
    index = torch.arange(len(batch["input_ids"]))
    return lambda embedded: Candidates(None, index, batch["input_ids"], batch["attention_mask"])


@pytest.fixture(scope="module")
def small() -> tuple[Blip2Pretraining, Captions]:
    return joined()


# --- masks


def test_the_masks_are_those_drawn():
    kinds = torch.tensor([QUERY, QUERY, TEXT, TEXT, TEXT, WRITTEN, WRITTEN, WRITTEN, PADDING])
    drawn = """
        xx...... .
        xx...... .
        ..xxx... .
        ..xxx... .
        ..xxx... .
        xx...x.. .
        xx...xx. .
        xx...xxx .
        ........ x"""
    expected = [[mark == "x" for mark in line if mark in "x."] for line in drawn.split("\n") if line]
    assert visible(kinds).tolist() == expected
    assert visible(torch.full((3,), QUERY)).all(), "queries and text of one kind: ITM"


@torch.no_grad()
def moved(model: Blip2Pretraining, batch: dict[str, torch.Tensor], changed: dict[str, torch.Tensor]) -> Pretraining:
    """Which of the outputs differ between two batches, True for those that do."""
    one, other = (model(candidates=own_pairs(batch), **{**batch, **each}) for each in ({}, changed))
    two = model(candidates=own_pairs({**batch, **changed}), **batch)

    def differs(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().amax(-1) > 1e-6

    return one._replace(
        images=differs(one.images, other.images),
        texts=differs(one.texts, other.texts),
        words=differs(one.words, other.words),
        matches=differs(one.matches, two.matches),
    )


def test_a_changed_token_moves_what_may_see_it_and_nothing_else(small):
    model, captions = small
    batch = {"pixel_values": noise(model), **captions.rows(TEXTS)}
    place = 3
    ids = batch["input_ids"].clone()
    ids[0, place] = ids[2, 1]
    assert ids[0, place] != batch["input_ids"][0, place]
    found = moved(model, batch, {"input_ids": ids})
    assert not found.images.any(), "ITC: queries see no text"
    assert found.texts.tolist() == [True, False, False], "ITC: a text sees all of itself, and no other pair"
    assert found.matches.tolist() == [True, False, False], "ITM: queries see the text"
    # ITG: logits number n tell token n + 1, from the tokens up to n.
    told = found.words[found.owners == 0].tolist()
    assert told == [False] * place + [True] * (len(told) - place)
    assert not found.words[found.owners != 0].any()


def test_a_changed_picture_moves_what_may_see_it_and_nothing_else(small):
    model, captions = small
    batch = {"pixel_values": noise(model), **captions.rows(TEXTS)}
    pixels = batch["pixel_values"].clone()
    pixels[1] = noise(model, 1, seed=2)[0]
    found = moved(model, batch, {"pixel_values": pixels})
    assert found.images.any(1).tolist() == [False, True, False]
    assert not found.texts.any(), "ITC: texts see no picture"
    assert found.words[found.owners == 1].all(), "ITG: every token sees the queries"
    assert not found.words[found.owners != 1].any()


def test_padding_and_other_pairs_change_nothing(small):
    model, captions = small
    rows = captions.rows(TEXTS)
    pixels = noise(model)
    with torch.no_grad():
        whole = model(candidates=own_pairs(rows), pixel_values=pixels, **rows)
        for number, text in enumerate(TEXTS):
            alone = captions.rows([text])
            one = model(candidates=own_pairs(alone), pixel_values=pixels[number : number + 1], **alone)
            torch.testing.assert_close(one.images[0], whole.images[number])
            torch.testing.assert_close(one.texts[0], whole.texts[number])
            torch.testing.assert_close(one.matches[0], whole.matches[number], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(one.words, whole.words[whole.owners == number], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("run", [recompute_layers, partial(compile_layers, backend="eager")])
def test_layers_that_are_run_otherwise_give_the_same(run):
    model, captions = joined()
    rows, pixels = captions.rows(TEXTS), noise(model)
    before = model(candidates=own_pairs(rows), pixel_values=pixels, **rows)
    run(model)
    after = model(candidates=own_pairs(rows), pixel_values=pixels, **rows)
    for name in ("images", "texts", "matches", "words"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name))


# --- LAVIS's numbers


@pytest.mark.parametrize("name", ["stage1", "stage1_image_id"])
def test_embeddings_and_logits_are_lavis(name):
    model, fixture = lavis_stage1.model(), lavis_stage1.recorded(name)
    batch = lavis_stage1.inputs(fixture)
    with torch.no_grad():
        found = model(candidates=lavis_stage1.recorded_candidates(fixture), **batch)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(found.images, fixture["image_feats"], **close)
    torch.testing.assert_close(found.texts, fixture["text_feat"], **close)
    torch.testing.assert_close(found.matches, fixture["itm_logits"], **close)
    torch.testing.assert_close(similarity(found.images, found.texts) / found.temperature, fixture["sim_i2t"], **close)
    labels = fixture["lm_labels"][:, 1:]
    assert found.targets.tolist() == labels[labels != -100].tolist()
    torch.testing.assert_close(found.words, fixture["lm_logits"][:, :-1][labels != -100], **close)


@torch.no_grad()
def test_similarities_and_matches_of_all_pairs_are_lavis():
    model, fixture = lavis_stage1.model(), lavis_stage1.recorded("retrieval")
    features = model.vision_model.post_layernorm(fixture["image"])
    ids, mask = fixture["input_ids"], fixture["attention_mask"]
    images, texts = model.embed_images(features), model.embed_texts(ids, mask)
    torch.testing.assert_close(images, fixture["image_feats"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(texts, fixture["text_embeds"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(similarity(images, texts), fixture["itc_sims"], atol=1e-4, rtol=1e-4)
    image, text = (each.flatten() for each in torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij"))
    matches = model.match(features, image, ids[text], mask[text]).view(6, 6)
    torch.testing.assert_close(matches, fixture["itm_logit_all_pairs"], atol=1e-4, rtol=1e-4)


# --- transformers' own class, and folders


def by_transformers(model: Blip2ForImageTextRetrieval, pixels: torch.Tensor, rows: dict[str, torch.Tensor]):
    with torch.no_grad():
        compared = model(pixel_values=pixels, **rows).logits_per_image
        judged = model(pixel_values=pixels, **rows, use_image_text_matching_head=True).logits_per_image
    return compared, judged[:, 1]


def compare(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def by_us(model: Blip2Pretraining, pixels: torch.Tensor, rows: dict[str, torch.Tensor]):
    features = model.encode_images(pixels)
    compared = similarity(model.embed_images(features), model.embed_texts(**rows))
    return compared, model.match(features, torch.arange(len(pixels)), **rows)


@pytest.mark.parametrize("part", ["nano", "bert", "blip2", "instructblip"])
def test_transformers_reads_the_folder_and_gives_the_same(part, tmp_path):
    written = {"bert": write_bert, "instructblip": write_instructblip, "blip2": lambda at: write_blip2(at, True)}
    model, captions = joined(**{"qformer": written[part](tmp_path / part)} if part != "nano" else {})
    model.temperature.data.fill_(0.05)
    save_pretraining(model, captions, tmp_path / "model")
    plain, info = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    assert plain.config.image_token_index is None
    assert json.loads((tmp_path / "model" / "config.json").read_text())["architectures"] == [type(plain).__name__]
    pixels = noise(model)
    rows = captions.rows([" ".join(TEXTS), " ".join(TEXTS[::-1]), TEXTS[0]])
    queries = model.config.num_query_tokens
    assert rows["input_ids"].shape[1] > queries or part == "bert", "a text that is longer than the queries"
    compare(by_us(model, pixels, rows), by_transformers(plain.eval(), pixels, rows))
    again, read = load_pretraining(str(tmp_path / "model"))
    assert again.fresh == frozenset()
    assert again.temperature.item() == pytest.approx(0.05)
    same = again.state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in model.state_dict().items())
    assert read.encode(TEXTS) == captions.encode(TEXTS)
    assert again.config.dec_token_id == model.config.dec_token_id
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.convert_tokens_to_ids(DEC) == model.config.dec_token_id == tokenizer.bos_token_id
    assert AutoImageProcessor.from_pretrained(tmp_path / "model").size["height"] == pixels.shape[-1]


def test_a_model_with_another_encoder_comes_back(tmp_path):
    model, captions = joined(vision=write_encoder(tmp_path / "vision", "convnext"))
    save_pretraining(model, captions, tmp_path / "model")
    again, read = load_pretraining(str(tmp_path / "model"))
    pixels, rows = noise(model), captions.rows(TEXTS)
    compare(by_us(model, pixels, rows), by_us(again.eval(), pixels, read.rows(TEXTS)))


@pytest.mark.parametrize("family", [None, "convnext"])
def test_the_encoder_of_a_first_stage_is_taken_by_another_model(family, tmp_path):
    parts = {} if family is None else {"vision": write_encoder(tmp_path / "vision", family)}
    first, captions = joined(**parts)
    save_pretraining(first, captions, tmp_path / "first")
    pixels = noise(first)
    model, _ = join(
        ModelConfig(vision=str(tmp_path / "first"), qformer=str(tmp_path / "first")),
        torch.float32,
        lambda: (train_llm_tokenizer(SENTENCES, 300), train_qformer_tokenizer(SENTENCES, 110)),
    )
    with torch.no_grad():
        torch.testing.assert_close(model.eval().encode_images(pixels), first.encode_images(pixels))
    assert torch.equal(model.query_tokens, first.query_tokens)
    other, _ = joined(vision=tmp_path / "first", seed=1)
    with torch.no_grad():
        torch.testing.assert_close(other.encode_images(pixels), first.encode_images(pixels))


def test_a_model_that_transformers_wrote_lacks_what_its_class_lacks(tmp_path):
    model, captions = load_pretraining(str(write_blip2(tmp_path / "theirs", retrieval=True)))
    assert {name.partition(".")[0] for name in model.fresh} == {"itg_head", "temperature"}
    assert model.temperature.item() == pytest.approx(0.07)
    assert model.config.image_token_index is None
    plain = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "theirs").eval()
    plain.config.image_token_index = None
    rows, pixels = captions.rows(TEXTS), noise(model)
    compare(by_us(model.eval(), pixels, rows), by_transformers(plain, pixels, rows))


def test_what_is_no_first_stage_is_said(tmp_path):
    with pytest.raises(UserError, match="blip-2 whose Q-Former reads no text, no model of BLIP-2's first stage"):
        load_pretraining(str(write_blip2(tmp_path / "generator")))
    with pytest.raises(UserError, match="a instructblip, no model"):
        load_pretraining(str(write_instructblip(tmp_path / "instructblip")))
    model, captions = joined()
    save_pretraining(model, captions, tmp_path / "torn")
    (tmp_path / "torn" / "stage1.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"stage1\.safetensors: cannot be read"):
        load_pretraining(str(tmp_path / "torn"))


# --- what it starts from


def test_bert_gives_words_both_feed_forwards_and_the_head_that_writes(tmp_path):
    folder = write_bert(tmp_path / "bert")
    model, captions = joined(qformer=folder)
    bert, own = BertForMaskedLM.from_pretrained(folder).state_dict(), model.state_dict()
    words = len(bert["bert.embeddings.word_embeddings.weight"])
    assert model.config.dec_token_id == words, "[DEC] is a new word"
    assert torch.equal(own["embeddings.word_embeddings.weight"][:words], bert["bert.embeddings.word_embeddings.weight"])
    assert len(own["embeddings.word_embeddings.weight"]) == len(own["itg_head.bias"]) == words + 1
    assert torch.equal(own["itg_head.bias"][:words], bert["cls.predictions.bias"])
    dense = "transform.dense.weight"
    assert torch.equal(own[f"itg_head.{dense}"], bert[f"cls.predictions.{dense}"])
    for side in ("intermediate", "intermediate_query"):
        theirs = bert["bert.encoder.layer.1.intermediate.dense.weight"]
        assert torch.equal(own[f"qformer.encoder.layer.1.{side}.dense.weight"], theirs)
    assert model.config.num_query_tokens == 32
    assert not any("crossattention" not in name for name in model.fresh if name.startswith("qformer."))
    assert {"query_tokens", "temperature", "itm_head.weight", "vision_projection.weight"} < model.fresh
    assert not any(name.startswith("itg_head.") for name in model.fresh)
    assert captions.encode(["a [DEC] b"]) != captions.encode(["a"])
    assert model.config.dec_token_id not in captions.encode(["a [DEC] b"])[0][0], "a text is text"


def test_a_first_stage_goes_on_under_another_encoder(tmp_path):
    model, captions = joined()
    model.temperature.data.fill_(0.05)
    save_pretraining(model, captions, tmp_path / "model")
    other, _ = joined(seed=1, qformer=tmp_path / "model", vision=write_encoder(tmp_path / "vision", "vit"))
    kept = load_file(tmp_path / "model" / "stage1.safetensors")
    own = other.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in kept.items())
    assert torch.equal(other.query_tokens, model.query_tokens)
    assert torch.equal(other.itm_head.weight, model.itm_head.weight)
    assert all(".crossattention.attention." in name for name in other.fresh if not name.startswith("vision_model."))


def test_random_weights_follow_from_the_seed():
    states = [joined(seed)[0].state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["query_tokens"], states[2]["query_tokens"])
    assert states[0]["query_tokens"].std() > 0.01, "zeros would all learn the same"


def test_a_long_caption_is_cut_at_its_end_and_that_is_told():
    captions = Captions(train_qformer_tokenizer(SENTENCES, 110), limit=6)
    (short, long), cut = captions.encode(["a", " ".join(TEXTS)])
    assert cut == [False, True]
    whole = Captions(captions.tokenizer, limit=100).encode([" ".join(TEXTS)])[0][0]
    assert long == [*whole[:5], whole[-1]]
    assert len(short) == 3
