"""The checks before a commit use what is installed, and find what they are for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
NAME = ".pre-commit-config.yaml"


def test_nothing_is_fetched() -> None:
    repos = yaml.safe_load((ROOT / NAME).read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    assert {hook["language"] for repo in repos for hook in repo["hooks"]} == {"system"}


@pytest.mark.skipif(not all(map(shutil.which, ("pre-commit", "git", "ruff"))), reason="no pre-commit, git or ruff here")
@pytest.mark.parametrize(
    ("code", "bad"),
    [('"""One."""\n', None), ('"""One."""\n\nimport os\n', "ruff check"), ('"""One."""\nx=1\n', "ruff format")],
)
def test_what_a_commit_is_stopped_by(code: str, bad: str | None, tmp_path: Path) -> None:
    for name in (NAME, "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "code.py").write_text(code)
    # Git hooks set variables that name the repository they run in.
    here = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment = here | {"SKIP": "mypy", "PRE_COMMIT_HOME": str(tmp_path / "cache")}
    for words in (["git", "init", "-q"], ["git", "add", NAME, "code.py"]):
        subprocess.run(words, cwd=tmp_path, env=environment, check=True)
    done = subprocess.run(
        ["pre-commit", "run", "--all-files"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    failed = [line.split(".")[0] for line in done.stdout.splitlines() if line.endswith("Failed")]
    assert failed == ([bad] if bad else []), done.stdout + done.stderr
