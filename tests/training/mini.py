"""Releases in miniature and tiny model folders that training runs read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
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


def free_port() -> int:
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        return int(here.getsockname()[1])


def environment() -> dict[str, str]:
    quiet = {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return {**os.environ, **quiet, "PYTHONPATH": str(ROOT), "MASTER_PORT": str(free_port())}


def command(ranks: int) -> list[str]:
    """What starts a script on so many ranks of this machine, by DeepSpeed's launcher where there are several."""
    if ranks == 1:
        return [sys.executable]
    launcher = Path(sys.executable).with_name("deepspeed")
    return [str(launcher), "--num_accelerators", str(ranks), "--master_port", str(free_port())]


def run_all(ranks: int, folder: Path, runs: dict[str, list[str]], timeout: float = 600, script: str = "runs.py") -> str:
    """Start the recipe once for several runs, one behind the other; each writes to `folder/<name>`.

    Returns what they said.

    Ranks that have not ended after `timeout` seconds are killed, and the test fails with what they wrote.
    """
    spec = folder / f"runs-{ranks}-{free_port()}.json"
    spec.parent.mkdir(parents=True, exist_ok=True)
    spec.write_text(json.dumps({name: [f"output={folder / name}", *words] for name, words in runs.items()}))
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*command(ranks), str(Path(__file__).with_name(script)), str(spec)],
            env=environment(),
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            code: int | str = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = f"none after {timeout} seconds"
        finally:
            end_all(process)
        said.seek(0)
        text = said.read()
        assert code == 0, f"exit code {code}\n{text[-8000:]}"
        return text


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
