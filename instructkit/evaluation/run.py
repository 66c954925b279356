"""The benchmarks of a finished training run: its saved model, every protocol, results in the run's folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from tqdm import tqdm

from instructkit.config import RunConfig
from instructkit.evaluation.benchmark import Evaluator, Result, evaluate_benchmark, load_vocabulary
from instructkit.examples import load_examples, write_atomically
from instructkit.models.saving import load_model
from instructkit.protocols import load_protocol


def evaluate_run(config: RunConfig, folder: Path, say: Callable[[str], None]) -> list[Result]:
    """Evaluate the model in `folder/model`; results lie in `folder/evaluation/<benchmark>/`."""
    model, texts = load_model(str(folder / "model"))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    evaluator = Evaluator(model, texts, model.config.vision_config.image_size)
    results = []
    for name in config.evaluation.benchmarks:
        protocol = load_protocol(name)
        root = Path(config.data.root)
        examples = load_examples(root / protocol.source / protocol.split)
        place = folder / "evaluation" / name
        (place / "responses.jsonl").unlink(missing_ok=True)
        began = time.monotonic()
        total = min(config.evaluation.limit or len(examples), len(examples))
        with tqdm(total=total, unit=" questions", desc=f"evaluate {name}") as bar:
            result = evaluate_benchmark(
                evaluator,
                protocol,
                examples,
                place,
                vocabulary=load_vocabulary(protocol, root),
                limit=config.evaluation.limit,
                batch_size=config.evaluation.eval_batch_size,
                progress=bar.update,
            )
        write_atomically(place / "result.json", msgspec.json.format(msgspec.json.encode(result)) + b"\n")
        seconds = time.monotonic() - began
        say(f"evaluate  {name}: {result.metric} {result.value:.2f} on {result.n:,} examples in {seconds:.0f} s")
        results.append(result)
    return results
