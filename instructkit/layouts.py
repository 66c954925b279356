"""Small things that the layouts of several releases have in common."""

from __future__ import annotations

from pathlib import Path


def media_folder(raw: Path, *names: str) -> Path:
    """The first of the customary folders of pictures or videos that exists below `raw`, else `raw` itself."""
    return next((raw / name for name in names if (raw / name).is_dir()), raw)
