"""What responses depend on: kept beside them, so that those of another model or protocol are never mixed in."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from instructkit.data.dataset import MANIFEST, not_converted
from instructkit.errors import UserError
from instructkit.evaluation.questions import Question
from instructkit.files import sha256_of
from instructkit.models.batches import Limits
from instructkit.models.load.bases import kept_commit
from instructkit.models.load.find import place_of
from instructkit.prompts.protocols import Protocol

_UNSCORED = ("title", "role", "published", "notes", "metric", "group_by")
"""Keys of a protocol that no response depends on."""
_SETTINGS = {"generate": "decoding", "retrieve": "retrieval"}
"""The key that one mode alone reads."""


def model_identity(name: str) -> str:
    """What a model is: SHA-256 over a folder's files or of a file, or the hub's name and commit."""
    place = place_of(name)
    if Path(place).is_file():
        return f"sha256:{sha256_of(Path(place))}"
    if not Path(place).is_dir():
        return f"{place}@{kept_commit(place)}"
    whole = hashlib.sha256()
    for path in sorted(Path(place).rglob("*")):
        if path.is_file():
            whole.update(path.relative_to(place).as_posix().encode() + b"\0" + sha256_of(path).encode() + b"\n")
    return f"sha256:{whole.hexdigest()}"


def protocol_digest(protocol: Protocol) -> str:
    """Short SHA-256 over all of a protocol that its responses depend on."""
    unused = {*_UNSCORED, "decoding", "retrieval"} - {_SETTINGS.get(protocol.mode)}
    settings = {key: value for key, value in msgspec.to_builtins(protocol).items() if key not in unused}
    return hashlib.sha256(msgspec.json.encode(settings, order="sorted")).hexdigest()[:16]


def responses_identity(
    question: Question, root: Path, model: str, *, limit: int | None, batch_size: int, dtype: str, limits: Limits
) -> dict[str, Any]:
    """All that the responses to a benchmark depend on.

    Args:
        question: protocol and, instead of its prompt, a wording.
        root: folder of converted datasets.
        model: from `model_identity`.
        limit: number of examples.
        batch_size: rounding errors differ with it, so bytes could.
        dtype: that the model computes in.
        limits: what prompts are cut to.

    Raises:
        UserError: a split is not converted.
    """
    protocol = question.protocol
    splits = [protocol.split, *(protocol.vocabulary.splits if protocol.vocabulary else [])]
    return {
        "model": model,
        "benchmark": protocol.benchmark,
        "protocol_version": protocol.version,
        "protocol": protocol_digest(protocol),
        "instruction": (question.wording or protocol).instruction,
        "data": {name: _manifest(root, name) for name in (f"{protocol.source}/{split}" for split in splits)},
        "limit": limit,
        "batch_size": batch_size,
        "dtype": dtype,
        "qformer_tokens": limits.qformer,
        "instruction_tokens": limits.instruction,
    }


def _manifest(root: Path, name: str) -> str:
    path = root / name / MANIFEST
    if not path.is_file():
        raise UserError(not_converted(name, root))
    return sha256_of(path)
