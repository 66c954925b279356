"""Several runs of the recipe in one process group, with a look at what lives when the last evaluation begins.

As `runs.py`, without its look at the logits: nothing but the recipe may hold the model.
"""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path
from typing import Any

import torch.distributed as dist

from instructkit.evaluation import run as evaluation
from instructkit.models.load import bases
from instructkit.runs.ranks import start_ranks
from instructkit.training import meter
from tests.training.runs import recipe, train


def look_at_evaluation(instruct: Any) -> None:
    """Let a run write down what of the training still lives when the evaluation loads its model, and what it reads.

    `evaluation-<rank>.json` holds the names of living objects, the folders that this rank took checksums of, and the
    precision of what was loaded.
    """
    living: dict[str, weakref.ref[Any]] = {}
    hashed: list[str] = []

    class Engine(instruct.Engine):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            hashed.clear()
            living.clear()
            for name, thing in {
                "engine": self,
                "DeepSpeed's": self.deepspeed,
                "optimizer": self.optimizer,
                "model": self.model,
                "weight": next(self.model.parameters()),
            }.items():
                living[name] = weakref.ref(thing)

    def counted(function: Any) -> Any:
        def count(place: Any) -> Any:
            hashed.append(str(place))
            return function(place)

        return count

    facts: dict[str, Any] = {}
    load, evaluate = evaluation.load_model, instruct.evaluate_run

    def look_and_load(name: str, **options: Any) -> Any:
        facts["alive"] = [what for what, thing in living.items() if thing() is not None]
        model, texts = load(name, **options)
        facts["dtype"] = str(model.dtype)
        return model, texts

    def evaluate_and_tell(config: Any, folder: Path, say: Any) -> Any:
        found = evaluate(config, folder, say)
        (folder / f"evaluation-{dist.get_rank()}.json").write_text(json.dumps({**facts, "hashed": hashed}))
        return found

    instruct.Engine, instruct.evaluate_run = Engine, evaluate_and_tell
    evaluation.load_model = look_and_load
    evaluation.model_identity = counted(evaluation.model_identity)
    bases.checkpoint_digest = counted(bases.checkpoint_digest)


if __name__ == "__main__":
    start_ranks()
    instruct = recipe()
    look_at_evaluation(instruct)
    meter.matmul_peak = lambda *_: 1e9  # not what is looked at, and slow in bf16 where the CPU has none
    spec = json.loads(Path(next(word for word in sys.argv[1:] if word.endswith(".json"))).read_text())
    for words in spec.values():
        train(instruct, words)
    dist.destroy_process_group()
