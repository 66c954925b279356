"""What the package imports is what `pyproject.toml` asks for, no more and no less."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "easy_vqa": "easy-vqa"}
ELSEWHERE = {"bitsandbytes", "gguf", "huggingface_hub", "psutil"}
"""Asked for by an extra, by transformers or by deepspeed."""
UNNAMED = {
    "easy-vqa": "its pictures are read from where it is installed",
    "sentencepiece": "transformers reads the tokenizers of T5 and Vicuna with it",
}


@cache
def _imports() -> set[str]:
    names = set()
    for path in [*(ROOT / "instructkit").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.partition(".")[0])
    return {DISTRIBUTIONS.get(name, name) for name in names - sys.stdlib_module_names - {"instructkit"}}


def _asked_for() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    return set(re.findall(r'^ *"([\w-]+)', block[1], re.MULTILINE))


def test_everything_imported_is_asked_for() -> None:
    assert _imports() - _asked_for() - ELSEWHERE == set()


@pytest.mark.parametrize("name", sorted(_asked_for()))
def test_what_is_asked_for_is_imported(name: str) -> None:
    assert (name in _imports()) != (name in UNNAMED), f"{name}: remove it from pyproject.toml, or from UNNAMED"
