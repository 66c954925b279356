"""Small things that the layouts of several releases have in common."""

from __future__ import annotations

from pathlib import Path


def media_folder(raw: Path, *names: str, first: str | None = None) -> Path:
    """The first of the customary folders of pictures or videos that exists below `raw`, else `raw` itself.

    Args:
        raw: folder of the release.
        names: of the customary folders.
        first: path of the first picture as the release writes it. Such paths may begin with the customary folder: the
            folder in which the picture lies is taken, and without the picture the one that does not double a name.
    """
    folders = [raw / name for name in names if (raw / name).is_dir()]
    if first is not None:
        holds = [folder for folder in (*folders, raw) if (folder / first).is_file()]
        folders = holds or [folder for folder in folders if folder.name != first.split("/")[0]]
    return next(iter(folders), raw)


def spots(*names: str, folders: tuple[str, ...] = ("annotations",)) -> list[str]:
    """Where each of the files may lie, for `require`: in the raw folder itself or in a customary one below it."""
    return [f"{folder}{name}" for name in names for folder in ("", *(f"{below}/" for below in folders))]
