"""One module a source dataset: what its authors ship, and how a raw record of it becomes examples.

A source is found by being there. A module of this package defines

* `SOURCE`: a `Source`, the facts (task group, role, splits with published counts, expected files, licence, home);
* `Record` structs (`msgspec.Struct`) that document and validate the release's records;
* `read(raw, split) -> Reading`: finds the files below the folder `raw` and says how to stream and convert them.

Nothing else has to be edited to add one.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal

import msgspec

from instructkit.data.examples import Example
from instructkit.data.readers import MissingFile, RawRecord
from instructkit.errors import UserError, did_you_mean

Role = Literal["held-in", "held-out", "extra"]


@dataclass(frozen=True)
class Split:
    """One split of a source.

    Attributes:
        files: the files it reads, relative to the raw folder; alternatives are joined by " | ".
        published: number of examples by the authors, None where they state none for what we make of it.
        note: anything a user should know about the number.
        hidden: True where the authors keep the answers to themselves (a server scores the split); without it an
            example that has none is rejected.
    """

    files: tuple[str, ...]
    published: int | None = None
    note: str = ""
    hidden: bool = False


@dataclass(frozen=True)
class Source:
    """The facts of a source dataset.

    Attributes:
        name: what `--source` and `instructkit convert` call it; the module's name.
        title: how papers write it.
        task: task group, one of `instructkit.data.examples.TASKS`.
        role: whether InstructBLIP trains on it (`held-in`), tests on it (`held-out`), or neither (`extra`).
        split: the split that the paper uses for that role, the default of `convert`.
        splits: all splits that the release has.
        images: where the media lie, for `instructkit sources NAME`.
        tree: the folder that `--raw` expects, drawn as a tree.
        licence: licence of the annotations.
        home: home page.
        record: the struct of a raw record, shown by `instructkit sources NAME`.
        citation: paper or script that the facts come from.
        examples_of: name of the source whose converted examples this one uses, for question generation; such a source
            has no `read` of its own.
        own: True for the user's own data: every `<split>.jsonl` is a split beside those listed, each picture is looked
            at in the conversion, and `convert all` leaves them alone.
    """

    name: str
    title: str
    task: str
    role: Role
    split: str
    splits: dict[str, Split]
    images: str
    tree: str
    licence: str
    home: str
    record: type[msgspec.Struct]
    citation: str = ""
    examples_of: str | None = None
    own: bool = False

    @property
    def published(self) -> int | None:
        """Number of examples that the authors state for the paper's split; None where they state none."""
        return self.splits[self.split].published

    def find_split(self, name: str) -> Split:
        """The facts of a split.

        Raises:
            UserError: there is none of that name.
        """
        if name in self.splits:
            return self.splits[name]
        if self.own and re.fullmatch(r"\w[\w. -]*", name):
            return Split((f"{name}.jsonl",))
        raise UserError(f"{self.name} has no split {name!r}; it has {', '.join(self.splits)}")

    def default_split(self, raw: Path) -> str:
        """The split that is meant where none is named: the paper's, or that of your own file."""
        return raw.stem if self.own and raw.is_file() else self.split


@dataclass(frozen=True)
class Reading:
    """How to read one split of one release folder.

    Attributes:
        layout: which of the release's layouts was found.
        files: the files read; their checksums go into the manifest.
        records: the undecoded records, in the release's order; read once, in one process.
        convert: one record to its examples, in order; runs in a worker. Raises `Reject` or `msgspec.ValidationError`
            for a record that does not fit.
        media_root: default folder that the examples' media paths start from (`--images` replaces it).
        warnings: what is worth saying about the release, such as that an optional file is not there; reports show it at
            the scores.
    """

    layout: str
    files: list[Path]
    records: Iterable[RawRecord]
    convert: Callable[[RawRecord], list[Example]]
    media_root: Path
    warnings: list[str] = field(default_factory=list)


def names() -> list[str]:
    """Names of all sources, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def module(name: str) -> ModuleType:
    """The module of a source.

    Raises:
        UserError: there is no source of that name; the message names the nearest.
    """
    if name not in names():
        hint = did_you_mean(name, names(), "`instructkit sources` lists them")
        raise UserError(f"no source is called {name!r}; {hint}")
    return importlib.import_module(f"{__name__}.{name}")


def source(name: str) -> Source:
    """The facts of a source."""
    found: Source = module(name).SOURCE
    return found


def sources() -> list[Source]:
    """The facts of all sources, sorted by name."""
    return [source(name) for name in names()]


def read(name: str, raw: Path, split: str) -> Reading:
    """How to read one split of a release.

    Raises:
        UserError: it cannot be read; a `MissingFile` tells where the layout is shown.
    """
    try:
        reading: Reading = module(name).read(raw, split)
    except MissingFile as error:
        raise MissingFile(f"{error}; `instructkit sources {name}` shows the layout") from error
    return reading


def default_raw(name: str) -> Path | None:
    """Where a source's release lies without being told, for those that come as a Python package; else None."""
    found: Callable[[], Path] | None = getattr(module(name), "default_raw", None)
    return found() if found else None


class _Sources(ModuleType):
    """This package, which `instructkit.sources()` calls: a module's name and a function's are one there."""

    def __call__(self) -> dict[str, Source]:
        """The facts of all sources by name.

        Example:
            >>> ik.sources()["vqav2"].published
            443757
        """
        return {each.name: each for each in sources()}


sys.modules[__name__].__class__ = _Sources
