"""BLIP's mixture of encoder and decoder: LAVIS's numbers, a slow reference, transformers' classes, its folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BlipConfig,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
    DeiTConfig,
    DeiTModel,
    ViTConfig,
    ViTModel,
)

from instructkit.errors import UserError
from instructkit.models.batches import Captions
from instructkit.models.blip import SHARED, Blip
from instructkit.models.load.blip import join_blip, load_blip
from instructkit.models.load.blip_tasks import TASKS
from instructkit.models.load.new_tokenizers import train_qformer_tokenizer
from instructkit.models.resolution import set_image_size
from instructkit.models.save import as_transformers, export_blip, save_blip
from tests import lavis_med
from tests.lavis_stage1 import recorded
from tests.models.checkpoints import write_bert
from tests.plain_med import PlainMed
from tests.tiny import SENTENCES

TEXTS = ["a red circle on a light background", "is there a triangle?", "yes no red green blue triangle circle"]
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}


def joined(sharing: str = "all_but_self_attention", **parts: Path) -> tuple[Blip, Captions]:
    """A small model whose weights are all random: biases and norms, too."""
    names = {part: str(parts[part]) if part in parts else None for part in ("vision", "text")}
    model, captions = join_blip(
        names["vision"], names["text"], sharing, lambda: train_qformer_tokenizer(SENTENCES, 110)
    )
    if not parts:
        noise = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.05 * torch.randn(weight.shape, generator=noise)
            model.temperature.fill_(0.05)
    return model.eval(), captions


def pictures(model: Blip, count: int = 3) -> torch.Tensor:
    size = model.config.vision_config.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=SHARED)
def small(request) -> tuple[Blip, Captions]:
    return joined(request.param)


@pytest.fixture(scope="module")
def usual() -> tuple[Blip, Captions]:
    return joined()


@torch.no_grad()
def test_embeddings_and_logits_are_lavis():
    model, found = lavis_med.model(), recorded("med_pretrain")
    features, ids, mask = found["image_embeds"], found["input_ids"], found["attention_mask"]
    own = torch.arange(len(ids))
    close = {"atol": 1e-4, "rtol": 1e-4}
    images, texts = model.embed_images(features)[:, 0], model.embed_texts(ids, mask)
    alone = recorded("med_weights")
    projected = found["text_embeds"][:, 0] @ alone["text_proj.weight"].T + alone["text_proj.bias"]
    torch.testing.assert_close(texts, projected / projected.norm(dim=1, keepdim=True), **close)
    projected = features[:, 0] @ alone["vision_proj.weight"].T + alone["vision_proj.bias"]
    torch.testing.assert_close(images, projected / projected.norm(dim=1, keepdim=True), **close)
    valid = mask.bool()
    states = model.read_with(features, own, ids, mask)
    torch.testing.assert_close(states[valid], found["encoder_out"][valid], **close)
    image = torch.cat([own, found["neg_image_idx"], own])
    text = torch.cat([own, own, found["neg_text_idx"]])
    judged = model.judge(features, image, ids[text], mask[text])
    torch.testing.assert_close(judged, found["itm_logits"], **close)
    assert torch.equal(model.match(features, image, ids[text], mask[text]), judged[:, 1])
    torch.testing.assert_close(model.tell(features, own, ids, mask)[valid], found["lm_logits"][valid], **close)


@torch.no_grad()
def test_all_ways_of_sharing_are_the_slow_reference(small):
    model, captions = small
    plain, rows = PlainMed.of(model), captions.rows(TEXTS)
    features = model.encode_images(pictures(model, 2))
    index = torch.tensor([1, 0, 1])
    images, texts = model.embed_images(features), model.embed_texts(**rows)
    judged, told = model.judge(features, index, **rows), model.tell(features, index, **rows)
    states = model.read_with(features, index, **rows)
    answered = model.tell(states, torch.tensor([2, 0]), *(part[:2] for part in rows.values()), rows["attention_mask"])
    torch.testing.assert_close(images[:, 0], torch.stack([plain.embed_image(each) for each in features]), **CLOSE)
    lists = captions.encode(TEXTS)[0]
    for row, ids in enumerate(lists):
        torch.testing.assert_close(texts[row], plain.embed_text(ids), **CLOSE)
        torch.testing.assert_close(judged[row], plain.judge(features[index[row]], ids), **CLOSE)
        expected = plain.tell(features[index[row]], ids)
        torch.testing.assert_close(told[row, : len(ids)], expected, **CLOSE)
        likely = sum(expected.log_softmax(1)[place, token] for place, token in enumerate(ids[1:]))
        scored = model.score(features, index, **rows)[row]
        torch.testing.assert_close(scored, likely, **CLOSE)
        behind = sum(expected.log_softmax(1)[place, token] for place, token in enumerate(ids[1:]) if place >= 2)
        torch.testing.assert_close(model.score(features, index, **rows, prompt=3)[row], behind, **CLOSE)
    for row, read in ((0, 2), (1, 0)):
        question = plain.read_with(features[index[read]], lists[read])
        torch.testing.assert_close(answered[row, : len(lists[row])], plain.tell(question, lists[row]), **CLOSE)


def test_what_is_shared_has_the_published_sizes():
    text = BlipTextConfig(num_attention_heads=12)
    config = BlipConfig(text_config=text, vision_config=BlipVisionConfig(image_size=224))
    config.enc_token_id = 30523
    millions = {}
    for sharing in SHARED:
        config.sharing = sharing
        with torch.device("meta"):
            model = Blip(config)
        millions[sharing] = sum(weight.numel() for weight in model.parameters()) / 1e6
    # Table 3. The heads, some 1.3M, are shared by none of them.
    published = {"all": 224, "all_but_cross_attention": 252, "all_but_self_attention": 252, "none": 361}
    assert millions == {sharing: pytest.approx(size, rel=0.01) for sharing, size in published.items()}


def test_a_changed_picture_or_token_moves_what_may_see_it(usual):
    model, captions = usual
    rows, features = captions.rows(TEXTS[:1] * 2), model.encode_images(pictures(model, 2))
    ids = rows["input_ids"].clone()
    ids[1, 3] = captions.rows(TEXTS)["input_ids"][2, 1]
    own = torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        told = model.tell(features, own, ids, rows["attention_mask"])
        judged = model.judge(features, own, ids, rows["attention_mask"])
        other = model.tell(features, own + torch.tensor([0, 1]), **rows)
        texts = model.embed_texts(ids, rows["attention_mask"])
    moved = (told[0] - told[1]).abs().amax(1) > 1e-6
    assert moved.tolist() == [False] * 3 + [True] * (len(moved) - 3), "the token and those behind it"
    assert (judged[0] - judged[1]).abs().max() > 1e-6
    assert (texts[0] - texts[1]).abs().max() > 1e-6
    assert ((other[0] - other[1]).abs().amax(1) > 1e-6).all(), "every token sees the picture"


# --- transformers' classes, and folders


def compare_with_transformers(model: Blip, captions: Captions, parts: dict[str, Any]) -> None:
    rows, pixels = captions.rows(TEXTS), pictures(model)
    ids, mask, own = rows["input_ids"], rows["attention_mask"], torch.arange(len(TEXTS))
    read, write = ids.clone(), ids.clone()
    read[:, 0], write[:, 0] = model.config.enc_token_id, model.config.text_config.bos_token_id
    valid, options = mask.bool(), {"num_beams": 3, "max_new_tokens": 6}
    with torch.no_grad():
        features = model.encode_images(pixels)
        theirs = parts["captioning"](pixel_values=pixels, input_ids=write, attention_mask=mask).logits
        torch.testing.assert_close(model.tell(features, own, **rows)[valid], theirs[valid], **CLOSE)
        prompt = torch.cat([ids[:, :3], ids.new_full((3, 1), captions.tokenizer.sep_token_id)], dim=1)
        written = parts["captioning"].generate(pixel_values=pixels, input_ids=prompt.clone(), **options)
        assert model.generate(features, ids[:, :3], **options).tolist() == written.tolist()
        judged = parts["retrieval"](pixel_values=pixels, input_ids=read, attention_mask=mask).itm_score
        torch.testing.assert_close(model.judge(features, own, **rows), judged, **CLOSE)
        alike = parts["retrieval"](pixel_values=pixels, **rows, use_itm_head=False).itm_score
        torch.testing.assert_close(model.embed_images(features)[:, 0] @ model.embed_texts(**rows).T, alike, **CLOSE)
        if "vqa" in parts:
            states = model.read_with(features, own, **rows)
            # transformers' generation reads the padding of questions: here none is padded.
            for row in range(len(TEXTS)):
                length = int(mask[row].sum())
                one = {"input_ids": read[row : row + 1, :length], "pixel_values": pixels[row : row + 1]}
                answered = parts["vqa"].generate(**one, **options)
                assert model.generate(states[row : row + 1, :length], **options).tolist() == answered.tolist()


def test_transformers_classes_of_each_part_say_the_same(small):
    model, captions = small
    compare_with_transformers(model, captions, {task: as_transformers(model, task) for task in TASKS})


def test_a_folder_holds_shared_tensors_once_and_comes_back(small, tmp_path):
    model, captions = small
    save_blip(model, captions, tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert stored.keys() == dict(model.named_parameters()).keys()
    again, read = load_blip(str(tmp_path / "model"))
    assert again.fresh == frozenset()
    assert again.config.sharing == model.config.sharing
    same = again.state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in model.state_dict().items())
    assert len(list(again.parameters())) == len(stored)
    assert read.encode(TEXTS) == captions.encode(TEXTS)
    marks = (model.config.text_config.bos_token_id, model.config.enc_token_id)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").convert_tokens_to_ids(["[DEC]", "[ENC]"]) == list(marks)
    half, _ = load_blip(str(tmp_path / "model"), dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


def test_transformers_opens_what_is_exported(usual, tmp_path):
    model, captions = usual
    save_blip(model, captions, tmp_path / "model")
    opened = {}
    for task, kind in TASKS.items():
        line = export_blip(str(tmp_path / "model"), tmp_path / task, task)
        assert kind.__name__ in line
        opened[task], info = kind.from_pretrained(tmp_path / task, output_loading_info=True)
        assert not any(info[f"{what}_keys"] for what in ("missing", "unexpected", "mismatched"))
        opened[task].eval()
    compare_with_transformers(model, captions, opened)
    processor = BlipProcessor.from_pretrained(tmp_path / "captioning")
    assert processor.image_processor.size["height"] == model.config.vision_config.image_size
    with pytest.raises(UserError, match="there are captioning, retrieval, vqa"):
        export_blip(str(tmp_path / "model"), tmp_path / "other", "dialog")
    with pytest.raises(UserError, match="is there already"):
        export_blip(str(tmp_path / "model"), tmp_path / "vqa", "vqa")


def test_towers_of_other_widths_are_exported_but_for_questions(tmp_path):
    model, captions = joined(text=write_bert(tmp_path / "bert"))
    widths = {model.config.vision_config.hidden_size, model.config.text_config.hidden_size}
    assert len(widths) == 2
    save_blip(model, captions, tmp_path / "model")
    compare_with_transformers(model, captions, {task: as_transformers(model, task) for task in TASKS if task != "vqa"})
    with pytest.raises(UserError, match="must be equal"):
        export_blip(str(tmp_path / "model"), tmp_path / "vqa", "vqa")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda state: state.pop("itm_head.bias"), "lacks itm_head.bias"),
        (lambda state: state.update(more=torch.zeros(1)), "holds more"),
        (lambda state: state.update({"itm_head.bias": torch.zeros(3)}), r"holds itm_head.bias of shape \(3,\)"),
    ],
)
def test_weights_that_do_not_fit_are_said(harm, said, usual, tmp_path):
    save_blip(*usual, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    harm(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"{said}.*, which does not fit"):
        load_blip(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="no BLIP can be loaded from there"):
        load_blip(str(tmp_path))


def test_what_is_no_mixture_is_said(tmp_path):
    with pytest.raises(UserError, match="a bert, no mixture of encoder and decoder"):
        load_blip(str(write_bert(tmp_path / "bert")))


# --- what it starts from


def write_vit(folder: Path, kind: str) -> Path:
    config, model = {"vit": (ViTConfig, ViTModel), "deit": (DeiTConfig, DeiTModel)}[kind]
    torch.manual_seed(2)
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    made = model(config(**size, image_size=32, patch_size=8, layer_norm_eps=1e-6, initializer_range=0.2))
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.05 * torch.randn(weight.shape)
    made.save_pretrained(folder)
    return folder


def test_a_vit_gives_its_features(tmp_path):
    folder = write_vit(tmp_path / "vit", "vit")
    model, _ = joined(vision=folder)
    pixels = pictures(model)
    with torch.no_grad():
        theirs = ViTModel.from_pretrained(folder).eval()(pixels).last_hidden_state
        torch.testing.assert_close(model.encode_images(pixels), theirs, **CLOSE)
    assert not any(name.startswith("vision_model.") for name in model.fresh)
    set_image_size(model.vision_model, model.config.vision_config, 64)
    assert model.encode_images(pictures(model)).shape == (3, 65, 24)


def test_a_distilled_deit_gives_its_weights_but_for_the_distillation(tmp_path):
    folder = write_vit(tmp_path / "deit", "deit")
    model, _ = joined(vision=folder)
    theirs, own = DeiTModel.from_pretrained(folder).state_dict(), model.state_dict()
    places = theirs["embeddings.position_embeddings"]
    expected = torch.cat([places[:, :1], places[:, 2:]], dim=1)
    assert torch.equal(own["vision_model.embeddings.position_embedding"], expected)
    assert torch.equal(own["vision_model.post_layernorm.weight"], theirs["layernorm.weight"])
    assert not any(name.startswith("vision_model.") for name in model.fresh)


@pytest.mark.parametrize("sharing", SHARED)
def test_bert_gives_words_both_sides_and_the_head_that_writes(sharing, tmp_path):
    folder = write_bert(tmp_path / "bert")
    model, captions = joined(sharing, text=folder)
    bert, own = BertForMaskedLM.from_pretrained(folder).state_dict(), model.state_dict()
    words = len(bert["bert.embeddings.word_embeddings.weight"])
    assert captions.tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [words, words + 1], "new words"
    assert model.config.text_config.bos_token_id == words
    assert model.config.enc_token_id == words + 1
    for name, tensor in bert.items():
        if "token_type" in name or "pooler" in name or ".predictions.decoder." in name or name.endswith("_ids"):
            continue
        sides = (
            [f"text_encoder.{name[5:]}", f"text_decoder.{name}"]
            if name.startswith("bert.")
            else [f"text_decoder.{name}"]
        )
        for side in sides:
            assert torch.equal(own[side][: len(tensor)], tensor), side
    assert len(own["text_decoder.cls.predictions.decoder.weight"]) == words + 2
    loose = [name for name in model.fresh if name.startswith("text_") and "text_proj" not in name]
    assert loose
    assert all(".crossattention." in name for name in loose)


def test_what_it_cannot_start_from_is_said(tmp_path):
    folder = write_bert(tmp_path / "bert")
    with pytest.raises(UserError, match="a bert; BLIP's image encoder starts from a ViT or DeiT"):
        joined(vision=folder)
    with pytest.raises(UserError, match="a vit; BLIP's text transformer starts from BERT"):
        joined(text=write_vit(tmp_path / "vit", "vit"))


def test_the_same_seed_gives_the_same_weights():
    one, other = (
        join_blip(None, None, "all", lambda: train_qformer_tokenizer(SENTENCES, 110), seed=seed)[0].state_dict()
        for seed in (4, 4)
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
