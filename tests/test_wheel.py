"""The wheel works alone: built offline, installed into an empty folder, run without the source tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from instructkit import sources

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(find_spec("hatchling") is None, reason="no build backend: pip install hatchling")

WITHOUT_SOURCES = """
import sys
from pathlib import Path
# An editable install has put the checkout on the path.
sys.path[:] = [each for each in sys.path if not (Path(each) / "pyproject.toml").is_file()]
"""


class Installed:
    """The wheel in a folder of its own, and commands that see it alone, in another."""

    def __init__(self, root: Path) -> None:
        self.target, self.folder, site = root / "target", root / "empty", root / "site"
        for each in (self.folder, site):
            each.mkdir()
        (site / "sitecustomize.py").write_text(WITHOUT_SOURCES)
        self.environment = os.environ | {
            "PYTHONPATH": f"{site}{os.pathsep}{self.target}",
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "disabled",
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(root / "cache"),
        }
        pip = [sys.executable, "-m", "pip", "-q"]
        self._run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(root), str(ROOT))
        (self.wheel,) = root.glob("*.whl")
        self._run(*pip, "install", "--no-deps", "--target", str(self.target), str(self.wheel))

    def python(self, *words: str) -> str:
        return self._run(sys.executable, *words)

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("wheel"))


def test_only_the_wheel_is_read(installed: Installed) -> None:
    told = installed.python(
        "-c", "import sys, json, instructkit; print(json.dumps([instructkit.__file__, [p for p in sys.path if p]]))"
    )
    file, path = json.loads(told)
    assert Path(file).is_relative_to(installed.target)
    assert str(ROOT) not in path


def test_the_sources(installed: Installed) -> None:
    listed = installed.python("-m", "instructkit.cli", "sources")
    assert all(f"{name} " in listed for name in sources.names())


def test_a_recipe_reads_its_config_and_tells_its_settings(installed: Installed) -> None:
    told = installed.python(str(installed.target / "instructkit" / "recipes" / "instruct.py"), "--help")
    assert "training.max_steps=" in told
    assert (installed.target / "instructkit" / "recipes" / "configs" / "easy_vqa.yaml").is_file()


def test_a_conversion_is_shown_in_the_words_of_the_templates(installed: Installed) -> None:
    installed.python("-m", "instructkit.cli", "convert", "easy_vqa", "--out", "data", "--split", "test", "--limit", "3")
    assert installed.python("-m", "instructkit.cli", "render", "data").count("wording") == 3


@pytest.mark.full
def test_five_steps_of_training(installed: Installed) -> None:
    recipe = installed.target / "instructkit" / "recipes" / "instruct.py"
    installed.python(str(recipe), "max_steps=5", "log_every=1", "batch_size=2", "evaluation.limit=20")
    run = installed.folder / "runs" / "easy_vqa"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["benchmarks"]["easy_vqa"]["n"] == 20
    assert "aria-label" in (run / "report" / "report.html").read_text()
