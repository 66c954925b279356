"""Small things that the layouts of several releases have in common."""

from __future__ import annotations

from pathlib import Path


def media_folder(raw: Path, *names: str) -> Path:
    """The first of the customary folders of pictures or videos that exists below `raw`, else `raw` itself."""
    return next((raw / name for name in names if (raw / name).is_dir()), raw)


def spots(*names: str, folders: tuple[str, ...] = ("annotations",)) -> list[str]:
    """Where each of the files may lie, for `require`: in the raw folder itself or in a customary one below it."""
    return [f"{folder}{name}" for name in names for folder in ("", *(f"{below}/" for below in folders))]
