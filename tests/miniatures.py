"""A release of every source for tests that need any one: the mini-world's, smaller than tiny.

Nothing marks these as miniatures, so a test sees what a user of the published release would.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest

from instructkit.conversion.miniatures import MINIATURE
from instructkit.world.build import WRITERS
from instructkit.world.release import Release, Size

SIZE = Size(factor=0.015, benchmark=3, other=2)


def write_release(name: str, folder: Path, media: bool = True) -> Path:
    """Write the release of a source into a folder; without `media` its pictures and films are empty files.

    A source that is no part of the world has a `write(root)` in its own test.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if name not in WRITERS:
        own_test = f"tests.sources.test_{name}"
        if importlib.util.find_spec(own_test) is None:
            pytest.fail(f"{name} has no release to test with: write tests/sources/test_{name}.py with a write(root)")
        importlib.import_module(own_test).write(folder)
        return folder
    release = Release(folder, name, 0, SIZE)
    WRITERS[name](release)
    release.finish(pictures=media)
    (folder / MINIATURE).unlink()
    if not media:
        for path in map(folder.joinpath, (*release.pictures, *release.films)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return folder
