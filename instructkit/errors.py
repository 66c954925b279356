"""The one error type that is meant for people, and the end of a message about an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right: its message is one line that says what, where and what to do.

    Commands print the message without a traceback and end with exit code 2.
    """


def did_you_mean(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """The end of a message about an unknown name: the nearest known ones; without any, `otherwise` or all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 3)
    return f"did you mean {' or '.join(near)}?" if near else otherwise or f"there are {', '.join(names)}"
