"""What ranking costs: LAVIS's way (one full row a candidate) against one packed trie, on the same random models.

    python -m tests.benchmarks.ranking [--all]

Both sides start from the same prefix embeddings, so the image and the Q-Former are out of both times. Rows run
through transformers' own forward with logits at every position and a loss without reduction, as LAVIS's
`predict_class` does; their candidates are padded to the longest of all, so every row costs the same, and where a
question has thousands only some rows are run and the time and the positions scaled (`--all` runs every row).
A question's own trie is built inside the measured time; MSVD-QA's, which all questions share, before it. The
candidates are drawn with the shape that English answers have under a vocabulary of 32,000: many words of one token,
and beginnings that several answers share. The last line is JSON, of the decoder-only model.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, T5Config, T5ForConditionalGeneration

from instructkit.evaluation.rank import score_candidates
from instructkit.evaluation.trie import CandidateTrie

VOCABULARY = 32_000
END = 1
# Rows of one forward: 8 to 32 were equally fast on two cores, 4 and 64 slower.
ROWS = 16
SAMPLED_ROWS = 320

Candidates = list[list[int]]


@dataclass(frozen=True)
class Case:
    """A benchmark's shape: tokens before the candidates, and the candidates."""

    prefix: int
    candidates: Candidates
    shared: bool


@dataclass(frozen=True)
class Measured:
    """Log-likelihoods, seconds (the median of several runs unless one is long) and token positions of one run."""

    scores: Tensor
    seconds: float
    positions: int


def draw_unique(count: int, lengths: list[int], pools: tuple[int, int], seed: int) -> Candidates:
    """Distinct candidates whose tokens follow Zipf's law: first tokens from one pool, later ones from another."""
    generator = torch.Generator().manual_seed(seed)
    pieces = [torch.randperm(VOCABULARY - 100, generator=generator)[:size] + 100 for size in pools]
    weights = [1 / torch.arange(1, size + 1) for size in pools]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        length = lengths[int(torch.randint(len(lengths), (1,), generator=generator))]
        pool = [0] + [1] * (length - 1)
        drawn = (int(pieces[i][torch.multinomial(weights[i], 1, generator=generator)]) for i in pool)
        found[tuple(drawn)] = None
    return [list(candidate) for candidate in found]


def msvd_qa() -> Case:
    """2,423 words: 60% of one token, the others begin and go on with common pieces; 4 frames of 32 queries."""
    words = torch.randperm(VOCABULARY - 100, generator=torch.Generator().manual_seed(0))[:1454] + 100
    pieces = draw_unique(969, [2, 2, 2, 3], (3000, 2000), seed=1)
    return Case(128 + 15, [[word] for word in words.tolist()] + pieces, shared=True)


def visdial() -> Case:
    """100 short answers to one question, many of which begin alike."""
    return Case(230, draw_unique(100, [1, 2, 3, 3, 4, 4, 5, 5, 6, 7], (60, 400), seed=2), shared=False)


def five_options() -> Case:
    """Five options of five tokens, none of which begins like another."""
    drawn = torch.randperm(VOCABULARY - 100, generator=torch.Generator().manual_seed(3))[:25] + 100
    return Case(80, drawn.view(5, 5).tolist(), shared=False)


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=12,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).eval()


def t5() -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=512,
        d_ff=1024,
        num_layers=4,
        num_heads=8,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config).eval()


@torch.no_grad()
def rows_of_decoder(model: PreTrainedModel, prefix: Tensor, candidates: Candidates) -> Tensor:
    scores = []
    for ids, real in batches(candidates):
        embeds = torch.cat([prefix.expand(len(ids), -1, -1), model.get_input_embeddings()(ids)], dim=1)
        before = torch.ones(len(ids), prefix.shape[1], dtype=torch.long)
        labels = torch.cat([before * -100, ids.masked_fill(~real, -100)], dim=1)
        mask = torch.cat([before, real.long()], dim=1)
        logits = model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
        scores.append(-token_losses(logits[:, :-1], labels[:, 1:]))
    return torch.cat(scores)


@torch.no_grad()
def rows_of_encoder_decoder(model: PreTrainedModel, prefix: Tensor, candidates: Candidates) -> Tensor:
    encoded = model.get_encoder()(inputs_embeds=prefix).last_hidden_state
    scores = []
    for ids, real in batches([[*candidate, END] for candidate in candidates]):
        labels = ids.masked_fill(~real, -100)
        repeated = (encoded.expand(len(ids), -1, -1),)
        logits = model(encoder_outputs=repeated, labels=labels, use_cache=False).logits
        scores.append(-token_losses(logits, labels))
    return torch.cat(scores)


def batches(rows: Candidates) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and what of them is real, `[ROWS, longest]`."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    real = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    yield from zip(ids.split(ROWS), real.split(ROWS), strict=True)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(labels.shape).sum(dim=1)


@contextmanager
def counting(model: PreTrainedModel) -> Iterator[list[int]]:
    """Token positions that enter the first layer of the decoder, and of the encoder where there is one."""
    seen: list[int] = []
    first = [m for name, m in model.named_modules() if name.endswith(("model.layers.0", "coder.block.0"))]
    hooks = [m.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[:2].numel())) for m in first]
    yield seen
    for hook in hooks:
        hook.remove()


def measure(model: PreTrainedModel, work: Callable[[], Tensor], least: float = 3.0) -> Measured:
    """Run the work once for the count, and for the time until `least` seconds have passed."""
    with counting(model) as tokens:
        start = time.perf_counter()
        scores = work()
        first = time.perf_counter() - start
    seconds = [first] if first > least else []
    while sum(seconds) < least:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return Measured(scores, statistics.median(seconds), sum(tokens))


def compare(name: str, model: PreTrainedModel, case: Case, sampled: int) -> dict[str, float]:
    """Run both sides on one question and print what they did."""
    coded = model.config.is_encoder_decoder
    end = END if coded else None
    prefix = torch.randn(1, case.prefix, model.config.hidden_size, generator=torch.Generator().manual_seed(4))
    mask = torch.ones(1, case.prefix, dtype=torch.long)
    built = CandidateTrie.build(case.candidates, end_token=end)
    every = -(-len(case.candidates) // sampled)
    longest_first = sorted(range(len(case.candidates)), key=lambda index: -len(case.candidates[index]))
    run = longest_first[::every]

    def packed() -> Tensor:
        trie = built if case.shared else CandidateTrie.build(case.candidates, end_token=end)
        return score_candidates(model, prefix, mask, trie)[0]

    def rows() -> Tensor:
        some = [case.candidates[index] for index in run]
        return (rows_of_encoder_decoder if coded else rows_of_decoder)(model, prefix, some)

    ours, theirs = measure(model, packed), measure(model, rows)
    once = case.prefix if coded else 0
    scale = len(case.candidates) / len(run)
    positions = once + round((theirs.positions - once) * scale)
    describe(name, model, case, built)
    print(f"  rows {theirs.seconds * scale:9.3f} s {positions:8d} positions; {len(run)} rows run")
    print(f"  trie {ours.seconds:9.3f} s {ours.positions:8d} positions; built in {built_in(case, end) * 1e3:.1f} ms")
    found = {
        "time_ratio": round(theirs.seconds * scale / ours.seconds, 2),
        "token_ratio": round(positions / ours.positions, 2),
        "max_difference": float(f"{(ours.scores[run] - theirs.scores).abs().max():.2e}"),
    }
    print(f"  {found}", flush=True)
    return found


def describe(name: str, model: PreTrainedModel, case: Case, trie: CandidateTrie) -> None:
    lengths = [len(candidate) for candidate in case.candidates]
    print(
        f"{type(model).__name__} {name}: {len(lengths)} candidates of {min(lengths)} to {max(lengths)} tokens "
        f"(mean {statistics.mean(lengths):.2f}, {lengths.count(1)} of one) after {case.prefix}; "
        f"the trie has {trie.edges} edges and {trie.states} states, each projected once"
    )


def built_in(case: Case, end: int | None) -> float:
    start = time.perf_counter()
    CandidateTrie.build(case.candidates, end_token=end)
    return time.perf_counter() - start


def main() -> None:
    """Print both models' figures and, last, the decoder's as JSON."""
    sampled = sys.maxsize if "--all" in sys.argv[1:] else SAMPLED_ROWS
    # On a busy machine threads that wait for each other would be most of the short side's time.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = {"msvd_qa": msvd_qa(), "visdial": visdial(), "five_options": five_options()}
    found: dict[str, dict[str, float]] = {}
    for model in (t5(), llama()):
        size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        print(f"{type(model).__name__}: {size:.0f}M parameters, one thread", flush=True)
        found = {name: compare(name, model, case, sampled) for name, case in cases.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
