"""Beams that share their prefix find the texts and scores of transformers, whose beams read it one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
)

from instructkit.evaluation import generate
from instructkit.evaluation.beams import Beams, search_beams, why_beams_read_alone
from instructkit.evaluation.branches import BRANCHING_ENCODER_DECODERS
from instructkit.evaluation.generate import generate_ids, generation_note
from instructkit.models.packable import COMPARED_DECODERS
from instructkit.prompts.protocols import Decoding
from tests.matrix import mostly_full
from tests.models.decoders import TOKENS, tiny

END, PAD = 1, 3
T5_SIZES = {"vocab_size": TOKENS, "d_model": 32, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 4}
T5_SIZES |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": 0}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_eager": ("llama", {"attn_implementation": "eager"}),
    "opt": ("opt", {}),
    "gpt2": ("gpt2", {}),
    "gemma2": ("gemma2", MIXED | {"attn_implementation": "eager", "final_logit_softcapping": 1.5}),
    "gemma3": ("gemma3_text", MIXED),
    "mistral": ("mistral", {"sliding_window": 4}),
    "t5": ("t5", {}),
    "t5_own_head": ("t5", {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}),
    "t5_shallow_decoder": ("t5", {"num_decoder_layers": 1}),
    "mt5": ("mt5", {}),
}
EVERY = MODELS | {kind: (kind, {}) for kind in sorted(COMPARED_DECODERS)}
SHORT = Decoding(num_beams=5, length_penalty=-1.0, max_new_tokens=8, repetition_penalty=1.5)
CAPTION = Decoding(num_beams=3, min_new_tokens=5, max_new_tokens=12, repetition_penalty=1.5)
DECODINGS = {
    "short": SHORT,
    "caption": CAPTION,
    "long": Decoding(num_beams=4, length_penalty=2.0, max_new_tokens=30),
    "even": Decoding(num_beams=2, length_penalty=0.0, max_new_tokens=9),
    "one_token": Decoding(num_beams=5, max_new_tokens=1),
    "many_beams": Decoding(num_beams=20, length_penalty=-1.0, max_new_tokens=4),
    "forced": Decoding(num_beams=3, min_new_tokens=6, max_new_tokens=6),
    "differs": Decoding(num_beams=3, max_new_tokens=9, decoder_only_max_new_tokens=4),
}
_built: dict[str, PreTrainedModel] = {}


def model_of(name: str) -> PreTrainedModel:
    """In float64, so that roundings of another order of sums change no choice between two beams.

    Eager attention stays in float32, in which it takes its softmax: what float64 masks with is infinite there. So do
    experts, whose kernel knows no float64.
    """
    if name not in _built:
        kind, options = EVERY[name]
        model = tiny_t5(kind, **options) if kind in BRANCHING_ENCODER_DECODERS else tiny(kind, **options)
        with torch.no_grad():
            model.get_output_embeddings().weight[END] *= 2.5  # so that some texts end early
        single = model.config._attn_implementation == "eager" or hasattr(model.config, "num_experts_per_tok")
        _built[name] = model if single else model.double()
    return _built[name]


def tiny_t5(kind: str, **options: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **T5_SIZES | {"pad_token_id": 0, "eos_token_id": END} | options)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def prefixes(model: PreTrainedModel, rows: int, seed: int, longest: int = 9) -> tuple[Tensor, Tensor]:
    """Padded on the left; one row is whole and one has a single token."""
    generator = torch.Generator().manual_seed(seed)
    width = model.get_input_embeddings().weight.shape[1]
    embeds = torch.randn(rows, longest, width, generator=generator, dtype=torch.float64).to(model.dtype)
    lengths = torch.randint(1, longest + 1, (rows, 1), generator=generator)
    lengths[:2, 0] = torch.tensor([longest, 1])[:rows]
    mask = (torch.arange(longest) >= longest - lengths).long()
    return embeds * mask[:, :, None], mask


def by_transformers(model: Any, embeds: Tensor, mask: Tensor, decoding: Decoding, pad: int = PAD) -> Beams:
    """What the usual call gives; a repetition penalty over new tokens alone, as LAVIS has it."""
    most = decoding.max_new_tokens
    if not model.config.is_encoder_decoder and decoding.decoder_only_max_new_tokens is not None:
        most = decoding.decoder_only_max_new_tokens
    model.generation_config = GenerationConfig()
    found = model.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        logits_processor=LogitsProcessorList(
            [RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty)] if decoding.repetition_penalty != 1 else []
        ),
        generation_config=GenerationConfig(
            do_sample=False,
            num_beams=decoding.num_beams,
            length_penalty=decoding.length_penalty,
            min_new_tokens=decoding.min_new_tokens,
            max_new_tokens=most,
            eos_token_id=END,
            pad_token_id=pad,
            bos_token_id=2,
            decoder_start_token_id=0 if model.config.is_encoder_decoder else None,
            return_dict_in_generate=True,
            output_scores=True,
        ),
    )
    return Beams(found.sequences, found.sequences_scores)


def compare(model: PreTrainedModel, embeds: Tensor, mask: Tensor, decoding: Decoding) -> Beams:
    ours = search_beams(model, embeds, mask, decoding, end=END, fill=PAD)
    theirs = by_transformers(model, embeds, mask, decoding)
    assert ours.ids.tolist() == theirs.ids.tolist()
    torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=1e-5)
    return ours


@pytest.mark.parametrize("decoding", mostly_full(["short", "caption"], "short"))
@pytest.mark.parametrize("name", list(MODELS))
def test_texts_and_scores_are_those_of_transformers(name: str, decoding: str) -> None:
    model = model_of(name)
    found = compare(model, *prefixes(model, 6, seed=3), DECODINGS[decoding])
    assert len({tuple(row) for row in found.ids.tolist()}) > 2


@pytest.mark.parametrize("decoding", list(DECODINGS))
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_every_decoding_gives_the_texts_and_scores_of_transformers(name: str, decoding: str) -> None:
    model = model_of(name)
    compare(model, *prefixes(model, 5, seed=4), DECODINGS[decoding])


@pytest.mark.full
@pytest.mark.parametrize("decoding", list(DECODINGS))
@pytest.mark.parametrize("name", list(EVERY))
def test_texts_and_scores_are_those_of_transformers_for_every_class(name: str, decoding: str) -> None:
    model = model_of(name)
    for seed in range(2, 4):
        compare(model, *prefixes(model, 1 + 4 * seed, seed, longest=3 + 5 * seed), DECODINGS[decoding])


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_beams_of_equal_scores_are_chosen_as_transformers_does(name: str) -> None:
    """Every token has the same score, so every choice is among equals."""
    model = tiny_t5("t5", tie_word_embeddings=False) if name == "t5" else tiny("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    for decoding in (SHORT, CAPTION, DECODINGS["even"], DECODINGS["long"]):
        compare(model, *prefixes(model, 3, seed=2), decoding)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_beams_that_are_twins_have_the_scores_of_transformers(name: str) -> None:
    """Every second token is a twin of the one before it; which of two stands in a text is a matter of rounding."""
    kind, options = MODELS[name]
    model = (tiny_t5(kind, **options) if name == "t5" else tiny(kind, **options)).double()
    with torch.no_grad():
        for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            weight[5::2] = weight[4:-1:2]
    for seed in range(3):
        for decoding in (DECODINGS["even"], Decoding(num_beams=4, max_new_tokens=6)):
            inputs = prefixes(model, 4, seed)
            ours = search_beams(model, *inputs, decoding, end=END, fill=PAD)
            theirs = by_transformers(model, *inputs, decoding)
            first = [torch.where(found.ids >= 4, found.ids // 2 * 2, found.ids) for found in (ours, theirs)]
            assert first[0].tolist() == first[1].tolist()
            torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_rows_that_are_done_leave_and_change_no_other(name: str) -> None:
    """Some rows end after a token or two; the LLM then reads fewer rows, and all results stay in their places."""
    model = model_of(name)
    embeds, mask = prefixes(model, 12, seed=7)
    read: list[int] = []
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[0]))
    try:
        decoding = Decoding(num_beams=2, length_penalty=-1.0, max_new_tokens=20)
        together = search_beams(model, embeds, mask, decoding, end=END, fill=PAD)
    finally:
        handle.remove()
    assert read[0] == 12 > min(read)
    assert read == sorted(read, reverse=True)
    compare(model, embeds, mask, decoding)
    for row in range(12):
        alone = compare(model, embeds[row : row + 1], mask[row : row + 1], decoding)
        assert together.ids[row, : alone.ids.shape[1]].tolist() == alone.ids[0].tolist()
        assert (together.ids[row, alone.ids.shape[1] :] == PAD).all()


@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_padding_may_stand_on_any_side(side: str) -> None:
    model = model_of("llama")
    embeds, mask = prefixes(model, 3, seed=5)
    expected = search_beams(model, embeds, mask, SHORT, end=END, fill=PAD)
    moved, moved_mask = torch.full_like(embeds, 9.0), torch.zeros_like(mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        places = torch.arange(9)[9 - length :]
        places = {"left": places, "right": torch.arange(length), "middle": places.clone()}[side]
        if side == "middle":
            places[0] = 0
        moved[row, places] = embeds[row, 9 - length :]
        moved_mask[row, places] = 1
    found = search_beams(model, moved, moved_mask, SHORT, end=END, fill=PAD)
    assert found.ids.tolist() == expected.ids.tolist()
    torch.testing.assert_close(found.scores, expected.scores)


@pytest.mark.parametrize(("name", "first"), [("llama", "model.layers.0"), ("t5", "encoder.block.0")])
def test_the_prefix_is_read_once(name: str, first: str) -> None:
    """Positions that enter the first layer: of the prefixes, and of every beam's new tokens but the last."""
    model = model_of(name)
    embeds, mask = prefixes(model, 3, seed=5)
    read: list[int] = []
    handle = model.get_submodule(first).register_forward_pre_hook(lambda _, x: read.append(x[0].shape[:2].numel()))
    decoding = Decoding(num_beams=5, min_new_tokens=4, max_new_tokens=4)
    try:
        generate_ids(model, embeds, mask, decoding, end=END, pad=PAD)
    finally:
        handle.remove()
    assert read == ([3 * 9] if name == "t5" else [3 * 9, 3 * 5, 3 * 5, 3 * 5])


@pytest.mark.parametrize("pad", [0, PAD])
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_rows_are_filled_up_as_by_transformers(name: str, pad: int) -> None:
    model = model_of(name)
    embeds, mask = prefixes(model, 8, seed=6)
    decoding = Decoding(num_beams=3, length_penalty=-1.0, max_new_tokens=10)
    found = generate_ids(model, embeds, mask, decoding, end=END, pad=pad)
    assert found.tolist() == by_transformers(model, embeds, mask, decoding, pad).ids.tolist()
    assert (found[:, -1] == (pad or END)).any()


def test_an_llm_with_adapters_shares_too() -> None:
    model = tiny("llama").double()
    embeds, mask = prefixes(model, 4, seed=2)
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    assert why_beams_read_alone(lora) is None
    compare(lora.double(), embeds, mask, SHORT)


@pytest.mark.parametrize("kind", ["bloom", "lfm2", "mamba"])
def test_a_class_that_was_not_compared_takes_the_plain_path_and_the_log_says_so(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(kind)
    assert str(generation_note(model)).startswith("generate  every beam reads picture and prompt")
    assert kind in str(generation_note(model))
    monkeypatch.setattr(generate, "search_beams", None)
    embeds, mask = prefixes(model, 2, seed=1)
    found = generate_ids(model, embeds, mask, SHORT, end=END, pad=PAD)
    assert found.tolist() == by_transformers(model, embeds, mask, SHORT).ids.tolist()


def test_rotary_positions_that_follow_the_longest_row_take_the_plain_path() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = tiny("llama", rope_parameters=rope, max_position_embeddings=16)
    embeds, mask = prefixes(model, 2, seed=1)
    assert why_beams_read_alone(model, 16) is None
    assert "rotary positions change" in str(why_beams_read_alone(model, 17))
    found = generate_ids(model, embeds, mask, SHORT, end=END, pad=PAD)
    assert found.tolist() == by_transformers(model, embeds, mask, SHORT).ids.tolist()


def test_kernels_without_a_mask_of_branches_take_the_plain_path() -> None:
    model = tiny("llama")
    model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2 takes no mask of a tree" in str(generation_note(model))


def test_quantised_weights_take_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    monkeypatch.setattr(model, "is_quantized", True, raising=False)
    assert "quantised weights" in str(generation_note(model))
    monkeypatch.setattr(generate, "search_beams", None)
    embeds, mask = prefixes(model, 2, seed=1)
    found = generate_ids(model, embeds, mask, SHORT, end=END, pad=PAD)
    assert found.tolist() == by_transformers(model, embeds, mask, SHORT).ids.tolist()


def test_the_note_is_missing_where_beams_share() -> None:
    assert generation_note(model_of("llama")) is None
    assert generation_note(model_of("t5")) is None
