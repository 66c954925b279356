"""Make the mini-world's BLIP-2 from random weights: its LLM, its image encoder and its Q-Former.

    python recipes/pretrain_mini.py [--out runs/mini] [--queries 4 --queries 2 ...] [--ranks 2] [key=value ...]

One behind the other, each in its own folder below OUT:
    text.jsonl   language about the world, lessons first                   instructkit/world/text.py
    start        an LLM from random weights with a tokeniser of the text   instructkit/models/load/mini.py
    llm          the same, when it has read the text, and no picture       text_world.yaml
    raw, data    pictures of training scenes with sentences about them     instructkit/world/pairs.py
    encoder      an image encoder from random weights                      instructkit/models/load/mini.py
    bert         a BERT with a tokeniser of the text, likewise
    looks        both have learned to look, from labels                    instructkit/training/looks.py
    looks-N      for other numbers of queries, behind that encoder, frozen
    stage2[-N]   the Q-Former in front of encoder and LLM, both frozen     stage2_mini.yaml
    model[-N]    the whole in half precision
The first --queries is the number that the encoder is trained with. Started again, it goes on where it was stopped.
Settings behind the options go to every run; of them looks take max_steps alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from instructkit.config.settings import ModelConfig, TrainingConfig
from instructkit.conversion.convert import convert
from instructkit.data.dataset import MANIFEST
from instructkit.errors import UserError
from instructkit.files import write_atomically
from instructkit.models.load.mini import write_bert, write_encoder, write_llm
from instructkit.models.save import export
from instructkit.training.looks import train_looks
from instructkit.training.recipe import run_on_ranks, settings_of
from instructkit.training.text import read_documents
from instructkit.training.text_model import tokenizer_texts
from instructkit.world.draw import SIDE
from instructkit.world.pairs import LINES, write_pairs
from instructkit.world.release import SIZES
from instructkit.world.text import write

LOOKS = TrainingConfig(
    max_steps=8000,
    optimizer="muon",
    learning_rate=3e-3,
    warmup_steps=30,
    warmup_from=1e-4,
    min_learning_rate=1.5e-4,
    betas=(0.9, 0.99),
    weight_decay=0.01,
)
"""How encoder and Q-Former learn to look."""
VOCABULARY = 2048
"""Tokens of the LLM at most; the text needs some 1,300."""


def make(out: Path, options: argparse.Namespace) -> list[Path]:
    """Make all parts that are not there yet; returns the folders of the models.

    Raises:
        UserError: a part cannot be made.
    """
    check_same(out, {"size": options.size, "pictures": options.pictures, "queries": options.queries[0]})
    write_texts(out, options.size)
    run("text_world", out / "llm", {"model.llm": out / "start", "data.text": out / "text.jsonl"}, options)
    write_parts(out, options.pictures)
    models = []
    for number, queries in enumerate(options.queries):
        behind = f"-{queries}" if number else ""
        looks = out / f"looks{behind}"
        encoder = out / "looks" / "model" if number else out / "encoder"
        print(f"--- {looks}", flush=True)
        look(looks, ModelConfig(vision=str(encoder), qformer=str(out / "bert"), queries=queries), options, number > 0)
        looked = looks / "model"
        parts = {"model.vision": looked, "model.qformer": looked, "model.llm": out / "llm" / "model"}
        run("stage2_mini", out / f"stage2{behind}", {"data.root": out / "data", **parts}, options)
        models.append(out / f"model{behind}")
        if not models[-1].exists():
            print(export(str(out / f"stage2{behind}" / "model"), models[-1], dtype="float16"))
    return models


def check_same(out: Path, asked: Mapping[str, Any]) -> None:
    """Keep what the parts in a folder are made by.

    Raises:
        UserError: those that are there were made by other options.
    """
    kept = out / "options.json"
    if not kept.is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps(asked) + "\n")
    elif (before := json.loads(kept.read_text())) != asked:
        raise UserError(f"{out}: its parts were made with {before}, not with {asked}; choose another --out")


def write_texts(out: Path, size: str) -> None:
    """Write the text that the LLM reads, and the tokeniser and first weights of what reads with it."""
    text = out / "text.jsonl"
    if not text.is_file():
        print(f"--- {text}: {write(text, size=size):,} documents")
    if not (out / "start").is_dir() or not (out / "bert").is_dir():
        documents = tokenizer_texts(read_documents(text))
        write_llm(out / "start", documents, VOCABULARY)
        write_bert(out / "bert", documents)


def write_parts(out: Path, pictures: int) -> None:
    """Write the image encoder's first weights, and pictures with sentences about them."""
    if not (out / "encoder").is_dir():
        write_encoder(out / "encoder", SIDE)
    if not (out / "raw" / LINES).is_file():
        print(f"--- {out / 'raw'}: {pictures:,} pictures", flush=True)
        write_pairs(out / "raw", pictures)
    if not (out / "data" / "jsonl" / "train" / MANIFEST).is_file():
        convert("jsonl", out / "raw", out / "data")


def look(folder: Path, settings: ModelConfig, options: argparse.Namespace, frozen: bool) -> None:
    """Have an image encoder, if it is not frozen, and a Q-Former learn to look."""
    steps = int(options.settings.get("max_steps", LOOKS.max_steps))
    train_looks(folder, settings, replace(LOOKS, max_steps=steps), frozen=frozen, seed=0, say=print)


def run(config: str, folder: Path, settings: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Run a recipe, or go on with it; one that has ended is left as it is.

    Raises:
        UserError: the run fails; it has said why.
    """
    print(f"--- {folder}", flush=True)
    if (folder / "model").is_dir():
        return
    run_on_ranks(config, {**settings, **options.settings, "output": folder}, options.ranks)


def main() -> None:
    """Read the command line and make the models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/mini"))
    parser.add_argument("--queries", type=int, action="append", help="number of query tokens (4)")
    parser.add_argument("--pictures", type=int, default=60_000, help="with sentences about each (%(default)s)")
    parser.add_argument("--size", choices=list(SIZES), default="full", help="of the text (%(default)s)")
    parser.add_argument("--ranks", type=int, default=2, help="of every run (%(default)s)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, over those of every run")
    options = parser.parse_args()
    options.queries = options.queries or [4]
    try:
        options.settings = settings_of(options.settings)
        print(json.dumps([str(folder) for folder in make(options.out, options)]))
    except UserError as error:
        raise SystemExit(f"instructkit: {error}") from None


if __name__ == "__main__":
    main()
