"""Miniature releases, converted on demand, and tiny model folders: what evaluations of the tests read."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch

from instructkit import sources
from instructkit.config.read import evaluation_settings
from instructkit.conversion.convert import convert
from instructkit.data.dataset import MANIFEST
from instructkit.evaluation.run import Evaluation, evaluate
from instructkit.evaluation.select import GROUPS
from instructkit.models.save import save_model, save_pretraining
from instructkit.prompts.protocols import load_protocol
from instructkit.runs.ranks import Ranks
from tests import forks
from tests.miniatures import write_release
from tests.tiny import tiny_first_stage, tiny_model
from tests.training.mini import environment, launch

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 120
"""Raw records of a split that are converted; only easy-VQA, which is whole, has more."""


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self.data.mkdir(parents=True)

    def split(self, source: str, split: str) -> Path:
        """The folder of a converted split."""
        folder = self.data / source / split
        if not (folder / MANIFEST).is_file():
            raw = sources.default_raw(source)
            if raw is None:
                raw = self.root / "raw" / source
                if not raw.exists():
                    write_release(source, raw)
            convert(source, raw, self.data, split=split, limit=LIMIT)
        return folder

    def benchmark(self, name: str) -> None:
        """Convert all that a benchmark reads."""
        protocol = load_protocol(name)
        for split in [protocol.split, *(protocol.vocabulary.splits if protocol.vocabulary else [])]:
            self.split(protocol.source, split)

    def model(self, llm: str = "llama") -> Path:
        """The folder of a tiny random model whose weights are large enough to tell prompts apart."""
        folder = self.root / f"model_{llm}"
        if not folder.exists():
            model, texts = tiny_model(llm)
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
            save_model(model, texts, folder)
        return folder

    def first_stage(self) -> Path:
        """The folder of a small random model of BLIP-2's first stage."""
        folder = self.root / "first_stage"
        if not folder.exists():
            save_pretraining(*tiny_first_stage(), folder)
        return folder

    def settings(self, benchmarks: str, out: Path, **options: Any) -> dict[str, Any]:
        asked = [load_protocol(name.partition("/")[0]) for name in benchmarks.split(",") if name not in GROUPS]
        model = self.first_stage() if any(each.mode == "retrieve" for each in asked) else self.model()
        values = {"model": str(model), "data": str(self.data), "benchmarks": benchmarks, "output": str(out)}
        longer = {"data": "data.root", "batch_size": "eval_batch_size"}
        return {longer.get(name, name): value for name, value in (values | options).items()}

    def evaluate(self, benchmarks: str, out: Path, **options: Any) -> Evaluation:
        """Evaluate in this process."""
        found = evaluate(evaluation_settings(self.settings(benchmarks, out, **options)), Ranks(), lambda line: None)
        assert found is not None
        return found


def evaluate_on_two_ranks(settings: dict[str, Any], script: Path = ROOT / "recipes" / "evaluate.py") -> None:
    """Run the recipe of evaluation, or a script that calls it, on two ranks of this machine; both must end well."""
    launch(2, script, [f"{name}={value}" for name, value in settings.items()])


def kill_behind(calls: int, method: str, words: list[str]) -> None:
    """Run a command in a process of its own that is killed behind so many calls of a method, `module:Class.method`."""
    with NamedTemporaryFile() as said:
        script = Path(__file__).with_name("kill_behind.py")
        (process,) = forks.start(script, [str(calls), method, *words], Path(said.name), [environment()])
        try:
            process.join(600)
        finally:
            forks.end([process])
        assert process.exitcode == -signal.SIGKILL, Path(said.name).read_text()


def recipe_module(name: str) -> Any:
    """A recipe, imported."""
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def report_bytes(run: Path) -> dict[str, bytes]:
    """The files of a report, but for the command that wrote it."""
    files = {path.name: path.read_bytes() for path in sorted((run / "report").iterdir())}
    content = json.loads(files["report.json"])
    del content["run"]["command"]
    return files | {"report.json": json.dumps(content).encode()}
