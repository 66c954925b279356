"""Which LLMs are packed, and by which kernel: every class of transformers, every signature of torch's kernel.

What is compared is what training and evaluation call (`InstructBlip.predict`, `score_candidates`), each with the LLM's
own forward on one row without padding. The normal run has a sample of the classes; `pytest -m full` has them all.
"""

import sys
from collections.abc import Iterable
from dataclasses import fields
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, LlamaConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

from instructkit.evaluation.rank import ranking_note, score_candidates
from instructkit.evaluation.trie import CandidateTrie
from instructkit.models import instruct_blip, packing
from instructkit.models.packable import (
    COMPARED_DECODERS,
    COMPARED_OPTIONS,
    can_pack,
    packing_note,
    why_not_plain,
)
from instructkit.models.packing import Rows, packed_rows
from tests.models.decoders import NOT_ALONE, SURVEYED, TOKENS, UNSTEADY, tiny
from tests.tiny import tiny_model

CPU = torch.device("cpu")
SHORT, LONG = [11, 4, 15], [11, 4, 19]
"""Tokens of rows: all within the window of sliding layers, which is 16, and one beyond it."""
ANSWERS = [5, 2, 8]
"""Tokens of their answers."""
PICTURE = 999
CANDIDATES = [[5, 6, 7], [5, 6], [9], [5, 8, 7, 11], [5, 6, 7]]
UNLIKE = {"bloom", "gpt_oss", "lfm2", "llama4_text", "mamba", "recurrent_gemma"}
"""Classes whose packed rows would see each other, or that have no exchangeable attention."""


@pytest.fixture(scope="module")
def blip():
    """A model whose LLM each test replaces."""
    model, _ = tiny_model()
    model.config.image_token_index = PICTURE
    return model


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def width_of(llm: nn.Module) -> int:
    return llm.get_input_embeddings().weight.shape[1]


def nll_of_row(llm: nn.Module, row: Tensor, answer: Tensor) -> Tensor:
    """Negative log-likelihood of each token of an answer, the last of a row `[length, width]`, by the LLM alone."""
    logits = llm(inputs_embeds=row[None].clone(), use_cache=False).logits[0]
    return nn.functional.cross_entropy(logits[-len(answer) - 1 : -1].double(), answer, reduction="none")


def reads(llm: nn.Module) -> None:
    """Read the embeddings of a short text, and give them a gradient."""
    nll_of_row(llm, torch.ones(3, width_of(llm), requires_grad=True), torch.tensor([5])).sum().backward()


def built(kind: str) -> nn.Module:
    """The tiny model of a class; where there is none, the test fails, or is skipped on another transformers."""
    try:
        llm = tiny(kind)
        reads(llm)
    except Exception as error:
        what = f"transformers {transformers.__version__}: there is no tiny {kind} ({error!r})"
        if not transformers.__version__.startswith(SURVEYED):
            pytest.skip(f"{what}; tests/models/decoders.py was made for {SURVEYED}")
        pytest.fail(f"{what}; give it sizes in OWN of tests/models/decoders.py, or say in NOT_ALONE why not")
    return llm


def compare_training(blip, llm: nn.Module, packs: bool, lengths: list[int], monkeypatch) -> None:
    """`InstructBlip.predict` gives the answers' likelihoods and the soft prompts' gradients of each row alone."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(6, TOKENS, (len(lengths), max(lengths)), generator=generator)
    ids[:, :2] = PICTURE
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    labels = torch.full_like(ids, -100)
    for row, (length, answer) in enumerate(zip(lengths, ANSWERS, strict=True)):
        labels[row, length - answer : length] = ids[row, length - answer : length]
    dtype = next(llm.parameters()).dtype
    soft = torch.randn(2 * len(lengths), width_of(llm), generator=generator).to(dtype).requires_grad_()
    blip.language_model = llm
    packed = []
    monkeypatch.setattr(instruct_blip, "packed_rows", lambda *of: packed.append(of) or packed_rows(*of))
    found = list(blip.predict(ids.masked_fill(~mask, 0), mask.long(), labels, soft))
    assert len(packed) == packs, "packed" if packed else "padded"
    ours = torch.cat([nn.functional.cross_entropy(a.logits.double(), a.targets, reduction="none") for a in found])
    (gradient,) = torch.autograd.grad(ours.sum(), soft)

    words = llm.get_input_embeddings()(ids.masked_fill(ids == PICTURE, 0)).detach()
    alone = []
    for row, (length, answer) in enumerate(zip(lengths, ANSWERS, strict=True)):
        embeds = torch.cat([soft[2 * row : 2 * row + 2], words[row, 2:length]])
        alone.append(nll_of_row(llm, embeds, ids[row, length - answer : length]))
    expected = torch.cat(alone)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-6)
    (wanted,) = torch.autograd.grad(expected.sum(), soft)
    torch.testing.assert_close(gradient, wanted, atol=1e-4 * max(1.0, wanted.abs().max().item()), rtol=0)


@torch.no_grad()
def compare_ranking(llm: nn.Module, prefixes: Iterable[int] = (9, 3)) -> None:
    """`score_candidates` gives the log-likelihood of each candidate behind its prefix, alone."""
    lengths = list(prefixes)
    generator = torch.Generator().manual_seed(3)
    dtype = next(llm.parameters()).dtype
    embeds = torch.randn(len(lengths), max(lengths), width_of(llm), generator=generator).to(dtype)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    scores = score_candidates(llm, embeds, mask, CandidateTrie.build(CANDIDATES))
    for row, length in enumerate(lengths):
        for candidate, score in zip(CANDIDATES, scores[row].tolist(), strict=True):
            tokens = torch.tensor(candidate)
            alone = torch.cat([embeds[row, :length], llm.get_input_embeddings()(tokens).to(dtype)])
            assert score == pytest.approx(-nll_of_row(llm, alone, tokens).sum().item(), abs=5e-5)


# ---- every class ----


NORMAL = {"gemma2", "gpt2", "llama", "mistral", "opt", "qwen3_moe"} | UNLIKE


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in NORMAL else pytest.mark.full)
        for kind in sorted(set(CLASSES) - set(NOT_ALONE))
    ],
)
def test_rows_together_equal_rows_alone_packed_or_padded(kind: str, blip, monkeypatch) -> None:
    llm = built(kind)
    if kind in UNSTEADY:
        llm = llm.double()
    own = llm.config.model_type  # of the text model, where the class has other parts
    note = packing_note(llm, CPU)
    if own not in COMPARED_DECODERS:
        reason = f"{own} is none of the classes that were compared packed and unpacked"
        assert note == f"packing   off, rows are padded: {reason}"
        assert str(ranking_note(llm)).endswith(reason)
        try:
            compare_training(blip, llm, False, LONG, monkeypatch)
            compare_ranking(llm)
        except AssertionError as error:
            if transformers.__version__.startswith(SURVEYED):
                raise
            # How a class reads padding is up to transformers.
            first = str(error).strip().splitlines()[0]
            pytest.skip(f"transformers {transformers.__version__}: {kind} reads padding otherwise: {first}")
        return
    softcapped = getattr(llm.config, "attn_logit_softcapping", None) is not None
    assert ("caps its attention" in str(note)) == softcapped
    assert ranking_note(llm) is None
    compare_training(blip, llm, not softcapped, SHORT, monkeypatch)
    compare_training(blip, llm, not softcapped, LONG, monkeypatch)
    compare_ranking(llm)
    compare_ranking(llm, [17, 6])


@pytest.mark.full
@pytest.mark.parametrize("kind", sorted(set(NOT_ALONE) & set(CLASSES)))
def test_classes_that_cannot_read_a_text_alone_still_cannot(kind: str) -> None:
    known, _ = NOT_ALONE[kind]
    try:
        reads(tiny(kind))
    except Exception as error:
        reason = repr(error)
    else:
        reason = "none: it reads a text now, so take it out of NOT_ALONE in tests/models/decoders.py"
    assert known in reason
    assert kind not in COMPARED_DECODERS


def test_what_is_listed_is_registered() -> None:
    if not transformers.__version__.startswith(SURVEYED):
        pytest.skip(f"the lists were made for transformers {SURVEYED}, not {transformers.__version__}")
    assert set(CLASSES) >= COMPARED_DECODERS | set(NOT_ALONE)


# ---- options ----

FACTORS = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 3.0, 5.0, 8.0]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def roped(kind: str, **rope: Any) -> dict[str, Any]:
    """Options for rotary positions of this kind."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **rope}}


NEAR = {"sliding_window": 16}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True} | NEAR
EAGER = {"attn_implementation": "eager"}
DYNAMIC = roped("dynamic", factor=2.0)
LONGROPE = roped("longrope", original_max_position_embeddings=16, **FACTORS)
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("gemma2", EAGER),
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("gemma2", {"attn_logit_softcapping": 2.0} | EAGER),
    ("gemma3_text", {"attn_logit_softcapping": 2.0} | EAGER),
    ("gemma3_text", {"final_logit_softcapping": 1.5, "layer_types": ["sliding_attention"] * 2}),
    ("gpt2", {"reorder_and_upcast_attn": True} | EAGER),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True} | EAGER),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}),
    ("gpt2", {"n_inner": None, "activation_function": "relu"}),
    ("llama", EAGER),
    ("llama", {"head_dim": None, "num_key_value_heads": None, "hidden_act": "gelu"}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", DYNAMIC),
    ("llama", roped("linear", factor=2.0)),
    ("llama", roped("yarn", factor=4.0, original_max_position_embeddings=8)),
    ("llama", roped("llama3", **LLAMA3)),
    ("llama", LONGROPE),
    ("mixtral", NEAR | {"output_router_logits": True}),
    ("olmo", {"clip_qkv": 0.5}),
    ("olmoe", {"clip_qkv": 0.5}),
    ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    ("opt", {"_remove_final_layer_norm": True, "enable_bias": False, "layer_norm_elementwise_affine": False}),
    ("phi3", LONGROPE | {"original_max_position_embeddings": 16}),
    ("phi3", NEAR),
    ("qwen2", MIXED | {"max_window_layers": 1}),
    ("qwen3", MIXED | {"max_window_layers": 1}),
    ("qwen3_moe", {"use_sliding_window": True, "mlp_only_layers": [0]} | NEAR),
    ("smollm3", {"no_rope_layers": [0, 1]} | MIXED),
    ("smollm3", {"no_rope_layers": [0, 0]}),
    ("starcoder2", NEAR),
]
"""Classes with options that concern attention, besides the yes or no of each class."""
NORMAL_OPTIONS = [0, 1, 7, 17, 23, 25]


def switches() -> list[Any]:
    """Each yes-or-no option of each class that is packed, the other way round."""
    found = []
    for kind in sorted(COMPARED_DECODERS & set(CONFIG_MAPPING)):
        for field in fields(CONFIG_MAPPING[kind]):
            if field.name in COMPARED_OPTIONS and isinstance(field.default, bool):
                found.append(pytest.param(kind, {field.name: not field.default}, marks=pytest.mark.full))
    return found


def compare_options(kind: str, options: dict[str, Any], blip, monkeypatch) -> None:
    llm = tiny(kind, **options)
    config = llm.config
    off = getattr(config, "attn_logit_softcapping", None) is not None
    off |= bool(getattr(config, "use_bidirectional_attention", False))
    longrope = (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "longrope"
    assert (packing_note(llm, CPU) is None) == (not off and not longrope and options != DYNAMIC)
    compare_training(blip, llm, not off, SHORT, monkeypatch)
    # Rows of both sides of the length where positions change cannot be in one padded batch.
    compare_training(blip, llm, not off and not longrope, [19, 17, 23] if longrope else LONG, monkeypatch)
    compare_ranking(llm)
    compare_ranking(llm, [14, 6] if longrope else [17, 6])


@pytest.mark.parametrize(
    ("kind", "options"),
    [pytest.param(*each, marks=() if at in NORMAL_OPTIONS else pytest.mark.full) for at, each in enumerate(OPTIONS)],
)
def test_options_that_concern_attention(kind: str, options: dict[str, Any], blip, monkeypatch) -> None:
    compare_options(kind, options, blip, monkeypatch)


@pytest.mark.parametrize(("kind", "options"), switches())
def test_every_switch_the_other_way(kind: str, options: dict[str, Any], blip, monkeypatch) -> None:
    compare_options(kind, options, blip, monkeypatch)


def test_an_llm_with_adapters_is_packed_like_one_without(blip, monkeypatch) -> None:
    llm = get_peft_model(tiny("llama"), LoraConfig(target_modules=["q_proj", "v_proj", "gate_proj"], r=2)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    compare_training(blip, llm, True, LONG, monkeypatch)
    compare_ranking(llm)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        (DYNAMIC, "128"),
        (LONGROPE, "16"),
    ],
)
def test_rows_are_padded_where_rotary_positions_depend_on_the_longest_row(changed, word: str) -> None:
    llm = tiny("llama", **changed)
    limit = int(word)
    assert can_pack(llm, limit)
    assert not can_pack(llm, limit + 1)
    assert f"over {word} tokens (rotary positions follow the longest from there) is padded" in str(
        packing_note(llm, CPU)
    )


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"layer_types": ["chunked_attention", "full_attention"]}, "layers of chunked_attention"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "spiral rotary positions"),
        ({"rope_parameters": {"full_attention": {"rope_type": "spiral"}}}, "spiral rotary positions"),
        ({"use_bidirectional_attention": True}, "tokens that follow"),
        ({"is_causal": False}, "tokens that follow"),
    ],
)
def test_an_option_that_was_not_compared_means_padding(changed: dict[str, Any], word: str) -> None:
    llm = tiny("llama")
    for name, value in changed.items():
        setattr(llm.config, name, value)
    assert word in str(packing_note(llm, CPU))
    assert word in str(ranking_note(llm))
    assert not can_pack(llm, 1)


def test_an_option_of_a_later_transformers_means_padding_unless_it_has_its_default() -> None:
    class Later(LlamaConfig):
        attention_sinks: bool = False
        sink_tokens: int | None = None

    assert why_not_plain(Later()) is None
    assert why_not_plain(Later(attention_sinks=True)) == (
        "llama with attention_sinks=True was not compared packed and unpacked"
    )
    assert "sink_tokens=4" in str(why_not_plain(Later(sink_tokens=4)))


@pytest.mark.full
@pytest.mark.parametrize("kind", sorted(COMPARED_DECODERS))
def test_every_option_of_the_packed_classes_is_known(kind: str) -> None:
    if not transformers.__version__.startswith(SURVEYED):
        pytest.skip(f"the options were looked through in transformers {SURVEYED}, not {transformers.__version__}")
    every = {field.name for field in fields(transformers.PreTrainedConfig)}
    for field in fields(CONFIG_MAPPING[kind]):
        size = isinstance(field.default, int | float) and not isinstance(field.default, bool)
        assert size or field.name in COMPARED_OPTIONS | every, f"{kind}: {field.name}"


def test_rows_longer_than_the_attention_window_are_packed() -> None:
    model = tiny("mistral")
    model.config.sliding_window = 14
    assert can_pack(model, 15)
    assert packing_note(model, CPU) is None


# ---- kernels ----


def _attention(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, window: tuple[int, int], scale: float
) -> Tensor:
    """Attention row by row and head by head, `[tokens, heads, head width]`; heads of all three are as many.

    `window` says how many tokens before and behind itself a token sees, -1 for all.
    """
    assert query.shape == key.shape == value.shape
    out = []
    for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        q, k, v = (part[first:last].transpose(0, 1) for part in (query, key, value))
        scores = q @ k.transpose(1, 2) * scale
        for at in range(last - first):
            for other in range(last - first):
                before, behind = (distance if distance >= 0 else last for distance in window)
                if not at - before <= other <= at + behind:
                    scores[:, at, other] = -torch.inf
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out)


def kernel_of_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    """The kernel's arguments in torch 2.10."""
    return _attention(query, key, value, cu_seq_q, (-1, 0) if is_causal else (-1, -1), query.shape[-1] ** -0.5)


def kernel_of_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    """The kernel's arguments in torch 2.11."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _attention(query, key, value, cu_seq_q, window_size, scale)


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


class OnGpu(Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("kernel", [kernel_of_2_10, kernel_of_2_11, kernel_of_2_12])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("causal", [True, False])
def test_a_kernel_of_any_torch_gives_the_plain_attention(kernel, key_heads: int, scale, causal: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(sum(SHORT), heads, 8, generator=generator) for heads in (4, key_heads, key_heads))
    rows = Rows(SHORT, torch.device("cpu"))
    plain = rows.attention(query, key, value, causal=causal, scale=scale)
    found = rows._by_kernel(kernel, query, key, value, causal, scale, None)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [1, 5, 14, 15, 40])
@pytest.mark.parametrize("kernel", [kernel_of_2_10, kernel_of_2_11, kernel_of_2_12])
def test_an_attention_window_is_kept_with_every_kernel_and_without(kernel, window: int, monkeypatch) -> None:
    """The kernel of torch 2.10 knows no window: rows beyond it are padded inside attention."""
    generator = torch.Generator().manual_seed(6)
    parts = [torch.randn(sum(SHORT), 2, 8, generator=generator) for _ in range(3)]
    rows = Rows(SHORT, CPU)
    wanted = _attention(*parts, rows.ends, (window - 1, 0), 0.5)
    options = {"causal": True, "scale": 0.5, "window": window}
    torch.testing.assert_close(rows.attention(*parts, **options), wanted, atol=1e-5, rtol=0)
    monkeypatch.setattr(packing, "_variable_length", lambda: kernel)
    found = rows.attention(*(part.bfloat16().as_subclass(OnGpu) for part in parts), **options).as_subclass(Tensor)
    torch.testing.assert_close(found.float(), wanted, atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize("width", [4, 6, 8, 12, 80, 100, 256, 264])
def test_heads_of_a_width_that_the_kernel_refuses_are_padded(width: int, monkeypatch) -> None:
    """On an H100, torch 2.11's kernel raises for widths that are no multiples of 8 or above 256."""
    called = []

    def kernel(query: Tensor, *others: Any, scale: Any = None, window_size: Any = (-1, -1)) -> Tensor:
        if query.shape[-1] % 8 or query.shape[-1] > 256:
            raise RuntimeError("head_size must be a multiple of 8, this is ensured by padding!")
        called.append(query.shape)
        return kernel_of_2_11(query, *others, scale=scale, window_size=window_size)

    monkeypatch.setattr(packing, "_variable_length", lambda: kernel)
    generator = torch.Generator().manual_seed(4)
    parts = [torch.randn(sum(SHORT), 2, width, generator=generator).bfloat16() for _ in range(3)]
    rows = Rows(SHORT, CPU)
    found = rows.attention(*(part.as_subclass(OnGpu) for part in parts), causal=True, scale=None)
    wanted = rows.attention(*(part.float() for part in parts), causal=True, scale=None)
    torch.testing.assert_close(found.as_subclass(Tensor).float(), wanted, atol=2e-2, rtol=2e-2)
    assert bool(called) == packing.fits_kernel(width) == (width in (8, 80, 256))


def test_the_log_of_a_run_on_a_gpu_names_heads_that_the_kernel_refuses() -> None:
    llm = tiny("llama")
    assert packing_note(llm, torch.device("cuda", 0)) is None
    llm.config.head_dim = 20
    assert "variable-length attention takes no heads of width 20" in str(packing_note(llm, torch.device("cuda", 0)))


@pytest.mark.parametrize("kind", sorted(COMPARED_DECODERS))
def test_the_width_of_heads_is_found_in_the_config_of_every_class_that_is_packed(kind: str) -> None:
    config: Any = tiny(kind).config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert ("takes no heads" in str(packing.why_no_kernel(config))) == (width % 8 > 0)


@pytest.mark.parametrize("kernel", [None, lambda query, key, value, something_new: None])
def test_a_torch_without_a_kernel_that_is_known_falls_back_and_the_log_of_a_run_on_a_gpu_says_so(
    kernel, monkeypatch
) -> None:
    module = ModuleType("torch.nn.attention.varlen") if kernel else None
    if module is not None:
        module.varlen_attn = kernel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    packing._variable_length.cache_clear()
    assert packing._variable_length() is None
    llm = tiny("llama")
    assert packing_note(llm, CPU) is None
    assert "has no variable-length attention known here" in str(packing_note(llm, torch.device("cuda", 0)))
    packing._variable_length.cache_clear()
