"""Generated answers: beams that share their prefix against transformers' beams, in a batch and one question at a time.

    python -m tests.benchmarks.generation [--rows 16] [--rounds 3]

Three sides answer the same questions with five beams, on the model of 90M parameters of `tests.benchmarks.training`;
each encodes the pictures, asks the Q-Former and generates, and all texts must be equal.

- ours: all questions in a batch, their beams over one prefix.
- batched: the same batch through transformers' `generate`, in which every beam reads picture and prompt itself.
- loop: one question at a time through transformers' `generate`, its picture encoded anew. Only every fourth question is
  run, and the time scaled.

Every question has a picture of its own (a video: four), so nothing is gained by sharing pictures. Short answers are 10
tokens after 52, of videos 10 after 150, captions 30 after 44. The sides take turns; a side's time is the median over
the rounds of its CPU seconds on one thread, since the machine may be busy. Before the times stands the work that no
implementation can leave out, with what each side does besides. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from instructkit.evaluation import generate
from instructkit.models.batches import share_images
from instructkit.prompts.protocols import Decoding
from tests.benchmarks.mixture import pixels
from tests.benchmarks.training import OURS, configuration, make_model

BEAMS, END, PAD = 5, 2, 0
LOOPED = 4
"""The loop runs one question of so many."""


@dataclass(frozen=True)
class Case:
    """A benchmark's shape: pictures and instruction before the answer, and its tokens."""

    pictures: int
    instruction: int
    answer: int
    length_penalty: float

    @property
    def decoding(self) -> Decoding:
        """Beams that all write as many tokens."""
        return Decoding(
            num_beams=BEAMS,
            length_penalty=self.length_penalty,
            min_new_tokens=self.answer,
            max_new_tokens=self.answer,
            repetition_penalty=1.5,
        )


CASES = {"short": Case(1, 20, 10, -1.0), "video": Case(4, 22, 10, -1.0), "caption": Case(1, 12, 30, 1.0)}

Side = Callable[[nn.Module, Tensor, Tensor, Decoding], Tensor]


def questions(case: Case, rows: int, config: Any) -> list[tuple[list[int], list[int], list[int]]]:
    """Numbers of the pictures, tokens of the LLM and of the Q-Former of each question."""
    random = Random(0)
    image = [config.image_token_index] * config.num_query_tokens * case.pictures
    return [
        (
            [row * case.pictures + picture for picture in range(case.pictures)],
            image + [random.randrange(5, config.text_config.vocab_size - 1) for _ in range(case.instruction)],
            [random.randrange(5, config.qformer_config.vocab_size) for _ in range(case.instruction)],
        )
        for row in range(rows)
    ]


@torch.no_grad()
def answers(model: Any, asked: list[Any], case: Case, side: Side) -> list[list[int]]:
    """Encode the pictures, ask the Q-Former, generate."""
    distinct, sharing = share_images([numbers for numbers, _, _ in asked])
    ids, words = (torch.tensor([question[part] for question in asked]) for part in (1, 2))
    embeds = model.prefix(
        pixel_values=pixels(distinct, model.config.vision_config.image_size),
        **sharing,
        qformer_input_ids=words,
        qformer_attention_mask=torch.ones_like(words),
        input_ids=ids,
    )
    found: list[list[int]] = side(model.language_model, embeds, torch.ones_like(ids), case.decoding).tolist()
    return found


def shared(model: Any, embeds: Tensor, mask: Tensor, decoding: Decoding) -> Tensor:
    return generate.generate_ids(model, embeds, mask, decoding, end=END, pad=PAD)


def plain(model: Any, embeds: Tensor, mask: Tensor, decoding: Decoding) -> Tensor:
    return generate._plain_ids(model, embeds, mask, decoding, end=END, pad=PAD, streamer=None)


def floor(model: Any, case: Case, config: Any) -> dict[str, float]:
    """GFLOP a question in the linear layers of image encoder and LLM, and what reading the prefix once a beam costs."""
    vision = config.vision_config
    encoder = sum(p.numel() for p in model.vision_model.parameters())
    llm = model.language_model
    head = llm.get_output_embeddings().weight.numel()
    layers = sum(p.numel() for p in llm.base_model.layers.parameters())
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    pictures = encoder * patches * case.pictures
    read = layers * (config.num_query_tokens * case.pictures + case.instruction)
    steps = BEAMS * (case.answer - 1) * (layers + head)
    return {
        "pictures": 2e-9 * pictures,
        "prefix": 2e-9 * (read + head),
        "beams": 2e-9 * steps,
        "ratio": (pictures + BEAMS * (read + head) + steps) / (pictures + read + head + steps),
    }


def timed(work: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def compare(name: str, model: Any, rows: int, rounds: int) -> dict[str, float]:
    """Let the sides take turns and print what they needed."""
    case, config = CASES[name], model.config
    asked = questions(case, rows, config)
    some = asked[::LOOPED]
    work = floor(model, case, config)
    print(
        f"{name}: {len(asked[0][1])} tokens, then {case.answer}; GFLOP a question at least: pictures "
        f"{work['pictures']:.1f}, prefix {work['prefix']:.1f}, beams {work['beams']:.1f}; "
        f"batched does {work['ratio']:.2f} times that",
        flush=True,
    )
    sides: dict[str, Callable[[], list[list[int]]]] = {
        "ours": lambda: answers(model, asked, case, shared),
        "batched": lambda: answers(model, asked, case, plain),
        "loop": lambda: [answers(model, [question], case, plain)[0] for question in some],
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        texts = {}
        for side, run in sides.items():
            seconds, texts[side] = timed(run)
            times[side].append(seconds * (rows / len(some) if side == "loop" else 1))
        if texts["ours"] != texts["batched"] or texts["ours"][::LOOPED] != texts["loop"]:
            raise SystemExit(f"{name}: the texts differ: {texts}")
    middle = {side: statistics.median(found) for side, found in times.items()}
    least = work["pictures"] + work["prefix"] + work["beams"]
    print(
        "  "
        + ", ".join(f"{side} {seconds / rows:.3f}" for side, seconds in middle.items())
        + f" s a question; ours at {least * rows / middle['ours']:.0f} GFLOP/s of what is needed",
        flush=True,
    )
    return {f"{side}_ratio": round(middle[side] / middle["ours"], 2) for side in ("batched", "loop")}


def main() -> None:
    """Print the figures of the three shapes and, last, the ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16, help="questions of a batch")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    # On a busy machine threads that wait for each other would be most of a side's time.
    torch.set_num_threads(1)
    model = make_model(OURS, configuration("small"), torch.device("cpu")).eval()
    with torch.no_grad():
        # Random weights give all words nearly the same score; a larger head keeps roundings from choosing between them.
        model.language_model.get_output_embeddings().weight.mul_(20)
    found = {name: compare(name, model, options.rows, options.rounds) for name in CASES}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
