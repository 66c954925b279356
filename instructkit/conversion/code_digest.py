"""A digest of the source text of modules and of all that they import from this package."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

_PACKAGE = __name__.partition(".")[0]


def code_digest(*modules: str) -> str:
    """SHA-256 over the named modules and the modules of this package that they import, those in turn, and so on.

    Imports are read from the text, wherever they stand in it; nothing is run. The order of the names does not matter.

    Args:
        modules: full names, say `instructkit.sources.vqav2`.
    """
    texts: dict[str, bytes] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in texts:
            continue
        path = _file(name)
        if path is not None:
            texts[name] = path.read_bytes()
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            waiting += _imported(texts[name], package)
    digest = hashlib.sha256()
    for name in sorted(texts):
        digest.update(f"{name} {len(texts[name])}\n".encode())
        digest.update(texts[name])
    return digest.hexdigest()


def _file(name: str) -> Path | None:
    """The file of a module; None for what a module defines, and for a module without a text."""
    found: str | None = None
    parent, locations = "", None
    for part in name.split("."):
        full = f"{parent}.{part}" if parent else part
        if parent and locations is None:
            return None  # the parent is no package
        loaded = sys.modules.get(full)
        spec = loaded.__spec__ if loaded is not None else PathFinder.find_spec(full, locations)
        if spec is None:
            return None
        parent, found = full, spec.origin
        locations = list(getattr(loaded, "__path__", spec.submodule_search_locations or [])) or None
    return Path(found) if found is not None and found.endswith(".py") else None


@cache
def _imported(text: bytes, package: str) -> tuple[str, ...]:
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(name for name in found if name.split(".")[0] == _PACKAGE)
