"""Training steps: transformers' InstructBLIP with the usual collator against ours, on the paper's mixture.

    python -m tests.benchmarks.training                       # CPU, some minutes on two cores
    python -m tests.benchmarks.training --device cuda --shape vicuna-7b --groups 64 --steps 8

Both sides start from the same weights, read the same examples in the same batches and take the same optimizer steps
(frozen image encoder and LLM; Q-Former, projection and feature layer norm trained, AdamW); their losses are compared.
The usual side: an image a row, every text padded to the longest, logits at every position, as
`InstructBlipForConditionalGeneration.forward(labels=...)` gives its loss. Ours: `InstructBlip.answer_loss`. Each side
runs in a process of its own, so that its peak memory is its own; drawing the examples is in neither time, collating in
both. Then every switch is turned off in turn, and the feature cache on: files of the image encoder's features, read in
the time of a step. The last line is JSON.

The CPU model has some 90M parameters with the paper's proportions: image encoder and LLM cost 1 : 3 for a short sample
(60 tokens, gradient with respect to the activations included), 32 queries, vocabulary of 32,000.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
)

from instructkit.config.settings import ThroughputConfig, TowersConfig
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.presets import preset
from instructkit.models.towers import prepare_towers
from instructkit.training.features import keep
from tests.benchmarks.mixture import Row, draw_batches, shared_batch, usual_batch

SWITCHES = ("share_images", "share_keys", "packing", "answers_only")
CACHE = "feature_cache"
USUAL = "transformers"
OURS = "instructkit"


def small() -> InstructBlipConfig:
    """The model for CPUs."""
    return InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(
            hidden_size=256, intermediate_size=1024, num_hidden_layers=9, num_attention_heads=4
        ),
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=30_523,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=2,
            max_position_embeddings=128,
            encoder_hidden_size=256,
        ),
        text_config=AutoConfig.for_model(
            "llama",
            vocab_size=32_000,
            hidden_size=512,
            intermediate_size=1376,
            num_hidden_layers=14,
            num_attention_heads=8,
            pad_token_id=0,
        ),
        num_query_tokens=32,
        image_token_index=31_999,
    )


def configuration(shape: str) -> InstructBlipConfig:
    """A model's configuration, without dropout so that losses can be compared."""
    config = small() if shape == "small" else preset(shape)
    if shape != "small":
        # Usual collators put a token of the vocabulary where the queries go.
        config.image_token_index = config.text_config.vocab_size - 1
    config.qformer_config.hidden_dropout_prob = config.qformer_config.attention_probs_dropout_prob = 0.0
    config.text_config.dropout_rate = 0.0
    return config


def make_model(side: str, config: InstructBlipConfig, device: torch.device) -> InstructBlipForConditionalGeneration:
    """The model of a side; weights are drawn in the same order on both."""
    kind = InstructBlipForConditionalGeneration if side == USUAL else InstructBlip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device.type == "cpu" else torch.bfloat16)
    with device:
        model = kind(config)
        torch.nn.init.normal_(model.query_tokens, std=0.02)
    torch.set_default_dtype(before)
    prepare_towers(model, TowersConfig())
    return model.train()


def run_side(side: str, switch: str | None, options: argparse.Namespace) -> dict[str, Any]:
    """Train the steps of one side and say how long they took and what they held."""
    device = torch.device(options.device)
    config = configuration(options.shape)
    batches = draw_batches(options.steps, options.groups, config)
    model: Any = make_model(side, config, device)
    if side == OURS:
        model.throughput = msgspec.structs.replace(
            ThroughputConfig(), **({switch: False} if switch in SWITCHES else {})
        )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    train_step(side, model, optimizer, batches[0][:3], config, device)
    with tempfile.TemporaryDirectory() as folder:
        kept: list[list[Path]] = [[] for _ in batches]
        if switch == CACHE:
            kept = [keep_features(model, rows, config, Path(folder) / str(at)) for at, rows in enumerate(batches)]
        cpu, began = time.process_time(), time.perf_counter()
        losses = [
            train_step(side, model, optimizer, rows, config, device, files)
            for rows, files in zip(batches, kept, strict=True)
        ]
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    return {
        "matrix_share": needed_work(model, config, batches) / seconds / matrix_peak(device),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak": peak_bytes(device),
        "samples": sum(map(len, batches)),
        "images": sum(len({row.image for row in rows}) for rows in batches),
        "targets": sum(len(row.answer) for rows in batches for row in rows),
        "losses": losses,
    }


def train_step(
    side: str,
    model: Any,
    optimizer: torch.optim.Optimizer,
    rows: list[Row],
    config: InstructBlipConfig,
    device: torch.device,
    kept: list[Path] | None = None,
) -> float:
    """One optimizer step; returns the loss a target token."""
    collate = usual_batch if side == USUAL else shared_batch
    batch = {name: tensor.to(device) for name, tensor in collate(rows, config).items()}
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    if kept:
        batch["pixel_values"] = batch["pixel_values"][:0]
        batch["image_patches"] = torch.stack([load_file(file)["patches"] for file in kept]).to(device)
        batch["image_order"] = torch.arange(len(kept), device=device)
    if side == USUAL:
        loss = model(**batch).loss
    else:
        answer = model(**batch)
        loss = answer.total / answer.tokens
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def keep_features(model: Any, rows: list[Row], config: InstructBlipConfig, folder: Path) -> list[Path]:
    """Write the image encoder's features of a batch's images, a file each, as a run with a feature cache does."""
    pixels = shared_batch(rows, config)["pixel_values"].to(model.device, model.dtype)
    files = [folder / f"{number}.safetensors" for number in range(len(pixels))]
    keep(files, model.encode_patches(pixels))
    return files


def needed_work(model: Any, config: InstructBlipConfig, batches: list[list[Row]]) -> float:
    """Multiplications and additions that no implementation can leave out, in FLOP; the Q-Former's few % not counted.

    Frozen towers: two a weight and token forward, and in the LLM two more for the gradient of what it reads.
    """
    rows = [row for batch in batches for row in batch]
    answers = sum(len(row.answer) for row in rows)
    read = sum(config.num_query_tokens + len(row.instruction) for row in rows)
    images = sum(len({row.image for row in batch}) for batch in batches)
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    llm = model.language_model
    head = llm.get_output_embeddings().weight.numel()
    if config.use_decoder_only_language_model:
        texts = (_size(llm) - head - llm.get_input_embeddings().weight.numel()) * (read + answers)
    else:
        words = llm.get_input_embeddings().weight.numel()
        texts = (_size(llm.encoder) - words) * read + (_size(llm.decoder) - words) * answers
    return 2.0 * _size(model.vision_model) * patches * images + 4.0 * (texts + head * answers)


def _size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def matrix_peak(device: torch.device) -> float:
    """FLOP/s of a large matrix product on this machine, in the precision of the weights."""
    width, dtype = (2048, torch.float32) if device.type == "cpu" else (8192, torch.bfloat16)
    left, right = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(6):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2.0 * width**3 / min(times)


def peak_bytes(device: torch.device) -> int:
    """Most memory that was held at once, by this process or on the device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(side: str, switch: str | None, words: list[str]) -> dict[str, Any]:
    """Run a side in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.training", *words, "--side", side]
    done = subprocess.run(
        [*command, *(["--switch", switch] if switch else [])], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def line(name: str, measured: dict[str, Any], full: dict[str, Any]) -> str:
    """A side's figures and how they stand to those with every switch on."""
    times = {key: measured[key] / full[key] for key in ("seconds", "cpu_seconds", "peak")}
    return (
        f"{name:<34} {measured['samples'] / measured['seconds']:8.2f} samples/s {measured['peak'] / 2**30:7.2f} GiB  "
        f"time x {times['seconds']:.2f} (CPU x {times['cpu_seconds']:.2f})  memory x {times['peak']:.2f}"
    )


def compare(words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Run both sides and every switch off in turn."""
    full = measure(OURS, None, words)
    print(
        f"{options.shape} on {options.device}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}: "
        f"{options.steps} steps, {full['samples']} samples over {full['images']} images, "
        f"{full['targets']} target tokens"
    )
    print(line("ours, every switch on", full, full), flush=True)
    usual = measure(USUAL, None, words)
    print(line("transformers, usual collator", usual, full), flush=True)
    worst = max(abs(a - b) / b for a, b in zip(full["losses"], usual["losses"], strict=True))
    print(f"losses differ by at most {worst:.1e} of their size, {full['losses'][-1]:.4f} at the last step")
    if worst > (1e-3 if options.device == "cpu" else 2e-2):
        raise SystemExit(f"the losses differ: {full['losses']} and {usual['losses']}")
    switches = {}
    for off in () if options.quick else SWITCHES:
        without = measure(OURS, off, words)
        switches[off] = round(without["seconds"] / full["seconds"], 3)
        print(line(f"ours without {off}", without, full), flush=True)
    if not options.quick:
        cached = measure(OURS, CACHE, words)
        switches[CACHE] = round(cached["seconds"] / full["seconds"], 3)
        print(line(f"ours with {CACHE}", cached, full), flush=True)
    return {
        "throughput_ratio": round(usual["seconds"] / full["seconds"], 3),
        "memory_ratio": round(full["peak"] / usual["peak"], 3),
        "matrix_share": round(full["matrix_share"], 3),
        "cpu_time_ratio": round(usual["cpu_seconds"] / full["cpu_seconds"], 3),
        "samples_per_second": round(full["samples"] / full["seconds"], 2),
        "usual_samples_per_second": round(usual["samples"] / usual["seconds"], 2),
        "time_switched": switches,
        "samples": full["samples"],
        "loss_difference": worst,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shape", default="small", choices=["small", "vicuna-7b", "vicuna-13b", "flan-t5-xl"])
    parser.add_argument("--groups", type=int, default=32, help="images a step")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="leave out the switches")
    parser.add_argument("--side", choices=[USUAL, OURS], help=argparse.SUPPRESS)
    parser.add_argument("--switch", choices=[*SWITCHES, CACHE], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(run_side(options.side, options.switch, options)))
    else:
        print(json.dumps(compare(sys.argv[1:], options)))


if __name__ == "__main__":
    main()
