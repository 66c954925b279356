"""Each recipe runs as a script, whose own folder Python searches first: recipes/evaluate.py must hide no package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.py"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_does(recipe: Path, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, str(recipe), "--help"], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert f"usage: {recipe.name}" in found.stdout
    assert not list(tmp_path.iterdir())
