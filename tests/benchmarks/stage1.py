"""Steps of BLIP-2's first stage: the plain form, as LAVIS computes it, against ours.

    python -m tests.benchmarks.stage1                       # CPU, some minutes on two cores
    python -m tests.benchmarks.stage1 --device cuda --shape vit-g --pairs 100 --steps 8

Both sides start from the same weights, read the same pairs, judge the same negatives and take the same optimizer steps
(AdamW over Q-Former, heads and feature layer norm); their losses are compared. The encoder's outputs are given: 257
patches an image. Captions have 4 to 32 tokens, 12 on average, as COCO's. The plain side pads every text to 32, runs
separate passes for queries, texts, matches and writing (the last over the kept keys of the queries), projects each
row's image to keys and values anew, and all places onto the vocabulary. Ours is `Blip2Pretraining.pretrain` under
`PretrainingObjective`. Each side runs in a process of its own, so that its peak memory is its own. The last line is
JSON.

The CPU model is half as wide as BERT-base and ViT-g, with BERT's 12 layers, 32 queries and 30,523 words.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig

from instructkit.config.settings import TowersConfig
from instructkit.models.batches import CAPTION_TOKENS, padded
from instructkit.models.blip2 import Blip2Pretraining, similarity
from instructkit.models.towers import prepare_towers
from instructkit.training.data import Batch
from instructkit.training.pretraining import PretrainingObjective, draw
from tests.benchmarks.training import peak_bytes

PATCHES, WORDS = 257, 30_523
PLAIN, OURS = "plain", "instructkit"
SHAPES = {
    "tiny": {"width": 64, "inner": 128, "heads": 2, "layers": 2, "vision": 96},
    "small": {"width": 384, "inner": 1536, "heads": 6, "layers": 12, "vision": 704},
    "vit-g": {"width": 768, "inner": 3072, "heads": 12, "layers": 12, "vision": 1408},
}


def make_model(shape: str, device: torch.device) -> Blip2Pretraining:
    """A model whose image encoder is never run; without dropout, so that losses can be compared."""
    size = SHAPES[shape]
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=size["vision"], intermediate_size=8, num_hidden_layers=0, num_attention_heads=2, image_size=14
        ),
        qformer_config=Blip2QFormerConfig(
            vocab_size=WORDS,
            hidden_size=size["width"],
            intermediate_size=size["inner"],
            num_hidden_layers=size["layers"],
            num_attention_heads=size["heads"],
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            use_qformer_text_input=True,
        ),
        num_query_tokens=32,
    )
    config.dec_token_id = WORDS - 1
    torch.manual_seed(0)
    model = Blip2Pretraining(config)
    nn.init.normal_(model.query_tokens, std=0.02)
    prepare_towers(model, TowersConfig())
    return model.to(device, torch.float32 if device.type == "cpu" else torch.bfloat16).train()


def draw_batches(steps: int, pairs: int, width: int) -> list[Batch]:
    """Random features, captions of real lengths and random words."""
    random, noise = Random(0), torch.Generator().manual_seed(0)
    batches = []
    for _ in range(steps):
        lengths = [min(CAPTION_TOKENS, max(4, round(random.gauss(12, 2.5)))) for _ in range(pairs)]
        texts = [[101, *(random.randrange(1000, 30_000) for _ in range(length - 2)), 102] for length in lengths]
        inputs = {
            "pixel_values": torch.empty(0, 3, 14, 14),
            "image_patches": torch.randn(pairs, PATCHES, width, generator=noise),
            "image_order": torch.arange(pairs),
            "input_ids": padded(texts, 0),
            "attention_mask": padded([[1] * length for length in lengths], 0),
            "image_ids": torch.arange(pairs),
            "chances": torch.rand(pairs, 2, generator=noise, dtype=torch.float64),
        }
        batches.append(Batch(inputs, [""] * pairs, [""] * pairs))
    return batches


def our_losses(model: Blip2Pretraining, batch: Batch) -> list[Tensor]:
    return [each.total / each.count for each in PretrainingObjective()(model, batch).values()]


# --- the plain form

Past = list[tuple[Tensor, Tensor]]


def heads(module: Any, states: Tensor) -> Tensor:
    return states.unflatten(-1, (module.num_attention_heads, -1)).transpose(1, 2)


def attention(block: Any, states: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    query = heads(block.attention, block.attention.query(states))
    seen = nn.functional.scaled_dot_product_attention(query, key, value, mask)
    out: Tensor = block.output(seen.transpose(1, 2).flatten(2), states)
    return out


def plain_pass(
    model: Any, states: Tensor, queries: int, mask: Tensor | None, images: Tensor | None, past: Past | None = None
) -> tuple[Tensor, Past]:
    """The Q-Former over padded rows, `[rows, places, width]`; also its keys and values in each layer."""
    states = model.qformer.layernorm(states)
    kept: Past = []
    for number, layer in enumerate(model.qformer.encoder.layer):
        own = layer.attention.attention
        key, value = heads(own, own.key(states)), heads(own, own.value(states))
        kept.append((key, value))
        if past is not None:
            key, value = (torch.cat(both, dim=2) for both in zip(past[number], (key, value), strict=True))
        states = attention(layer.attention, states, key, value, mask)
        read, text = states[:, :queries], states[:, queries:]
        if queries and layer.has_cross_attention:
            cross = layer.crossattention.attention
            key, value = heads(cross, cross.key(images)), heads(cross, cross.value(images))
            read = attention(layer.crossattention, read, key, value, None)
        parts = ([layer.feed_forward_chunk_query(read)] if queries else []) + (
            [layer.feed_forward_chunk(text)] if text.shape[1] else []
        )
        states = torch.cat(parts, dim=1)
    return states, kept


def plain_losses(model: Any, batch: Batch) -> list[Tensor]:
    inputs = batch.inputs
    pairs = len(inputs["input_ids"])
    norm = model.vision_model.post_layernorm
    images = norm(inputs["image_patches"].to(norm.weight.dtype))
    room = (0, CAPTION_TOKENS - inputs["input_ids"].shape[1])
    ids, text = (nn.functional.pad(inputs[name], room) for name in ("input_ids", "attention_mask"))
    text = text.bool()
    queries = model.query_tokens.expand(pairs, -1, -1)
    count = queries.shape[1]

    def words(tokens: Tensor) -> Tensor:
        embedded: Tensor = model.embeddings(input_ids=tokens)
        return embedded

    read, past = plain_pass(model, queries, count, None, images)
    seen = nn.functional.normalize(model.vision_projection(read).float(), dim=-1)
    said = plain_pass(model, words(ids), 0, text[:, None, None], None)[0][:, 0]
    said = nn.functional.normalize(model.text_projection(said).float(), dim=-1)
    to_texts = similarity(seen, said.detach()) / model.temperature
    to_images = similarity(seen.detach(), said).T / model.temperature
    own = torch.arange(pairs, device=ids.device)
    itc = sum(nn.functional.cross_entropy(scores, own, label_smoothing=0.1) for scores in (to_texts, to_images)) / 2

    same = torch.eye(pairs, dtype=torch.bool, device=ids.device)
    image = draw(to_images, same, inputs["chances"][:, 0])
    wrong = draw(to_texts, same, inputs["chances"][:, 1])
    rows = torch.cat([own, own, wrong])
    judged = torch.cat([images, images[image], images])
    both = torch.cat([model.query_tokens.expand(3 * pairs, -1, -1), words(ids[rows])], dim=1)
    mask = torch.cat([text.new_ones(3 * pairs, count), text[rows]], dim=1)[:, None, None]
    matches = model.itm_head(plain_pass(model, both, count, mask, judged)[0][:, :count]).mean(1).float()
    labels = torch.cat([torch.ones_like(own), torch.zeros_like(own), torch.zeros_like(own)])
    itm = nn.functional.cross_entropy(matches, labels)

    begun = ids.clone()
    begun[:, 0] = model.config.dec_token_id
    causal = torch.ones(CAPTION_TOKENS, CAPTION_TOKENS, dtype=torch.bool, device=ids.device).tril()
    told = torch.cat([text.new_ones(pairs, 1, CAPTION_TOKENS, count), causal & text[:, None, None]], dim=3)
    states = plain_pass(model, words(begun), 0, told, None, past)[0]
    logits = model.itg_head(states, model.embeddings.word_embeddings.weight).float()[:, :-1]
    targets = ids.masked_fill(~text, -100)[:, 1:]
    itg = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=0.1)
    return [torch.as_tensor(itc), itm, itg]


# --- measuring


def run_side(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train the steps of one side and say how long they took and what they held."""
    device = torch.device(options.device)
    model = make_model(options.shape, device)
    batches = [
        batch.to(device) for batch in draw_batches(options.steps + 1, options.pairs, SHAPES[options.shape]["vision"])
    ]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    losses, began = [], 0.0
    for number, batch in enumerate(batches):
        if number == 1:  # the first step made the optimizer's state
            wait(device)
            began = time.perf_counter()
        each = (plain_losses if side == PLAIN else our_losses)(model, batch)
        torch.stack(each).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append([float(loss.detach()) for loss in each])
    wait(device)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak": peak_bytes(device), "losses": losses}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(side: str, words: list[str]) -> dict[str, Any]:
    """Run a side in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.stage1", *words, "--side", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def compare(words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Run both sides, the plain one between two runs of ours."""
    first, plain, second = (measure(side, words) for side in (OURS, PLAIN, OURS))
    ours = min(first, second, key=lambda each: each["seconds"])
    pairs = options.steps * options.pairs
    print(
        f"{options.shape} on {options.device}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}: "
        f"{options.steps} steps of {options.pairs} pairs"
    )
    for name, each in {"plain": plain, "ours": first, "ours again": second}.items():
        print(f"{name:<12} {pairs / each['seconds']:8.2f} pairs/s {each['peak'] / 2**30:7.2f} GiB")
    worst = max(
        abs(mine - theirs) / abs(theirs)
        for one, other in zip(ours["losses"], plain["losses"], strict=True)
        for mine, theirs in zip(one, other, strict=True)
    )
    print(f"losses differ by at most {worst:.1e} of their size; ITC, ITM, ITG at the last step: {ours['losses'][-1]}")
    if worst > (1e-3 if options.device == "cpu" else 2e-2):
        raise SystemExit(f"the losses differ: {ours['losses']} and {plain['losses']}")
    return {
        "throughput_ratio": round(plain["seconds"] / ours["seconds"], 3),
        "memory_ratio": round(max(first["peak"], second["peak"]) / plain["peak"], 3),
        "pairs_per_second": round(pairs / ours["seconds"], 2),
        "plain_pairs_per_second": round(pairs / plain["seconds"], 2),
        "loss_difference": worst,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shape", default="small", choices=list(SHAPES))
    parser.add_argument("--pairs", type=int, default=32, help="of image and caption a step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--side", choices=[PLAIN, OURS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options.side, options)))
    else:
        print(json.dumps(compare(sys.argv[1:], options)))


if __name__ == "__main__":
    main()
