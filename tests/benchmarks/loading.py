"""What workers bring: how long a device waits for batches of photographs, by number of workers.

    python -m tests.benchmarks.loading [--workers 0 1 2] [--step 0.4]

Photographs of COCO's size (640 x 480, JPEG) in batches of 32, cropped and scaled to 224 x 224, with instructions in
both readers' tokens, as `TrainingData.loader` gives them to a training run. The device is a sleep of `--step` seconds,
which leaves the cores to the workers as a GPU does. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from instructkit.conversion.convert import convert
from instructkit.data.dataset import load_examples
from instructkit.training.data import Part, TrainingData
from tests.tiny import tiny_model

PICTURES, BATCH, STEPS = 256, 32, 12


def write_release(folder: Path) -> None:
    """Pictures with structure at every scale, so that JPEG has as much to decode as in a photograph."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    lines = []
    for number in range(PICTURES):
        layers = [Image.fromarray(draw.integers(0, 256, (480 // s, 640 // s, 3), dtype=np.uint8)) for s in (4, 16, 80)]
        parts = [np.asarray(layer.resize((640, 480), Image.Resampling.BICUBIC), dtype=np.float32) for layer in layers]
        Image.fromarray((0.2 * parts[0] + 0.3 * parts[1] + 0.5 * parts[2]).astype(np.uint8)).save(
            folder / f"{number}.jpg", quality=90
        )
        lines.append({"image": f"{number}.jpg", "instruction": f"What is in picture {number}?", "answer": "noise"})
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def measure(data: TrainingData, workers: int, step: float) -> dict[str, float]:
    """Share of the time that the device waited, and images a second, once the first batch is there."""
    batches = iter(data.loader(0, STEPS + 1, workers))
    next(batches)
    began, waited = time.perf_counter(), 0.0
    for _ in range(STEPS):
        time.sleep(step)
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
    seconds = time.perf_counter() - began
    return {"waiting": round(waited / seconds, 3), "images_per_second": round(STEPS * BATCH / seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--step", type=float, default=0.4, help="seconds of the device's step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        write_release(Path(scratch) / "raw")
        folder = convert("jsonl", Path(scratch) / "raw", Path(scratch) / "data", split="train").folder
        examples = load_examples(folder)
        part = Part("jsonl", examples, "llava", Path(examples.manifest.media_root))
        _, texts = tiny_model()
        data = TrainingData([part], texts, 224, groups=BATCH, augment=True)
        began = time.perf_counter()
        data[0]
        alone = time.perf_counter() - began
        size = sum(file.stat().st_size for file in Path(scratch, "raw").glob("*.jpg")) / PICTURES
        print(
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {size / 1024:.0f} KiB a picture; a batch of "
            f"{BATCH} takes one core {alone:.2f} s, the device {options.step:.2f} s"
        )
        results = {}
        for workers in options.workers:
            results[workers] = measure(data, workers, options.step)
            waiting, rate = results[workers].values()
            print(f"workers={workers}: the device waits {waiting:.1%} of the time, {rate:.0f} images/s", flush=True)
        print(json.dumps({"batch_seconds": round(alone, 3), "workers": results}))


if __name__ == "__main__":
    main()
