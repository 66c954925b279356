"""Which LLMs are packed, and by which kernel: every class of transformers, every signature of torch's kernel."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

from instructkit.models import packing
from instructkit.models.packing import COMPARED_DECODERS, Rows, can_pack, packed_rows, packing_note

LENGTHS = [11, 4, 15]
SIZES = {
    "vocab_size": 41,
    "hidden_size": 32,
    "intermediate_size": 24,
    "ffn_dim": 24,
    "word_embed_proj_dim": 32,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


def tiny(kind: str) -> nn.Module:
    """A random LLM of this class whose weights are all of order 0.3, so that a wrong position or mask shows."""
    config_class = type(AutoConfig.for_model(kind))
    known = {*vars(config_class()), *config_class.attribute_map}
    config = config_class(**{name: value for name, value in SIZES.items() if name in known})
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.mark.parametrize("kind", sorted(COMPARED_DECODERS))
def test_packed_rows_equal_rows_alone(kind: str) -> None:
    model = tiny(kind)
    softcapped = getattr(model.config, "attn_logit_softcapping", None) is not None
    assert can_pack(model, max(LENGTHS)) != softcapped
    if softcapped:
        assert "caps its attention" in str(packing_note(model))
        return
    ids = torch.randint(3, 41, (sum(LENGTHS),), generator=torch.Generator().manual_seed(2))
    rows = Rows(LENGTHS, torch.device("cpu"))
    with torch.no_grad():
        embeds = model.get_input_embeddings()(ids)
        alone = torch.cat([model(inputs_embeds=row[None], use_cache=False).logits[0] for row in embeds.split(LENGTHS)])
        with packed_rows(model, rows):
            packed = model(inputs_embeds=embeds[None], position_ids=rows.positions[None], use_cache=False).logits[0]
    torch.testing.assert_close(packed.log_softmax(-1), alone.log_softmax(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", sorted(set(CLASSES) - COMPARED_DECODERS))
def test_every_other_class_is_padded_and_the_log_says_so(kind: str) -> None:
    config = SimpleNamespace(model_type=kind, is_encoder_decoder=False)
    llm = SimpleNamespace(config=config, _supports_attention_backend=True)
    assert not can_pack(llm, 1)
    assert packing_note(llm) == (
        f"packing   off, rows are padded: {kind} is none of the classes that were compared packed and unpacked"
    )


def test_rows_longer_than_the_attention_window_are_padded_and_the_log_says_when() -> None:
    model = tiny("mistral")
    model.config.sliding_window = 14
    assert can_pack(model, 14)
    assert not can_pack(model, 15)
    assert "over 14 tokens" in str(packing_note(model))
    model.config.sliding_window = None
    assert packing_note(model) is None


def _attention(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, causal: bool, scale: float) -> Tensor:
    """Attention row by row and head by head, `[tokens, heads, head width]`; heads of all three are as many."""
    assert query.shape == key.shape == value.shape
    out = []
    for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        q, k, v = (part[first:last].transpose(0, 1) for part in (query, key, value))
        scores = q @ k.transpose(1, 2) * scale
        if causal:
            ahead = torch.ones(last - first, last - first).triu(1).bool()
            scores = scores.masked_fill(ahead, -torch.inf)
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out)


def kernel_of_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    """The kernel's arguments in torch 2.10."""
    return _attention(query, key, value, cu_seq_q, is_causal, query.shape[-1] ** -0.5)


def kernel_of_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    """The kernel's arguments in torch 2.11."""
    assert window_size in ((-1, 0), (-1, -1))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _attention(query, key, value, cu_seq_q, window_size == (-1, 0), scale)


def kernel_of_2_12(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    """The kernel's arguments from torch 2.12 on."""
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    return kernel_of_2_11(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, return_aux=return_aux, scale=scale, window_size=window_size
    )


@pytest.mark.parametrize("kernel", [kernel_of_2_10, kernel_of_2_11, kernel_of_2_12])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("causal", [True, False])
def test_a_kernel_of_any_torch_gives_the_plain_attention(kernel, key_heads: int, scale, causal: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(sum(LENGTHS), heads, 8, generator=generator) for heads in (4, key_heads, key_heads)
    )
    rows = Rows(LENGTHS, torch.device("cpu"))
    plain = rows.attention(query, key, value, causal=causal, scale=scale)
    torch.testing.assert_close(rows._by_kernel(kernel, query, key, value, causal, scale), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", [None, lambda query, key, value, something_new: None])
def test_a_torch_without_a_kernel_that_is_known_falls_back_and_says_so(kernel, monkeypatch, caplog) -> None:
    module = ModuleType("torch.nn.attention.varlen") if kernel else None
    if module is not None:
        module.varlen_attn = kernel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    packing._variable_length.cache_clear()
    assert packing._variable_length() is None
    assert len(caplog.records) == 1
    packing._variable_length.cache_clear()
