"""Every switch of `ThroughputConfig`: the same loss and gradients, with less work."""

from __future__ import annotations

import msgspec
import pytest
import torch

from instructkit.config.settings import ThroughputConfig
from instructkit.models.batches import share_images
from instructkit.models.packable import can_pack
from instructkit.models.packing import Rows, similar_rows
from instructkit.models.qformer import read_images
from instructkit.prompts.templates import Prompt
from tests.tiny import LLMS, tiny_model

PLAIN = ThroughputConfig(share_images=False, share_keys=False, packing=False, answers_only=False)
SWITCHES = ["share_images", "share_keys", "packing", "answers_only"]
PROMPTS = [
    Prompt("a/b/0", "t", "what color is the shape?", "red", ["0"]),
    Prompt("a/b/1", "t", "is there a triangle in the picture? Short answer:", "no", ["1"]),
    Prompt("a/b/2", "t", "Describe the image briefly.", "a red circle on a light background, a blue triangle", ["2"]),
    Prompt("a/b/3", "t", "is there a circle?", "yes", ["1"]),
    Prompt("a/b/4", "t", "color?", "blue yes no red green blue triangle", ["1", "0"]),
    Prompt("a/b/5", "t", "what?", "no", ["3"]),
]


def batch(texts, prompts=PROMPTS):
    distinct, sharing = share_images([prompt.images for prompt in prompts])
    pixels = torch.randn(len(distinct), 3, 16, 16, generator=torch.Generator().manual_seed(1))
    rows = texts.rows(texts.encode(prompts), [len(prompt.images) for prompt in prompts])
    return {"pixel_values": pixels, **sharing, **rows}


def learned(model, inputs, throughput):
    """Loss of the batch, of each row, and gradients of every parameter."""
    model.throughput = throughput
    model.zero_grad()
    answer = model(**inputs)
    answer.total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return answer, gradients


def assert_same(first, second):
    (answer, gradients), (other, others) = first, second
    assert answer.tokens == other.tokens
    torch.testing.assert_close(answer.total, other.total, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(answer.rows, other.rows, atol=1e-4, rtol=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("llm", LLMS)
def test_a_switch_changes_neither_loss_nor_gradients(llm, switch):
    model, texts = tiny_model(llm)
    inputs = batch(texts)
    plain = learned(model, inputs, PLAIN)
    assert len(plain[1]) > 100
    assert_same(learned(model, inputs, msgspec.structs.replace(PLAIN, **{switch: True})), plain)


@pytest.mark.parametrize("llm", LLMS)
def test_all_switches_together(llm):
    model, texts = tiny_model(llm)
    inputs = batch(texts)
    assert_same(learned(model, inputs, ThroughputConfig()), learned(model, inputs, PLAIN))


def test_without_instruction_awareness():
    model, texts = tiny_model()
    model.config.instruction_aware = False
    inputs = batch(texts)
    first, second = (learned(model, inputs, throughput) for throughput in (ThroughputConfig(), PLAIN))
    torch.testing.assert_close(first[0].rows, second[0].rows, atol=1e-4, rtol=1e-5)


def test_packed_rows_do_not_see_each_other():
    model, texts = tiny_model()
    first = batch(texts)
    reworded = msgspec.structs.replace(PROMPTS[0], instruction="is there no triangle?", target="yes")
    other = batch(texts, [reworded, *PROMPTS[1:]])
    before, after = model(**first).rows, model(**other).rows
    assert not torch.isclose(before[0], after[0])
    torch.testing.assert_close(before[1:], after[1:])


def test_the_llm_reads_no_padding_and_the_head_only_answers():
    model, texts = tiny_model()
    inputs = batch(texts)
    read, projected = [], []
    layer, head = model.language_model.model.layers[0].mlp, model.language_model.lm_head
    layer.register_forward_hook(lambda module, args, out: read.append(out.shape))
    head.register_forward_hook(lambda module, args, out: projected.append(out.shape))
    answer = model(**inputs)
    assert read == [(1, inputs["attention_mask"].sum(), 32)]
    assert projected[0][:2] == (1, answer.tokens)


def test_the_encoder_decoder_reads_rows_of_similar_length_together():
    model, texts = tiny_model("t5")
    inputs = batch(texts)
    read = []
    model.language_model.encoder.block[0].register_forward_hook(lambda module, args, out: read.append(args[0].shape))
    model(**inputs)
    assert sum(shape[0] for shape in read) == len(PROMPTS)
    assert sum(shape[0] * shape[1] for shape in read) < inputs["attention_mask"].numel()


def test_keys_and_values_once_an_image():
    model, texts = tiny_model()
    inputs = batch(texts)
    seen = []
    for layer in model.qformer.encoder.layer:
        if layer.has_cross_attention:
            key = layer.crossattention.attention.key
            key.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[0]))
    model(**inputs)
    assert seen == [4] * len(seen)
    assert seen


def test_qformer_against_transformers_in_double_precision():
    model, _ = tiny_model()
    qformer = model.qformer.double()
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(3, 5, 24, generator=generator, dtype=torch.float64)
    queries = torch.randn(1, 4, 32, generator=generator, dtype=torch.float64)
    image_index = torch.tensor([2, 0, 2, 1, 2, 0])
    lengths = torch.tensor([9, 1, 4, 9, 2, 6])
    ids = torch.randint(5, 60, (6, 9), generator=generator)
    mask = (torch.arange(9) < lengths[:, None]).long()
    ours = read_images(qformer, queries, features, image_index, ids, mask)
    for row in range(6):
        plain = qformer(
            input_ids=ids[row : row + 1, : lengths[row]],
            query_embeds=queries,
            encoder_hidden_states=features[image_index[row : row + 1]],
        ).last_hidden_state[0, :4]
        torch.testing.assert_close(ours[row], plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
def test_attention_of_packed_rows_is_that_of_each_row(causal, ordered):
    generator = torch.Generator().manual_seed(0)
    lengths = [3, 1, 7, 3, 4, 12, 11]
    tokens = sum(lengths)
    order = None if ordered else torch.randperm(tokens, generator=generator)
    rows = Rows(lengths, torch.device("cpu"), order)
    query = torch.randn(tokens, 4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    key, value = (
        torch.randn(tokens, 2, 6, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    weight = torch.randn(tokens, 4, 6, generator=generator, dtype=torch.float64)
    out = rows.attention(query, key, value, causal=causal, scale=0.3)
    mine = torch.autograd.grad((out * weight).sum(), (query, key, value))

    places = torch.arange(tokens) if order is None else order
    expected = torch.zeros_like(out)
    for row in places.split(lengths):
        q, k, v = query[row], key[row].repeat_interleave(2, 1), value[row].repeat_interleave(2, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * 0.3
        if causal:
            scores = scores.masked_fill(torch.ones(len(row), len(row)).triu(1).bool(), -torch.inf)
        expected = expected.index_copy(0, row, torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    torch.testing.assert_close(out, expected)
    theirs = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    for first, second in zip(mine, theirs, strict=True):
        torch.testing.assert_close(first, second)


def test_similar_rows_hold_every_row_once_and_little_padding():
    lengths = [(5,), (200,), (6,), (5,), (40,), (38,), (7,)]
    groups = similar_rows(lengths)
    assert sorted(row for group in groups for row in group) == list(range(7))
    for group in groups:
        tokens = sum(lengths[row][0] for row in group)
        assert len(group) * max(lengths[row][0] for row in group) <= 1.25 * tokens
    assert len(groups) == 3


def test_llms_whose_attention_is_not_plain_are_not_packed():
    model, _ = tiny_model("qwen2")
    llm = model.language_model
    assert can_pack(llm, 1000)
    llm.config.attn_logit_softcapping = 50.0
    assert not can_pack(llm, 10)


def test_attention_is_given_back_after_a_packed_pass():
    model, texts = tiny_model()
    before = model.language_model.config._attn_implementation
    model(**batch(texts))
    assert model.language_model.config._attn_implementation == before
