"""Pictures in words: what an LLM is told in the place of a picture that it cannot see.

A file says so, a JSON object a line: `media`, the path of a picture or video relative to the file's folder, and `text`,
what is to be seen in it. `instructkit world` writes one beside its releases.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from instructkit.errors import UserError

DESCRIPTIONS = "descriptions.jsonl"
"""The file's name in a world."""


class Description(msgspec.Struct):
    """A line of the file.

    Attributes:
        media: path of the picture or video.
        text: all that is to be seen in it.
    """

    media: str
    text: str


_read_line = msgspec.json.Decoder(Description).decode


def in_words(descriptions: list[str], prompt: str) -> str:
    """What stands in the place of pictures and prompt: the descriptions, then the prompt."""
    return " ".join([*descriptions, prompt])


def read_descriptions(path: Path) -> dict[Path, str]:
    """What is to be seen in each picture or video, by its resolved path.

    Raises:
        UserError: there is no such file, or a line is no description; the message names it.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(
            f"words={path}: cannot be read ({error.strerror}); name a file of descriptions, such as the "
            f"{DESCRIPTIONS} that instructkit world writes beside its releases"
        ) from error
    found = {}
    for number, line in enumerate(lines, start=1):
        try:
            one = _read_line(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            form = '{"media": "...", "text": "..."}'
            raise UserError(f"{path}, line {number}: no description, which is written as {form} ({error})") from error
        if not one.text.strip():
            raise UserError(f"{path}, line {number}: its text is empty; take the line out")
        found[(path.parent / one.media).resolve()] = one.text
    return found
