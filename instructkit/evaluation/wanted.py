"""Which benchmarks are meant by `held-out`, `held-in`, a name, or a name with another split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from instructkit import sources
from instructkit.errors import UserError
from instructkit.protocols import Protocol, benchmarks, load_protocol

GROUPS = ("held-out", "held-in")
_REPLIES = {"answers", "references", "choice", "relevance"}


class Wanted(NamedTuple):
    """A benchmark that was asked for.

    Attributes:
        protocol: with the split that was asked for.
        hidden: the authors keep the split's answers to themselves.
        named: it was asked for by its name, not as one of a group.
    """

    protocol: Protocol
    hidden: bool
    named: bool


def wanted_benchmarks(names: Iterable[str]) -> list[Wanted]:
    """The benchmarks that names stand for, each once, in order.

    Args:
        names: `held-out`, `held-in`, NAME or NAME/SPLIT.

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
            found[name] = _named(name)
    if not found:
        raise UserError(f"no benchmark is named; there are {', '.join((*GROUPS, *benchmarks()))}")
    return list(found.values())


def _named(name: str) -> Wanted:
    base, _, split = name.partition("/")
    protocol = load_protocol(base)
    if not split or split == protocol.split:
        return Wanted(protocol, hidden=False, named=True)
    hidden = sources.source(protocol.source).find_split(split).hidden
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
