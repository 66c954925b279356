"""Models joined from parts: against the parts themselves, called one behind the other; saved and loaded; refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    BertModel,
    Blip2ForConditionalGeneration,
    InstructBlipForConditionalGeneration,
)

from instructkit.config.settings import ModelConfig, TowersConfig
from instructkit.data.media import CLIP_MEAN, CLIP_STD
from instructkit.errors import UserError
from instructkit.evaluation.generate import generate_texts
from instructkit.evaluation.rank import score_candidates
from instructkit.evaluation.trie import CandidateTrie
from instructkit.models.batches import IGNORED
from instructkit.models.load.join import join
from instructkit.models.load.new_tokenizers import train_llm_tokenizer, train_qformer_tokenizer
from instructkit.models.load.trained import save_trained
from instructkit.models.save import load_model, save_model
from instructkit.models.towers import prepare_towers
from instructkit.prompts.protocols import Decoding
from tests.matrix import mostly_full
from tests.models.checkpoints import (
    ALL_LLMS,
    MEAN,
    STD,
    write_bert,
    write_blip2,
    write_instructblip,
    write_llm,
    write_vision,
)
from tests.models.test_instruct_blip import PROMPTS, batch
from tests.tiny import SENTENCES

VISION = ("clip", "siglip", "dinov2", "vit", "dinov2_with_registers")


def tokenizers():
    return train_llm_tokenizer(SENTENCES, 300), train_qformer_tokenizer(SENTENCES, 110)


def joined(say=lambda line: None, seed=0, **parts):
    settings = ModelConfig(**{name: str(place) for name, place in parts.items()})
    model, texts = join(settings, torch.float32, tokenizers, seed=seed, say=say)
    return model.eval(), texts


def pixels_for(model, inputs):
    """The batch's pictures in the size that the model takes."""
    size = model.config.vision_config.image_size
    torch.manual_seed(1)
    return {**inputs, "pixel_values": torch.randn(len(inputs["pixel_values"]), 3, size, size)}


def own_pixels(pixel_values):
    """CLIP's normalisation undone, the encoder's own done."""
    shape = (3, 1, 1)
    colours = pixel_values * torch.tensor(CLIP_STD).view(shape) + torch.tensor(CLIP_MEAN).view(shape)
    return (colours - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)


def features_of(folder, family, pixel_values):
    """Patch features of the whole checkpoint by transformers, before any norm of ours."""
    model = AutoModel.from_pretrained(folder).eval()
    encoder = getattr(model, "vision_model", model)
    out = encoder(pixel_values=own_pixels(pixel_values), output_hidden_states=True)
    return out.hidden_states[-2] if family == "clip" else out.last_hidden_state


def nll_of(llm, soft, inputs, decoder_only):
    """Sum of each row's answer losses by the LLM alone, one row at a time."""
    sums = []
    for row in range(len(soft)):
        kept = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row][kept][soft.shape[1] :]
        embeds = torch.cat([soft[row], llm.get_input_embeddings()(ids)])[None]
        labels = inputs["labels"][row]
        if decoder_only:
            logits, labels = llm(inputs_embeds=embeds).logits[0, :-1], labels[kept][1:]
        else:
            labels = labels[labels != IGNORED]
            start = torch.tensor([[llm.config.decoder_start_token_id, *labels[:-1].tolist()]])
            logits = llm(inputs_embeds=embeds, decoder_input_ids=start).logits[0]
        sums.append(nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED))
    return torch.stack(sums)


def plain_llm(folder):
    for auto in (AutoModelForCausalLM, AutoModelForSeq2SeqLM):
        try:
            return auto.from_pretrained(folder).eval()
        except ValueError:
            continue
    raise AssertionError(folder)


def read_by_hand(model, qformer, features, inputs):
    """Soft prompts of each row by transformers' own Q-Former, padding and all."""
    rows = len(inputs["input_ids"])
    queries = model.query_tokens.expand(rows, -1, -1)
    mask = torch.cat([torch.ones(queries.shape[:2], dtype=torch.long), inputs["qformer_attention_mask"]], 1)
    hidden = qformer(
        input_ids=inputs["qformer_input_ids"],
        attention_mask=mask,
        query_embeds=queries,
        encoder_hidden_states=features[inputs["image_index"]],
    ).last_hidden_state[:, : queries.shape[1]]
    return hidden @ model.language_projection.weight.T + model.language_projection.bias


@torch.no_grad()
@pytest.mark.parametrize("family", VISION)
def test_another_encoder_gives_what_its_own_library_gives_behind_a_new_norm(family, tmp_path):
    source = write_instructblip(tmp_path / "blip")
    vision = write_vision(tmp_path / family, family)
    lines = []
    model, texts = joined(lines.append, name=source, vision=vision)
    inputs = pixels_for(model, batch(texts))
    nn.init.normal_(model.vision_model.post_layernorm.weight)
    norm = model.vision_model.post_layernorm
    plain = features_of(vision, family, inputs["pixel_values"])
    torch.testing.assert_close(model.encode_patches(inputs["pixel_values"]), plain, atol=2e-5, rtol=1e-4)
    features = nn.functional.layer_norm(plain, plain.shape[-1:], norm.weight, norm.bias, 1e-5)
    whole = InstructBlipForConditionalGeneration.from_pretrained(source).eval()
    soft = read_by_hand(whole, whole.qformer, features, inputs)
    expected = nll_of(whole.language_model, soft, inputs, decoder_only=True)
    torch.testing.assert_close(model(**inputs).rows, expected, atol=1e-4, rtol=1e-4)
    assert model.fresh == {"vision_model.post_layernorm.weight", "vision_model.post_layernorm.bias"}
    assert lines[-1] == "model     vision_model    from random weights: post_layernorm (2)"
    assert len(lines) == 4


@torch.no_grad()
@pytest.mark.parametrize("family", mostly_full(ALL_LLMS, "t5", "opt", "gemma3_text", "qwen3"))
def test_another_llm_gives_the_losses_that_it_gives_alone(family, tmp_path):
    source = write_instructblip(tmp_path / "blip")
    llm = write_llm(tmp_path / family, family)
    model, texts = joined(name=source, llm=llm)
    inputs = batch(texts)
    whole = InstructBlipForConditionalGeneration.from_pretrained(source).eval()
    features = whole.vision_model(inputs["pixel_values"]).last_hidden_state
    soft = read_by_hand(model, whole.qformer, features, inputs)
    plain = plain_llm(llm)
    expected = nll_of(plain, soft, inputs, texts.decoder_only)
    torch.testing.assert_close(model(**inputs).rows, expected, atol=1e-4, rtol=1e-4)
    assert texts.decoder_only == (family != "t5")
    assert model.fresh == frozenset()  # the widths happen to fit, so even the projection is the checkpoint's
    torch.testing.assert_close(model.language_projection.weight, whole.language_projection.weight)
    save_model(model, texts, tmp_path / "saved")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    assert type(again) is InstructBlipForConditionalGeneration
    call = {"pixel_values": inputs["pixel_values"][:1], "input_ids": inputs["input_ids"][:1]}
    call["qformer_input_ids"] = inputs["qformer_input_ids"][:1]
    if not texts.decoder_only:
        call["decoder_input_ids"] = torch.tensor([[0, 5, 9]])
    torch.testing.assert_close(again(**call).logits, model(**call).logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("prefixed", [True, False])
def test_bert_becomes_a_qformer_that_reads_text_as_bert_does(prefixed, tmp_path):
    bert = write_bert(tmp_path / "bert", prefixed)
    lines = []
    model, texts = joined(lines.append, name=write_instructblip(tmp_path / "blip"), qformer=bert)
    plain = BertModel.from_pretrained(bert, add_pooling_layer=False).eval()
    plain.embeddings.token_type_embeddings.weight.zero_()
    ids = torch.tensor([texts.qformer("is there a red circle?")["input_ids"]])
    ours = model.qformer(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(ours, plain(ids).last_hidden_state, atol=1e-5, rtol=1e-4)
    for layer in model.qformer.encoder.layer:
        torch.testing.assert_close(layer.intermediate_query.dense.weight, layer.intermediate.dense.weight)
        torch.testing.assert_close(layer.output_query.LayerNorm.bias, layer.output.LayerNorm.bias)
    fresh = {name for name in model.fresh if name.startswith("qformer.")}
    assert fresh == {f"qformer.{name}" for name, _ in model.qformer.named_parameters() if ".crossattention." in name}
    assert [line for line in lines if line.startswith("model     qformer") and "random" in line] == [
        "model     qformer         from random weights: encoder.layer.*.crossattention.attention.key (4), "
        "encoder.layer.*.crossattention.attention.query (4), encoder.layer.*.crossattention.attention.value (4), "
        "encoder.layer.*.crossattention.output.LayerNorm (4), encoder.layer.*.crossattention.output.dense (4)"
    ]
    assert lines[-1] == "model     joints          from random weights: language_projection (2), query_tokens"
    assert model.query_tokens.std() > 0.01
    assert model.qformer.encoder.layer[0].crossattention.attention.key.weight.std() > 0.01


@torch.no_grad()
def test_blip2_joined_from_itself_gives_blip2s_logits(tmp_path):
    source = write_blip2(tmp_path / "blip2")
    lines = []
    model, texts = joined(lines.append, name="nano", vision=source, qformer=source, llm=source)
    plain = Blip2ForConditionalGeneration.from_pretrained(source).eval()
    model.config.instruction_aware = False
    inputs = batch(texts)
    row = {"pixel_values": inputs["pixel_values"][:1], "input_ids": inputs["input_ids"][:1, :12]}
    ours = model(**row, qformer_input_ids=inputs["qformer_input_ids"][:1]).logits
    torch.testing.assert_close(ours, plain(**row).logits, atol=1e-4, rtol=1e-4)
    assert {name.split(".")[1] for name in model.fresh} == {"embeddings"}
    assert len(texts.qformer) == model.config.qformer_config.vocab_size == 110
    layer = model.qformer.encoder.layer[1]
    torch.testing.assert_close(layer.output.dense.weight, layer.output_query.dense.weight)
    assert any("embeddings.position_embeddings, embeddings.word_embeddings" in line for line in lines)


@torch.no_grad()
def test_a_qformer_that_reads_text_comes_with_its_words(tmp_path):
    model, texts = joined(name="nano", qformer=write_blip2(tmp_path / "blip2", retrieval=True))
    assert not any(name.startswith("qformer.embeddings") for name in model.fresh)
    assert (
        texts.qformer("a red circle")["input_ids"]
        == train_qformer_tokenizer(SENTENCES, 120)("a red circle")["input_ids"]
    )
    # nano's images are 128 wide, BLIP-2's were 24: keys and values are new, queries are not.
    layer = {name for name in model.fresh if name.startswith("qformer.encoder.layer.0.")}
    stem = "qformer.encoder.layer.0.crossattention.attention"
    assert layer == {f"{stem}.key.weight", f"{stem}.value.weight"}


PARTS = {
    "clip-bert-llama": {"vision": "clip", "qformer": "bert", "llm": "llama"},
    "siglip-blip2-t5": {"vision": "siglip", "qformer": "blip2", "llm": "t5"},
    "dinov2-blip-gemma3": {"vision": "dinov2", "qformer": "instructblip", "llm": "gemma3_text"},
    "blip2-nano-qwen3": {"vision": "blip2", "llm": "qwen3"},
    "nano-nano-bare": {"llm": "bare"},
}


def write(folder, part):
    if part in VISION:
        return write_vision(folder / part, part)
    if part == "bare":
        return write_llm(folder / part, "gpt_neox", bare=True)
    if part in ALL_LLMS:
        return write_llm(folder / part, part)
    return {"bert": write_bert, "blip2": write_blip2, "instructblip": write_instructblip}[part](folder / part)


@pytest.mark.parametrize("parts", mostly_full(PARTS, "clip-bert-llama", "siglip-blip2-t5", "nano-nano-bare"))
def test_a_joined_model_learns_answers_ranks_and_comes_back_from_disk(parts, tmp_path):
    places = {name: write(tmp_path, part) for name, part in PARTS[parts].items()}
    model, texts = joined(**places)
    towers = TowersConfig(lora_rank=2, llm="lora", qformer="full")
    inputs = pixels_for(model, batch(texts))
    prepare_towers(model, towers)
    model(**inputs).total.backward()
    for name in ("query_tokens", "language_projection.weight", "vision_model.post_layernorm.weight"):
        gradient = dict(model.named_parameters())[name].grad
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0, name
    torch.manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
        before = model(**inputs).rows
    state = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or name.replace(".base_layer.", ".") in model.fresh
    }
    settings = ModelConfig(**{name: str(place) for name, place in places.items()})
    save_trained(tmp_path / "run", model, state, settings, towers, texts)
    again, read = load_model(str(tmp_path / "run"))
    again.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).rows, before, atol=2e-4, rtol=1e-4)
    assert read.encode(PROMPTS) == texts.encode(PROMPTS)
    save_model(again, read, tmp_path / "whole")
    whole, _ = load_model(str(tmp_path / "whole"))
    with torch.no_grad():
        torch.testing.assert_close(whole.eval()(**inputs).rows, again(**inputs).rows, atol=1e-5, rtol=1e-4)
    answers(again, read, inputs)
    other, _ = joined(name=tmp_path / "whole", llm=write_llm(tmp_path / "other"))
    with torch.no_grad():
        pixels = inputs["pixel_values"]
        torch.testing.assert_close(other.encode_images(pixels), again.encode_images(pixels), atol=1e-5, rtol=1e-4)
    save_trained(tmp_path / "less", model, {}, settings, towers, texts)
    with pytest.raises(UserError, match=r"trained\.safetensors: lacks \d+ weights that no part of nano"):
        load_model(str(tmp_path / "less"))


@torch.no_grad()
def answers(model, texts, inputs):
    """Ranking and generation: scores are those of whole rows by the LLM alone, texts end."""
    prompts = [prompt.__class__(prompt.example, "t", prompt.instruction, None, prompt.images) for prompt in PROMPTS[:2]]
    rows = texts.prefixes(texts.encode(prompts), [1, 1])
    mask = rows.pop("attention_mask")
    sharing = {"image_index": torch.tensor([0, 0]), "image_rows": torch.tensor([0, 1])}
    embeds = model.prefix(pixel_values=inputs["pixel_values"][:1], **sharing, **rows)
    candidates = texts.encode_answers(["red", "red circle", "no"])
    scores = score_candidates(model.language_model, embeds, mask, CandidateTrie.build(candidates))
    for row in range(2):
        prefix = embeds[row, mask[row].bool()]
        for index, ids in enumerate(candidates):
            words = torch.tensor(ids)
            if texts.decoder_only:
                given = torch.cat([prefix, model.get_input_embeddings()(words)])[None]
                logits = model.language_model(inputs_embeds=given).logits[0, len(prefix) - 1 : -1]
            else:
                start = torch.tensor([[model.language_model.config.decoder_start_token_id, *ids[:-1]]])
                logits = model.language_model(inputs_embeds=prefix[None], decoder_input_ids=start).logits[0]
            expected = logits.log_softmax(-1).gather(1, words[:, None]).sum()
            torch.testing.assert_close(scores[row][index], expected, atol=1e-3, rtol=1e-4)
    written = generate_texts(model.language_model, texts.llm, embeds, mask, Decoding(num_beams=2, max_new_tokens=4))
    assert len(written) == 2


def test_random_weights_follow_from_the_seed_and_nothing_else_changes(tmp_path):
    llm, bert = write_llm(tmp_path / "llm"), write_bert(tmp_path / "bert")
    torch.manual_seed(11)
    first, _ = joined(qformer=bert, llm=llm)
    drawn = torch.randn(1)
    torch.manual_seed(12)
    second, _ = joined(qformer=bert, llm=llm)
    other, _ = joined(qformer=bert, llm=llm, seed=1)
    torch.manual_seed(11)
    assert torch.equal(torch.randn(1), drawn)
    own, twin, third = (dict(model.named_parameters()) for model in (first, second, other))
    assert all(torch.equal(own[name], twin[name]) for name in own)
    differ = {name for name in own if not torch.equal(own[name], third[name])}
    assert differ <= first.fresh
    assert {"query_tokens", "language_projection.weight"} <= differ
    assert not any("meta" in str(parameter.device) for parameter in first.parameters())
    assert not any("meta" in str(buffer.device) for buffer in first.buffers())


def test_an_image_token_that_no_vocabulary_holds(tmp_path):
    model, texts = joined(llm=write_llm(tmp_path / "bare", "gpt_neox", bare=True))
    assert texts.image_token == len(texts.llm) == model.get_input_embeddings().num_embeddings
    assert texts.pad == texts.llm.eos_token_id
    assert model(**pixels_for(model, batch(texts))).total.isfinite()


def test_what_cannot_be_joined_is_said_in_one_line(tmp_path):
    llm, vision, bert = write_llm(tmp_path / "llm"), write_vision(tmp_path / "clip", "clip"), write_bert(tmp_path / "b")
    for parts, message in [
        ({"llm": tmp_path / "none"}, r"model\.llm=.*none: no such folder"),
        ({"llm": vision}, r"model\.llm=.*clip: a clip; name a causal LLM"),
        ({"llm": bert}, r"model\.llm=.*: a bert reads both ways"),
        ({"vision": llm}, r"model\.vision=.*llm"),
        ({"qformer": llm}, r"model\.qformer=.*llm: a llama; a Q-Former starts from BLIP-2, InstructBLIP or BERT"),
        ({"llm": tmp_path / "none.gguf"}, r"model\.llm=.*none\.gguf: no such file"),
        (
            {"llm": "package:no_such_llm"},
            r"package:no_such_llm: no Python module no_such_llm is installed; pip install",
        ),
        ({"name": bert, "llm": llm}, r"model\.name=.*: a bert; parts replace those"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            joined(**parts)
        assert "\n" not in str(caught.value)
    (vision / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        joined(vision=vision)
    with pytest.raises(UserError, match=r"a llama, no InstructBLIP or BLIP-2"):
        load_model(str(llm))
    with pytest.raises(UserError, match=r"lacks \d+ tensors, .* first stage has no LLM and is taken as model\.qformer"):
        load_model(str(write_blip2(tmp_path / "blip2", retrieval=True)))
