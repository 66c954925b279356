"""Pictures of Visual Genome: two folders that its authors put them into, of which most files do not say which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import msgspec

from instructkit.data.folders import media_folder
from instructkit.data.readers import UNDECODABLE, json_list

FOLDERS = ("VG_100K", "VG_100K_2")
IMAGES = "VG_100K/{image_id}.jpg and VG_100K_2/{image_id}.jpg"
_FACTS = "image_data.json"


class _Image(msgspec.Struct, gc=False):
    image_id: int
    url: str


_decode = msgspec.json.Decoder(_Image).decode


def pictures(raw: Path) -> tuple[Path, Callable[[int], str], list[Path]]:
    """Where the pictures lie.

    `image_data.json` says it, where it is there (its URLs end in folder and name); else the folder in which a picture
    is found, and the first one for those that are in neither.

    Returns:
        The media root; what gives the path of a picture below it, by its id; the files that were read for it.
    """
    root = media_folder(raw, "images")
    known: dict[int, str] = {}
    facts = raw / _FACTS
    if facts.is_file():
        for record in json_list(facts):
            try:
                image = _decode(record.data)
            except UNDECODABLE:
                continue  # its picture is looked for, as without this file
            folder = PurePosixPath(image.url).parent.name
            if folder in FOLDERS:
                known[image.image_id] = folder

    def path(image_id: int) -> str:
        name = f"{image_id}.jpg"
        folder = known.get(image_id)
        if folder is None:
            folder = next((each for each in FOLDERS if (root / each / name).is_file()), FOLDERS[0])
        return f"{folder}/{name}"

    return root, path, [facts] if facts.is_file() else []
