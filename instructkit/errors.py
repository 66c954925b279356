"""The one error type that is meant for people, and the phrases that its messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

QUOTED = 200
"""Maximum number of characters of a value in a message."""


class UserError(Exception):
    """An error that the user can fix. Its message is one line: what is wrong, where, and what to do.

    Commands print the message without a traceback and end with exit code 2.

    Attributes:
        shared: whether it is what the first rank met for all of them, so that no rank's number belongs to it.
    """

    shared = False


def quote(value: object) -> str:
    """A value as a message shows it: on one line, its middle left out where it is long."""
    text = ascii(value) if isinstance(value, str) and not _printable(value) else repr(value)
    if len(text) <= QUOTED:
        return text
    half = QUOTED // 2 - 10
    return f"{text[:half]} ... {text[-half:]}"


def _printable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which no terminal can show
        return False
    return True


def did_you_mean(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """The end of a message about an unknown name: the nearest known ones; without any, `otherwise` or all of them."""
    names = list(known)
    near = difflib.get_close_matches(name[:QUOTED], names, 3)
    return f"did you mean {' or '.join(near)}?" if near else otherwise or f"there are {', '.join(names)}"
