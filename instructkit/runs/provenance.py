"""Where a result comes from: versions, the toolkit's commit and the command line."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("instructkit", "torch", "transformers", "deepspeed", "peft", "datasets", "evaluate", "pyarrow", "pillow")
_ROOT = Path(__file__).resolve().parents[2]
_PLACES = ("output=", "out=", "--out=", "resume=", "project=", "--local_rank")
"""Words that change nothing of a result."""


def versions() -> dict[str, str]:
    """Versions of Python, this toolkit and the libraries that results depend on."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit(root: Path = _ROOT) -> str | None:
    """The commit of a checkout, with "and changes" where files differ from it; None where there is no checkout."""
    try:
        top = _git(root, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != root.resolve():
            return None  # installed inside another project's checkout
        changed = " and changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else ""
        return _git(root, "rev-parse", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return None


def command_line() -> list[str]:
    """The program's name and its words, without those that say only where to write and whether to go on."""
    program, *words = sys.argv or [""]
    behind_out = [False, *(word == "--out" for word in words)]
    kept = [word for word, place in zip(words, behind_out, strict=False) if not place and word != "--out"]
    return [Path(program).name, *(word for word in kept if not word.startswith(_PLACES))]


def lines(seed: int | None) -> list[str]:
    """What a run says of itself first."""
    found = versions()
    libraries = ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers", "deepspeed", "python"))
    return [
        f"run       {' '.join(sys.argv)}",
        f"versions  instructkit {found['instructkit']} ({commit() or 'no git checkout'}), {libraries}",
        *([] if seed is None else [f"seed      {seed}"]),
    ]


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()
