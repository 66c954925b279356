"""What a trained part stands on: where its base lies, and what tells that base from any other."""

from __future__ import annotations

import hashlib
import os
from itertools import chain
from pathlib import Path

import msgspec
from huggingface_hub import try_to_load_from_cache
from transformers.utils import cached_file

from instructkit.config.settings import ModelConfig
from instructkit.errors import UserError
from instructkit.files import sha256_of
from instructkit.models.load.packages import PACKAGE, packaged, shipped
from instructkit.models.load.parts import failing, place_of, quiet
from instructkit.models.load.presets import SHIPPED

PARTS = ("name", "vision", "qformer", "llm")
"""Settings of `ModelConfig` that name a checkpoint."""

_WEIGHTS = (".safetensors", ".bin", ".gguf")
_FACTS = ("config.json", "instructkit.json", "adapter_config.json")


class Base(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A checkpoint that a model came from.

    Attributes:
        place: absolute path, or the hub's name, a shipped model, a published size, `package:MODULE`.
        relative: the path from the folder of the trained part, for those that move together; None for other places.
        digest: SHA-256 over configuration and weights of a path, or of what a package ships.
        commit: of the hub.
    """

    place: str
    relative: str | None = None
    digest: str | None = None
    commit: str | None = None


def bases_of(model: ModelConfig, folder: Path) -> dict[str, Base]:
    """The checkpoints that a model was made of, by setting.

    Args:
        model: settings of the run; relative paths start from the working directory.
        folder: of the trained part.
    """
    named = {part: name for part in PARTS if (name := getattr(model, part)) and name != "nano"}
    return {part: _base(name, folder) for part, name in named.items()}


def with_places(model: ModelConfig, places: dict[str, str]) -> ModelConfig:
    """Settings of a model with other places of its parts."""
    return msgspec.structs.replace(model, **places)


def find_base(base: Base, folder: Path) -> str:
    """Where a base lies now: at its place, or where it lay as seen from the trained part.

    Args:
        base: from `bases_of`.
        folder: of the trained part.

    Raises:
        UserError: it is not there, or something else is. A package that has to be imported is not looked at
            (`check_package`).
    """
    if base.place.startswith(PACKAGE) and shipped(base.place) is not None:
        check_package(base, folder)
    if base.place in SHIPPED and base.digest != checkpoint_digest(Path(place_of(base.place))):
        raise UserError(f"{folder}: the model {base.place} of this instructkit is not the one that this was trained on")
    if base.relative is None:
        _check_commit(base, folder)
        return base.place
    there = lying(base, folder)
    for path in there:
        if checkpoint_digest(path) == base.digest:
            return str(path)
    raise UserError(
        f"{folder}: the base {there[0]} is not the one that this was trained on: its configuration or weights have "
        f"changed since (SHA-256 {checkpoint_digest(there[0])[:12]}, not {(base.digest or '')[:12]})"
    )


def lying(base: Base, folder: Path) -> list[Path]:
    """What lies at the places of a base that has a path, at least one; it is not compared with anything.

    Raises:
        UserError: nothing lies there.
    """
    places = (Path(base.place), Path(os.path.normpath(folder / (base.relative or ""))))
    there = [path for path in places if path.exists()]
    if not there:
        raise UserError(
            f"{folder}: the base {base.place} is not there, and nothing lies at {base.relative} from this folder; put "
            f"it back, or write where it is now into instructkit.json (bases, place)"
        )
    return there


def check_package(base: Base, folder: Path) -> None:
    """Compare what a package ships; call where it may be imported, as one that puts its file together is.

    Raises:
        UserError: it is another file than the one that was trained on.
    """
    if base.place.startswith(PACKAGE) and base.digest not in (None, checkpoint_digest(packaged(base.place))):
        raise UserError(f"{folder}: what {base.place} ships is not what this was trained on")


def checkpoint_digest(place: Path) -> str:
    """SHA-256 over the configuration and weights of a folder, or over a file."""
    paths = [place]
    if place.is_dir():
        found = chain(place.glob("*"), place.glob("adapters/*/*"))
        paths = sorted(path for path in found if path.suffix in _WEIGHTS or path.name in _FACTS)
    whole = hashlib.sha256()
    for path in paths:
        whole.update(f"{path.relative_to(place).as_posix()} {sha256_of(path)}\n".encode())
    return whole.hexdigest()


def _base(name: str, folder: Path) -> Base:
    if name in SHIPPED:
        return Base(name, digest=checkpoint_digest(Path(place_of(name))))
    if name.startswith(PACKAGE):
        return Base(name, digest=checkpoint_digest(packaged(name)))
    path = Path(os.path.abspath(name))
    if path.exists():
        relative = os.path.relpath(path, os.path.abspath(folder))
        return Base(str(path), relative, checkpoint_digest(path))
    return Base(name, commit=kept_commit(place_of(name)))


def kept_commit(place: str) -> str | None:
    """The commit of a hub's model that was loaded last, None for what is not of the hub.

    The hub is not asked: what was trained must not be lost where it does not answer.
    """
    return _snapshot(try_to_load_from_cache(place, "config.json"))


def _snapshot(file: object) -> str | None:
    """The commit whose folder of the hub's cache a file lies in."""
    return Path(file).parent.name if isinstance(file, str) else None


def _check_commit(base: Base, folder: Path) -> None:
    if base.commit is None:
        return
    with failing(f"{folder}: the base {base.place}", "cannot be read"), quiet():
        now = _snapshot(cached_file(place_of(base.place), "config.json"))
    if now != base.commit:
        raise UserError(
            f"{folder}: the base {base.place} is at commit {now} now, this was trained on {base.commit}; fetch that "
            f"one (hf download {place_of(base.place)} --revision {base.commit}) or train again"
        )
