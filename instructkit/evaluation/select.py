"""Which benchmarks are meant by `held-out`, `held-in`, a name, or a name with another split."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from instructkit import sources
from instructkit.config.settings import Instructions
from instructkit.data.dataset import MANIFEST, load_examples
from instructkit.data.examples import Example
from instructkit.errors import UserError
from instructkit.prompts.jinja import is_empty
from instructkit.prompts.own_prompt import asked_barely
from instructkit.prompts.protocols import RIGHT_CANDIDATE, Protocol, benchmarks, load_protocol

GROUPS = ("held-out", "held-in")
_REPLIES = {"answers", "references", "choice", "relevance"}
_OPTIONAL = {"relevance"}
"""Replies that only some examples of a split with answers have."""


class Wanted(NamedTuple):
    """A benchmark that was asked for.

    Attributes:
        protocol: with the split that was asked for.
        hidden: the authors keep the split's answers to themselves, and the converted data lack some, too.
        named: it was asked for by its name, not as one of a group.
    """

    protocol: Protocol
    hidden: bool
    named: bool


def wanted_benchmarks(names: Iterable[str], root: Path | None = None, prompts: Instructions = "full") -> list[Wanted]:
    """The benchmarks that names stand for, each once, in order.

    Args:
        names: `held-out`, `held-in`, NAME or NAME/SPLIT.
        root: folder of converted data. A split whose answers the authors keep to themselves is scored like any other if
            there each of its examples has one; without a folder it counts as hidden.
        prompts: `evaluation.prompts`.

    Raises:
        UserError: there is no such benchmark, or its source has no such split.
    """
    found: dict[str, Wanted] = {}
    for name in names:
        if name in GROUPS:
            for each in map(load_protocol, benchmarks()):
                if each.role == name:
                    found.setdefault(each.benchmark, Wanted(each, hidden=False, named=False))
        else:
            found[name] = _named(name, root)
    if not found:
        raise UserError(f"no benchmark is named; there are {', '.join((*GROUPS, *benchmarks()))}")
    return [each._replace(protocol=asked_barely(each.protocol, prompts)) for each in found.values()]


def _named(name: str, root: Path | None) -> Wanted:
    base, _, split = name.partition("/")
    protocol = load_protocol(base)
    if not split or split == protocol.split:
        return Wanted(protocol, hidden=False, named=True)
    hidden = sources.source(protocol.source).find_split(split).hidden
    if hidden and root is not None:
        hidden = not _answered(protocol, root / protocol.source / split)
    # A server scores every question, those that our protocol leaves out for want of answers included.
    needs = [field for field in protocol.needs if not (hidden and field in _REPLIES)]
    other = msgspec.structs.replace(
        protocol,
        benchmark=name,
        title=f"{protocol.title} ({split})",
        split=split,
        needs=needs,
        only={} if hidden else protocol.only,
        role="extra",
        published=[],
    )
    return Wanted(other, hidden, named=True)


def _answered(protocol: Protocol, folder: Path) -> bool:
    """Whether the split is converted and each example that the protocol asks has what its metric compares with."""
    if not (folder / MANIFEST).is_file():
        return False
    references = protocol.references
    named = set(references.values()) if isinstance(references, dict) else {references}
    fields = {"choice" if name == RIGHT_CANDIDATE else name for name in named} & (_REPLIES - _OPTIONAL)

    def has_all(example: Example) -> bool:
        return not any(is_empty(getattr(example, name)) for name in fields)

    asked = (each for each in load_examples(folder) if _belongs(protocol, each))
    first = next(asked, None)
    return first is not None and has_all(first) and all(map(has_all, asked))


def _belongs(protocol: Protocol, example: Example) -> bool:
    needs = [name for name in protocol.needs if name not in _REPLIES]
    return msgspec.structs.replace(protocol, needs=needs).keeps(example)
