"""Ranking equals one full forward a candidate, and LAVIS's recorded numbers."""

import json
from collections.abc import Callable
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from instructkit.evaluation import rank
from instructkit.evaluation.rank import Rule, score_candidates
from instructkit.evaluation.trie import CandidateTrie
from instructkit.models.packable import COMPARED_DECODERS
from tests.matrix import mostly_full

VOCABULARY, WIDTH, END = 41, 16, 1
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
T5_SIZES = {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
T5_SIZES |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": 0}
WINDOW = {"sliding_window": 4}
MIXED = {"layer_types": ["sliding_attention", "full_attention"]} | WINDOW
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "llama_eager": ("llama", SIZES | {"attn_implementation": "eager"}),
    "opt": ("opt", SIZES | {"ffn_dim": 24, "word_embed_proj_dim": 12}),
    "gemma": ("gemma", SIZES),
    "gemma2": ("gemma2", SIZES | MIXED | {"attn_implementation": "eager", "final_logit_softcapping": 1.5}),
    "gemma3": ("gemma3_text", SIZES | MIXED),
    "gemma3_all_sliding": ("gemma3_text", SIZES | WINDOW | {"layer_types": ["sliding_attention"] * 2}),
    "gpt2": ("gpt2", {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 128}),
    "gpt_neox": ("gpt_neox", SIZES),
    "mistral": ("mistral", SIZES | WINDOW),
    "phi": ("phi", SIZES),
    "qwen2": ("qwen2", SIZES),
    "qwen2_sliding": ("qwen2", SIZES | MIXED | {"use_sliding_window": True}),
    "qwen3": ("qwen3", SIZES),
    "t5": ("t5", T5_SIZES),
    "t5_eager": ("t5", T5_SIZES | {"attn_implementation": "eager"}),
    "t5_gated": ("t5", T5_SIZES | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", T5_SIZES),
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
for _kind in sorted(COMPARED_DECODERS - {kind for kind, _ in MODELS.values()}):
    _known = vars(AutoConfig.for_model(_kind))
    MODELS[_kind] = (_kind, SIZES | {name: value for name, value in EXPERTS.items() if name in _known})
BART = {"vocab_size": VOCABULARY, "d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 2}
BART |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
ROW_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 2, "n_head": 2}),
    "mamba": ("mamba", {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 4}),
    "umt5": ("umt5", T5_SIZES),
    "bart": ("bart", BART | {"max_position_embeddings": 64}),
}
_built: dict[str, PreTrainedModel] = {}


def tiny(name: str) -> PreTrainedModel:
    """A random model whose parameters are all of order one, so that a wrong position or mask shows."""
    if name not in _built:
        kind, sizes = (MODELS | ROW_MODELS)[name]
        options = {"attn_implementation": sizes.get("attn_implementation", "sdpa")} if name in MODELS else {}
        special = {"pad_token_id": 0, "eos_token_id": END, "bos_token_id": 2}
        own = {key: value for key, value in sizes.items() if key != "attn_implementation"}
        config = AutoConfig.for_model(kind, **special, **own)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = auto.from_config(config, **options).eval()
        generator = torch.Generator().manual_seed(len(name))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        _built[name] = model
    return _built[name]


def random_candidates(count: int, seed: int, longest: int = 12) -> list[list[int]]:
    """Few distinct first tokens, so that beginnings are shared; one duplicate and one prefix of another."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, size: int) -> list[int]:
        return torch.randint(3, high, (size,), generator=generator).tolist()

    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    found = [draw(7, size)[: size // 2] + draw(VOCABULARY, size - size // 2) for size in lengths]
    if count > 3:
        found[1], found[2] = list(found[0]), found[3][: max(1, len(found[3]) // 2)]
    return found


def random_prefixes(batch: int, length: int, seed: int, sides: str = "none") -> tuple[Tensor, Tensor]:
    """Prefixes of random lengths; question i is padded on the i-th of the sides, and so on in turn."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(batch, length, WIDTH, generator=generator)
    real = torch.randint(1, length + 1, (batch, 1), generator=generator)
    place = torch.arange(length)
    masks = {
        "none": torch.ones(batch, length, dtype=torch.bool),
        "right": place < real,
        "left": place >= length - real,
        "middle": (place < 2) | (place >= length - real),
    }
    turn = sides.split()
    return embeds, torch.stack([masks[turn[i % len(turn)]][i] for i in range(batch)]).long()


@torch.no_grad()
def brute_force(
    model: PreTrainedModel, embeds: Tensor, mask: Tensor, candidates: list[list[int]], end: int | None, rule: Rule
) -> Tensor:
    """One question: one unpadded row for candidates of the same length, through the model's own forward."""
    prefix = embeds[None, mask.bool()]
    scores = torch.zeros(len(candidates))
    tokens = [[*candidate, *([] if end is None else [end])] for candidate in candidates]
    for length in {len(row) for row in tokens}:
        where = [index for index, row in enumerate(tokens) if len(row) == length]
        labels = torch.tensor([tokens[index] for index in where])
        rows = prefix.expand(len(where), -1, -1)
        if model.config.is_encoder_decoder:
            start = torch.full((len(where), 1), model.config.decoder_start_token_id)
            shifted = torch.cat([start, labels[:, :-1]], dim=1)
            logits = model(inputs_embeds=rows, decoder_input_ids=shifted).logits
        else:
            row = torch.cat([rows, model.get_input_embeddings()(labels)], dim=1)
            logits = model(inputs_embeds=row).logits[:, -length - 1 : -1]
        found = logits.float().log_softmax(-1).gather(2, labels[:, :, None])[:, :, 0]
        scores[where] = found.sum(1) if rule == "sum" else found.mean(1)
    return scores


def embeds_for(model: PreTrainedModel, embeds: Tensor) -> Tensor:
    return embeds[:, :, : model.get_input_embeddings().embedding_dim]


def close(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert len(ours) == len(expected)
    for found, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [*MODELS, *ROW_MODELS])
def test_equals_brute_force_on_every_class(name: str) -> None:
    model = tiny(name)
    embeds, mask = random_prefixes(4, 9, seed=3, sides="none left right middle")
    embeds = embeds_for(model, embeds)
    candidates = random_candidates(40, seed=3)
    cases: list[tuple[Rule, int | None, int]] = [("sum", None, 4096), ("mean", END, 40)]
    for rule, end, budget in cases:
        trie = CandidateTrie.build(candidates, end_token=end)
        ours = score_candidates(model, embeds, mask, trie, rule=rule, max_tokens=budget)
        expected = [brute_force(model, embeds[i], mask[i], candidates, end, rule) for i in range(4)]
        close(ours, expected)


@pytest.mark.parametrize("name", [*MODELS, *ROW_MODELS])
def test_only_unknown_classes_take_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def rows(*_: object) -> list[Tensor]:
        calls.append(name)
        return [torch.zeros(1)]

    monkeypatch.setattr(rank, "_row_sums", rows)
    embeds, mask = random_prefixes(1, 4, seed=0)
    score_candidates(tiny(name), embeds_for(tiny(name), embeds), mask, CandidateTrie.build([[5]]))
    assert bool(calls) == (name in ROW_MODELS)


@pytest.mark.parametrize("name", mostly_full(["llama", "opt", "t5", "gemma3"], "llama", "t5"))
@settings(max_examples=15)
@given(
    count=st.integers(1, 60),
    batch=st.integers(1, 4),
    shared=st.booleans(),
    end=st.sampled_from([None, END]),
    rule=st.sampled_from(["sum", "mean"]),
    sides=st.sampled_from(["none", "left", "right", "middle left none right"]),
    budget=st.integers(1, 120),
    seed=st.integers(0, 9),
)
def test_equals_brute_force_at_any_budget(
    name: str, count: int, batch: int, shared: bool, end: int | None, rule: Rule, sides: str, budget: int, seed: int
) -> None:
    model = tiny(name)
    embeds, mask = random_prefixes(batch, 7, seed, sides)
    embeds = embeds_for(model, embeds)
    lists = [random_candidates(count if shared else 1 + (count + 7 * i) % 60, seed + i) for i in range(batch)]
    lists = [lists[0]] * batch if shared else lists
    tries = [CandidateTrie.build(candidates, end_token=end) for candidates in lists]
    ours = score_candidates(model, embeds, mask, tries[0] if shared else tries, rule=rule, max_tokens=budget)
    close(ours, [brute_force(model, embeds[i], mask[i], lists[i], end, rule) for i in range(batch)])


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("budget", mostly_full([700, 16384], 700))
def test_equals_brute_force_for_2500_candidates(name: str, budget: int) -> None:
    model = tiny(name)
    embeds, mask = random_prefixes(2, 8, seed=1, sides="left")
    candidates = random_candidates(2500, seed=5)
    trie = CandidateTrie.build(candidates, end_token=END)
    assert trie.states > 2 * 512
    ours = score_candidates(model, embeds, mask, trie, max_tokens=budget)
    close(ours, [brute_force(model, embeds[i], mask[i], candidates, END, "sum") for i in range(2)])


@pytest.mark.parametrize("name", ["llama", "opt", "t5", "mistral"])
@pytest.mark.parametrize("budget", [64, 200])
def test_a_pass_and_a_projection_stay_under_the_budget(name: str, budget: int) -> None:
    model = tiny(name)
    embeds, mask = random_prefixes(9, 20, seed=2)
    embeds = embeds_for(model, embeds)
    trie = CandidateTrie.build(random_candidates(300, seed=8))
    passes: list[int] = []
    projected: list[int] = []
    first = next(module for name, module in model.named_modules() if name.endswith((".layers.0", "block.0")))
    handles = [
        first.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].shape[:2].numel())),
        model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: projected.append(inputs[0].shape[0])),
    ]
    score_candidates(model, embeds, mask, trie, max_tokens=budget)
    for handle in handles:
        handle.remove()
    assert max(passes) <= budget
    assert max(projected) * VOCABULARY <= budget * WIDTH
    assert sum(projected) == 9 * trie.states


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_score_depends_on_its_own_question_only(name: str) -> None:
    model = tiny(name)
    embeds, mask = random_prefixes(4, 9, seed=4, sides="right")
    trie = CandidateTrie.build(random_candidates(20, seed=1))
    together = score_candidates(model, embeds, mask, trie)
    alone = [score_candidates(model, embeds[i : i + 1], mask[i : i + 1], trie)[0] for i in range(4)]
    close(together, alone)
    broken = embeds.masked_fill(~mask.bool()[:, :, None], 1e4)
    close(score_candidates(model, broken, mask, trie), together)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_lower_precision_sums_in_float32(name: str) -> None:
    model = tiny(name)
    embeds, mask = random_prefixes(2, 6, seed=4, sides="right")
    trie = CandidateTrie.build(random_candidates(12, seed=1, longest=4))
    exact = score_candidates(model, embeds, mask, trie)
    half = type(model)(model.config).eval()
    half.load_state_dict(model.state_dict())
    ours = score_candidates(half.bfloat16(), embeds.bfloat16(), mask, trie)
    for found, wanted in zip(ours, exact, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, atol=1.0, rtol=0.1)


def test_models_are_left_as_they_were() -> None:
    model = tiny("t5")
    before = model.decoder.block[0].layer[0].SelfAttention.compute_bias(5, 5)
    embeds, mask = random_prefixes(1, 6, seed=4)
    scores = score_candidates(model, embeds, mask, CandidateTrie.build([[5, 6], [7]]))
    assert not scores[0].requires_grad
    assert torch.equal(model.decoder.block[0].layer[0].SelfAttention.compute_bias(5, 5), before)


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_goes_under_the_name_that_forward_has(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(kind)
    embeds, mask = random_prefixes(2, 6, seed=4, sides="right")
    embeds, trie = embeds_for(model, embeds), CandidateTrie.build(random_candidates(12, seed=1, longest=4))
    expected = score_candidates(model, embeds, mask, trie)
    decoder = model.get_decoder() if model.config.is_encoder_decoder else model.base_model
    forward, given = decoder.forward, []
    own = "cache" if "cache" in signature(forward).parameters else "past_key_values"

    def other(**kwargs: Any) -> Any:
        given.append(kwargs.pop(name))
        return forward(**kwargs, **{own: given[-1]})

    keywords = Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD
    vars(other)["__signature__"] = Signature([Parameter(name, keywords[0]), Parameter("kwargs", keywords[1])])
    monkeypatch.setattr(decoder, "forward", other)
    close(score_candidates(model, embeds, mask, trie), expected)
    assert given
    assert all(cache is not None for cache in given)


# ---- the trie ----


def naive_states(candidates: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(row[:size]) for row in candidates for size in range(len(row))}


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=40))
def test_trie_holds_each_beginning_once(candidates: list[list[int]]) -> None:
    trie = CandidateTrie.build(candidates)
    assert trie.states == len(naive_states(candidates))
    assert trie.edges == len({tuple(row[: size + 1]) for row in candidates for size in range(len(row))})
    padded = torch.cat([trie.edge_token, torch.tensor([-1])])[trie.paths]
    assert [[token for token in row if token >= 0] for row in padded.tolist()] == candidates
    assert trie.lengths.tolist() == [len(row) for row in candidates]


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=40),
    st.integers(1, 12),
    st.integers(0, 1),
)
def test_runs_hold_every_state_once_and_its_ancestors(candidates: list[list[int]], width: int, first: int) -> None:
    trie = CandidateTrie.build(candidates)
    seen: list[int] = []
    for states, known in trie.runs(width, first):
        assert len(states) <= max(width, known + 1)
        for state in states.tolist():
            ancestors = [other for other in range(first, state) if trie.state_stop[other] > state]
            assert set(ancestors) <= set(states.tolist())
            assert len(ancestors) == trie.state_depth[state] - first
        seen += states[known:].tolist()
    assert seen == list(range(first, trie.states))


@pytest.mark.parametrize(
    ("candidates", "end", "message"),
    [
        ([], None, "no candidates"),
        ([[3], []], None, "candidate 1 is empty"),
        ([[3], [4, 1]], 1, "candidate 1 already ends in the end token 1"),
        ([[-1]], None, "negative"),
    ],
)
def test_trie_names_the_bad_candidate(candidates: list[list[int]], end: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CandidateTrie.build(candidates, end_token=end)


def test_bad_calls_say_what_is_wrong() -> None:
    embeds, mask = random_prefixes(2, 4, seed=0)
    trie = CandidateTrie.build([[5]])
    model = tiny("llama")
    with pytest.raises(ValueError, match="2 questions but 1 tries"):
        score_candidates(model, embeds, mask, [trie])
    with pytest.raises(ValueError, match="prefix is empty"):
        score_candidates(model, embeds, mask * torch.tensor([[1], [0]]), trie)
    with pytest.raises(ValueError, match='unknown score rule "median"'):
        score_candidates(model, embeds, mask, trie, rule="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not fit"):
        score_candidates(model, embeds, mask[:1], trie)
    with pytest.raises(ValueError, match="max_tokens"):
        score_candidates(model, embeds, mask, trie, max_tokens=0)


# ---- LAVIS's recorded numbers ----

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "lavis"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="LAVIS's recorded numbers are not beside the checkout")


def golden_config() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / "config.json").read_text())
    return found


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    rules = json.loads((GOLDEN / "key_map.json").read_text())
    found = {}
    for key, value in weights.items():
        if key.startswith("Qformer.cls.") or key.endswith((".position_ids", ".rotary_emb.inv_freq")):
            continue
        old, new = next(rule for rule in rules["prefix"] if key.startswith(rule[0]))
        key = new + key.removeprefix(old)
        if new == "qformer.":
            for old, new in rules["substring_for_qformer"]:
                key = key.replace(old, new)
        found[key] = value
    return found


def part_of(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def golden_vicuna() -> LlamaForCausalLM:
    size = golden_config()["llm"]
    config = LlamaConfig(
        vocab_size=size["vocab"] + 1,
        hidden_size=size["hidden"],
        intermediate_size=size["inter"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        max_position_embeddings=256,
        rms_norm_eps=1e-6,
    )
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(part_of(renamed(load_file(GOLDEN / "vicuna_weights.safetensors")), "language_model."))
    return model


def golden_t5() -> T5ForConditionalGeneration:
    size = golden_config()["t5"]
    config = T5Config(
        vocab_size=size["vocab"],
        d_model=size["d_model"],
        d_kv=size["d_kv"],
        d_ff=size["d_ff"],
        num_layers=size["layers"],
        num_heads=size["heads"],
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    # Finding 24 of the fixtures: LAVIS runs FlanT5 with the exact gelu.
    config.dense_act_fn = "gelu"
    model = T5ForConditionalGeneration(config).eval()
    # A T5 built from a config shares its head with the embeddings, and the checkpoint's own head would overwrite both.
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.load_state_dict(part_of(renamed(load_file(GOLDEN / "t5_weights.safetensors")), "language_model."))
    return model


@torch.no_grad()
def golden_queries(image: Tensor, ids: Tensor, mask: Tensor, projection: dict[str, Tensor]) -> Tensor:
    """Projected queries of one image or of the frames of a video, `[batch, frames * queries, width]`."""
    sizes = golden_config()["qformer"]
    weights = renamed(load_file(GOLDEN / "qformer_weights.safetensors"))
    names = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]
    names += ["max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id"]
    config = InstructBlipQFormerConfig(
        encoder_hidden_size=sizes["encoder_width"],
        cross_attention_frequency=sizes["cross_attention_freq"],
        **{name: sizes[name] for name in names},
    )
    qformer = InstructBlipQFormerModel(config).eval()
    qformer.load_state_dict(part_of(weights, "qformer."))
    norm = part_of(weights, "vision_model.post_layernorm.")
    image = torch.nn.functional.layer_norm(image, image.shape[-1:], norm["weight"], norm["bias"], 1e-5)
    queries = weights["query_tokens"].expand(len(image), -1, -1)
    output = qformer(
        input_ids=ids,
        attention_mask=torch.cat([torch.ones(queries.shape[:2], dtype=torch.long), mask], dim=1),
        query_embeds=queries,
        encoder_hidden_states=image,
    ).last_hidden_state[:, : queries.shape[1]]
    return torch.nn.functional.linear(output, projection["weight"], projection["bias"])


def golden_prefix(name: str, model: PreTrainedModel, image: Tensor) -> tuple[Tensor, Tensor]:
    fixture = load_file(GOLDEN / f"{name}_predict.safetensors")
    weights = renamed(load_file(GOLDEN / f"{name}_weights.safetensors"))
    projection = part_of(weights, "language_projection.")
    ids, mask = fixture["qformer_input_ids"], fixture["qformer_attention_mask"]
    frames = [image] if image.ndim == 3 else list(image[..., 0].unbind(2))
    queries = torch.cat([golden_queries(frame, ids, mask, projection) for frame in frames], dim=1)
    with torch.no_grad():
        prompt = model.get_input_embeddings()(fixture["prompt_ids"])
    ones = torch.ones(queries.shape[:2], dtype=torch.long)
    return torch.cat([queries, prompt], dim=1), torch.cat([ones, fixture["prompt_attention_mask"]], dim=1)


def candidate_lists(fixture: dict[str, Tensor], prefix: str, drop: Callable[[list[int]], list[int]]) -> list[list[int]]:
    ids, mask = fixture[f"{prefix}candidate_ids"], fixture[f"{prefix}candidate_attention_mask"].bool()
    return [drop(row[kept].tolist()) for row, kept in zip(ids, mask, strict=True)]


def recorded(fixture: dict[str, Tensor], prefix: str) -> Tensor:
    parts = [key for key in fixture if key.startswith(prefix) and key.endswith(".sum_nll")]
    return torch.cat([fixture[key] for key in sorted(parts)], dim=1)


def check_recorded(scores: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(-scores, expected, atol=1e-4, rtol=0)


@needs_golden
def test_vicuna_sums_and_ranks_equal_lavis() -> None:
    fixture, model = load_file(GOLDEN / "vicuna_predict.safetensors"), golden_vicuna()
    prefix = golden_prefix("vicuna", model, fixture["image"])
    found = {}
    for kind in ("", "flip."):
        candidates = candidate_lists(fixture, kind, lambda row: row[1:])
        found[kind] = torch.stack(score_candidates(model, *prefix, CandidateTrie.build(candidates)))
        for segments in ("ns1", "ns2", "ns3"):
            if f"{kind}{segments}.ranks" in fixture:
                check_recorded(found[kind], recorded(fixture, f"{kind}{segments}."))
        assert torch.equal((-found[kind]).argsort(dim=-1), fixture[f"{kind}ns1.ranks"])
    order = fixture["sorted.order"]
    check_recorded(found[""][:, order], recorded(fixture, "sorted.ns1."))
    check_recorded(found[""][:, order], recorded(fixture, "sorted.ns2."))
    assert torch.equal((-found[""][:, order]).argsort(dim=-1), fixture["sorted.ns1.ranks"])
    # Several segments change LAVIS's own order, because each divides by its own row length; a plain sum has none.
    assert not torch.equal((-found["flip."]).argsort(dim=-1), fixture["flip.ns2.ranks"])


@needs_golden
def test_vicuna_video_equals_lavis() -> None:
    fixture, model = load_file(GOLDEN / "vicuna_predict.safetensors"), golden_vicuna()
    video = load_file(GOLDEN / "vicuna_predict_video.safetensors")
    candidates = candidate_lists(fixture, "", lambda row: row[1:])
    prefix = golden_prefix("vicuna", model, video["image"])
    scores = torch.stack(score_candidates(model, *prefix, CandidateTrie.build(candidates)))
    check_recorded(scores, recorded(video, "ns1."))
    assert torch.equal((-scores).argsort(dim=-1), video["ns1.ranks"])


@needs_golden
def test_vicuna_lists_a_question_equal_lavis() -> None:
    fixture, model = load_file(GOLDEN / "vicuna_predict.safetensors"), golden_vicuna()
    notes = json.loads((GOLDEN / "vicuna_predict.json").read_text())
    names, lists = notes["candidates"], notes["list_of_lists"]["candidates"]
    tokens = candidate_lists(fixture, "", lambda row: row[1:])
    embeds, mask = golden_prefix("vicuna", model, fixture["image"])
    chosen = [[names.index(name) for name in row] for row in lists]
    tries = [CandidateTrie.build([tokens[index] for index in row]) for row in chosen]
    scores = score_candidates(model, embeds, mask, tries)
    check_recorded(scores[0][None], recorded(fixture, "ns1.")[:1, chosen[0]])
    check_recorded(scores[1][None], recorded(fixture, "ns1.")[1:, chosen[1]])
    assert (-scores[0]).argsort().tolist() == notes["list_of_lists"]["ranks"][0]


@needs_golden
def test_t5_sums_and_ranks_equal_lavis() -> None:
    fixture, model = load_file(GOLDEN / "t5_predict.safetensors"), golden_t5()
    candidates = candidate_lists(fixture, "", lambda row: row[:-1])
    trie = CandidateTrie.build(candidates, end_token=1)
    scores = torch.stack(score_candidates(model, *golden_prefix("t5", model, fixture["image"]), trie))
    for segments in ("ns1", "ns2", "ns3"):
        check_recorded(scores, recorded(fixture, f"{segments}."))
        assert torch.equal((-scores).argsort(dim=-1), fixture[f"{segments}.ranks"])
    names = json.loads((GOLDEN / "t5_predict.json").read_text())
    order = [names["candidates"].index(name) for name in names["sorted_candidates"]]
    check_recorded(scores[:, order], fixture["sorted.ns1.all_losses"])
    assert torch.equal((-scores[:, order]).argsort(dim=-1), fixture["sorted.ns1.ranks"])


@needs_golden
def test_t5_video_equals_lavis() -> None:
    fixture, model = load_file(GOLDEN / "t5_predict.safetensors"), golden_t5()
    video = load_file(GOLDEN / "vicuna_predict_video.safetensors")["image"]
    trie = CandidateTrie.build(candidate_lists(fixture, "", lambda row: row[:-1]), end_token=1)
    scores = torch.stack(score_candidates(model, *golden_prefix("t5", model, video), trie))
    check_recorded(scores, fixture["video.ns1.all_losses"])
    assert torch.equal((-scores).argsort(dim=-1), fixture["video.ns1.ranks"])
