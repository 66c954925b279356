"""Releases in miniature and tiny model folders that training runs read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from instructkit.models.batches import Texts
from instructkit.models.save import save_model
from instructkit.prompts.templates import Prompt
from instructkit.runs.log import MEASURED
from instructkit.sources.easy_vqa import default_raw
from tests import forks
from tests.ports import free_port
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 24


def write_releases(folder: Path) -> list[str]:
    """easy-VQA's first pictures with their questions, and two captions of each third one; returns the settings."""
    raw = default_raw()
    easy, coco = folder / "raw" / "easy_vqa", folder / "raw" / "coco_caption"
    (easy / "train" / "images").mkdir(parents=True)
    (coco / "train2014").mkdir(parents=True)
    shutil.copy(raw / "answers.txt", easy)
    rows = [row for row in json.loads((raw / "train" / "questions.json").read_text()) if row[2] < IMAGES]
    (easy / "train" / "questions.json").write_text(json.dumps(rows))
    captions = []
    for number in range(IMAGES):
        shutil.copy(raw / "train" / "images" / f"{number}.png", easy / "train" / "images")
        if number % 3 == 0:
            name = f"train2014/COCO_train2014_{number:012}.jpg"
            Image.open(raw / "train" / "images" / f"{number}.png").convert("RGB").save(coco / name)
            captions += [
                {"image": name, "caption": caption, "image_id": f"coco_{number}"}
                for caption in (f"a shape with number {number}", "one shape on a light background")
            ]
    (coco / "coco_karpathy_train.json").write_text(json.dumps(captions))
    return [
        f"data.root={folder / 'data'}",
        f"data.raw.easy_vqa={easy}",
        f"data.raw.coco_caption={coco}",
        "data.train=[easy_vqa]",
        "data.weights={}",
        "evaluation.benchmarks=[]",
    ]


def write_model(folder: Path, llm: str = "llama", dropout: float = 0.0) -> Path:
    """A tiny random model that `model.name` can name."""
    model, texts = tiny_model(llm)
    qformer = model.config.qformer_config
    qformer.hidden_dropout_prob = qformer.attention_probs_dropout_prob = dropout
    save_model(model, texts, folder)
    return folder


def environment() -> dict[str, str]:
    quiet = {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return {**os.environ, **quiet, "PYTHONPATH": str(ROOT), "MASTER_PORT": str(free_port())}


def command(ranks: int) -> list[str]:
    """What starts a script on so many ranks of this machine, by DeepSpeed's launcher where there are several."""
    if ranks == 1:
        return [sys.executable]
    launcher = Path(sys.executable).with_name("deepspeed")
    return [str(launcher), "--num_accelerators", str(ranks), "--master_port", str(free_port())]


def ranks_of(ranks: int) -> list[dict[str, str]]:
    """The environment of each rank of this machine, as a launcher sets it."""
    shared = {**environment(), "WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def launch(ranks: int, script: Path, arguments: list[str], timeout: float = 600) -> str:
    """Run a script on so many ranks, and return what they said.

    Ranks that have not ended after `timeout` seconds are killed, and the test fails with what they wrote.
    """
    with tempfile.NamedTemporaryFile() as file:
        said = Path(file.name)
        processes = forks.start(script, arguments, said, ranks_of(ranks))
        try:
            until = time.monotonic() + timeout
            for process in processes:
                process.join(max(0.0, until - time.monotonic()))
            codes = [process.exitcode for process in processes]
        finally:
            forks.end(processes)
        text = said.read_text()
    assert codes == [0] * ranks, f"exit codes {codes} (None: none after {timeout} seconds)\n{text[-8000:]}"
    return text


def run_all(ranks: int, folder: Path, runs: dict[str, list[str]], timeout: float = 600, script: str = "runs.py") -> str:
    """Run the recipe several times, one behind the other, on so many ranks; each run writes to `folder/<name>`."""
    spec = Path(tempfile.mkdtemp(prefix="launch-", dir=folder.parent), "runs.json")
    spec.write_text(json.dumps({name: [f"output={folder / name}", *words] for name, words in runs.items()}))
    return launch(ranks, Path(__file__).with_name(script), [str(spec)], timeout)


class Runs:
    """Runs of the recipe by name, each started when a test first asks for it: `runs / name` is its folder.

    Args:
        folder: of all of them; a run writes to `folder/<name>`.
        plans: ranks and settings by name; `after=NAME:STEP` in them asks for another run first.
        script: runs one, in this folder.
    """

    def __init__(self, folder: Path, plans: dict[str, tuple[int, list[str]]], script: str = "runs.py") -> None:
        self.folder, self.plans, self.script = folder, plans, script
        self.said: dict[str, str] = {}
        self._failed: dict[str, str] = {}

    def __truediv__(self, name: str) -> Path:
        if name in self._failed:
            raise AssertionError(self._failed[name])
        if name not in self.said:
            ranks, words = self.plans[name]
            for word in words:
                if word.startswith("after="):
                    _ = self / word.removeprefix("after=").partition(":")[0]
            try:
                self.said[name] = run_all(ranks, self.folder, {name: words}, script=self.script)
            except AssertionError as error:
                self._failed[name] = str(error)
                raise
        return self.folder / name


def end_all(process: subprocess.Popen[Any]) -> None:
    """Kill a process and all that it started, the launcher's ranks too."""
    with suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@torch.no_grad()
def logits(model: nn.Module, texts: Texts) -> Tensor:
    """What a model says, by transformers' own forward, to one question about a picture of noise."""
    prompts = [Prompt("a/b/0", "t", "is there a triangle in the picture?", "no", ["0"])]
    rows = texts.rows(texts.encode(prompts), [1])
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    inputs = {key: rows[key] for key in ("qformer_input_ids", "qformer_attention_mask", "input_ids", "attention_mask")}
    if not texts.decoder_only:
        inputs["decoder_input_ids"] = torch.zeros(1, 1, dtype=torch.long)
    said: Tensor = model.eval()(pixel_values=noise, **inputs).logits
    return said


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in log(run) if "loss" in line]


def repeatable(run: Path) -> list[dict[str, float]]:
    """The log without what was measured."""
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in log(run)]


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
