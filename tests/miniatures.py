"""A release of every source for tests that need any one: the mini-world's, smaller than tiny.

Nothing marks these as miniatures, so a test sees what a user of the published release would.
"""

from __future__ import annotations

from pathlib import Path

from instructkit.miniatures import MINIATURE
from instructkit.world.build import WRITERS
from instructkit.world.release import Release, Size
from tests.sources.mini import jsonl

SIZE = Size(factor=0.015, benchmark=4, other=2)


def write_release(name: str, folder: Path, media: bool = True) -> Path:
    """Write the release of a source into a folder; without `media` its pictures and films are empty files."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "jsonl":  # data of one's own, of which the world has none
        jsonl.write(folder)
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
