"""Batches shaped as the paper's mixture: which datasets, how many questions an image, how many tokens.

Probabilities are the pure square-root ones of the 13 held-in sets. Questions an image follow from the releases' sizes:
443,757 / 82,783 for VQAv2, 5 captions for COCO and TextCaps, 1,002,146 / 207,572 for OCR-VQA, 17,056 / 16,540 for
A-OKVQA, 4.4 turns for a LLaVA conversation (each turn is an example, the turns before it are its history); web
captions, OKVQA and the other LLaVA sets have one. Lengths are (least, most frequent, most) tokens of a
32,000-word vocabulary, at 1.2 tokens a word or mark, by the first records of the releases and the training templates:
short answers have 1 to 3 tokens, captions 8 to 20, LLaVA's descriptions 75 to 145 and reasonings 100 to 215.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import InstructBlipConfig

from instructkit.models.batches import IGNORED, padded, share_images

Range = tuple[int, int, int]
END = 2


class Shape(NamedTuple):
    """A dataset: probability of an example, questions an image, tokens of instruction and answer (end token in)."""

    probability: float
    questions: float
    instruction: Range
    answer: Range


MIXTURE = {
    "web_capfilt": Shape(0.457, 1.0, (8, 12, 18), (8, 11, 20)),
    "ocrvqa": Shape(0.110, 4.83, (10, 16, 26), (2, 3, 20)),
    "coco_caption": Shape(0.092, 5.0, (8, 12, 18), (9, 13, 22)),
    "vqav2": Shape(0.082, 5.36, (7, 15, 26), (2, 2, 5)),
    "vqg_vqav2": Shape(0.082, 5.36, (9, 17, 28), (7, 9, 15)),
    "textcaps": Shape(0.041, 5.0, (12, 16, 24), (10, 15, 30)),
    "llava_reasoning": Shape(0.034, 1.0, (10, 16, 26), (100, 140, 215)),
    "llava_conversation": Shape(0.030, 4.4, (9, 60, 128), (9, 18, 45)),
    "llava_detail": Shape(0.019, 1.0, (8, 11, 20), (75, 105, 145)),
    "aokvqa": Shape(0.016, 1.03, (8, 17, 28), (2, 2, 5)),
    "vqg_aokvqa": Shape(0.016, 1.03, (9, 18, 30), (7, 11, 18)),
    "okvqa": Shape(0.012, 1.0, (8, 16, 28), (2, 2, 5)),
    "vqg_okvqa": Shape(0.012, 1.0, (9, 17, 30), (7, 10, 17)),
}


class Row(NamedTuple):
    """One example: its image's number and its tokens."""

    image: int
    qformer: list[int]
    instruction: list[int]
    answer: list[int]


def draw_batches(batches: int, groups: int, config: InstructBlipConfig, seed: int = 0) -> list[list[Row]]:
    """Batches of `groups` images with their questions.

    Which datasets come is drawn systematically: over the whole run each has its share, up to one group.
    """
    random = Random(seed)
    chances = [shape.probability / shape.questions for shape in MIXTURE.values()]
    sampled = _systematic(chances, batches * groups, random)
    words, qformer_words = config.text_config.vocab_size, config.qformer_config.vocab_size
    rows: list[list[Row]] = []
    for image, name in enumerate(sampled):
        shape = MIXTURE[name]
        whole = int(shape.questions)
        group = []
        for _ in range(whole + (random.random() < shape.questions - whole)):
            instruction, answer = (round(random.triangular(low, high, mode)) for low, mode, high in shape[2:])
            group.append(
                Row(
                    image,
                    [random.randrange(5, qformer_words) for _ in range(instruction)],
                    [random.randrange(5, words - 1) for _ in range(instruction)],
                    [*(random.randrange(5, words - 1) for _ in range(answer - 1)), END],
                )
            )
        rows.append(group)
    return [[row for group in rows[start::batches] for row in group] for start in range(batches)]


def _systematic(chances: Sequence[float], count: int, random: Random) -> list[str]:
    """So many names, each as often as its chance demands, in random order."""
    total, start = sum(chances), random.random()
    bounds, names = [], list(MIXTURE)
    reached = 0.0
    for chance in chances:
        reached += chance / total * count
        bounds.append(reached)
    drawn = [next(name for name, bound in zip(names, bounds, strict=True) if i + start < bound) for i in range(count)]
    random.shuffle(drawn)
    return drawn


def pixels(images: Sequence[int], size: int) -> Tensor:
    """A random picture for each number, the same whenever it is asked for: `[images, 3, size, size]`."""
    return torch.stack([torch.randn(3, size, size, generator=torch.Generator().manual_seed(i)) for i in images])


def texts(rows: Sequence[Row], config: InstructBlipConfig) -> dict[str, Tensor]:
    """Padded texts in transformers' names; decoder-only LLMs read image tokens, instruction, answer."""
    decoder_only = config.use_decoder_only_language_model
    image = [config.image_token_index] * config.num_query_tokens
    ids = [image + row.instruction + (row.answer if decoder_only else []) for row in rows]
    before = [[IGNORED] * (len(image) + len(row.instruction)) if decoder_only else [] for row in rows]
    return {
        "input_ids": padded(ids, 0),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
        "labels": padded([left + row.answer for left, row in zip(before, rows, strict=True)], IGNORED),
        "qformer_input_ids": padded([row.qformer for row in rows], 0),
        "qformer_attention_mask": padded([[1] * len(row.qformer) for row in rows], 0),
    }


def usual_batch(rows: Sequence[Row], config: InstructBlipConfig) -> dict[str, Tensor]:
    """The usual collator: an image a row, all texts padded to the longest."""
    return {"pixel_values": pixels([row.image for row in rows], config.vision_config.image_size), **texts(rows, config)}


def shared_batch(rows: Sequence[Row], config: InstructBlipConfig) -> dict[str, Tensor]:
    """As `instructkit.models.batches`: distinct images, and which row reads which."""
    distinct, sharing = share_images([[row.image] for row in rows])
    return {"pixel_values": pixels(distinct, config.vision_config.image_size), **sharing, **texts(rows, config)}
