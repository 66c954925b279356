"""Imports go down: no room reads one above it, no circles, no private names of another room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "instructkit"
ROOMS = [
    "errors",
    "files",
    "config",
    "runs",
    "data",
    "sources",
    "prompts",
    "conversion",
    "world",
    "models",
    "evaluation",
    "training",
    "reports",
    "cli",
]
"""From the ground up; the package itself, which holds the API, stands on top."""


class Import(NamedTuple):
    """A module that reads another, and the names it takes."""

    reader: str
    read: str
    names: tuple[str, ...]
    place: str


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, root: Path, modules: set[str]) -> Iterator[Import]:
    """Every import of the package's own modules in a file, wherever it stands (type checking and functions too)."""
    reader = module_of(path, root)
    package = reader if path.name == "__init__.py" else reader.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        place = f"{path.relative_to(root.parent)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == root.name:
                    yield Import(reader, alias.name, (), place)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            if base.split(".")[0] != root.name:
                continue
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield (
                    Import(reader, whole, (), place) if whole in modules else Import(reader, base, (alias.name,), place)
                )


def all_imports(root: Path) -> list[Import]:
    files = sorted(root.rglob("*.py"))
    modules = {module_of(path, root) for path in files}
    return [found for path in files for found in imports_of(path, root, modules)]


def room_of(module: str) -> str:
    """The room of a module; the package itself is on top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def level(module: str) -> int:
    room = room_of(module)
    return ROOMS.index(room) if room else len(ROOMS)


def upward(imports: list[Import]) -> list[str]:
    return [
        f"{found.place}: {found.reader} may not read {found.read}, which stands above it"
        for found in imports
        if level(found.read) > level(found.reader) and found.names != ("__version__",)
    ]


def private(imports: list[Import]) -> list[str]:
    return [
        f"{found.place}: {'.'.join((found.read, *found.names))} is private to {room_of(found.read)}"
        for found in imports
        if room_of(found.read) != room_of(found.reader)
        and any(part.startswith("_") and not part.endswith("__") for part in (*found.read.split("."), *found.names))
    ]


def circles(imports: list[Import]) -> list[str]:
    """Each import that leads back to its own module."""
    reads: dict[str, set[str]] = {}
    imports = [found for found in imports if found.names != ("__version__",)]
    for found in imports:
        if found.reader != found.read:
            reads.setdefault(found.reader, set()).add(found.read)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for module in reads.get(waiting.pop(), ()):
                if module not in seen:
                    seen.add(module)
                    waiting.append(module)
        return seen

    beyond = {module: reached(module) for module in reads}
    return [
        f"{found.place}: {found.reader} and {found.read} read each other"
        for found in imports
        if found.reader != found.read and found.reader in beyond.get(found.read, ())
    ]


def test_imports_go_down() -> None:
    assert upward(all_imports(PACKAGE)) == []


def test_no_imports_run_in_circles() -> None:
    assert circles(all_imports(PACKAGE)) == []


def test_no_room_takes_what_is_private_to_another() -> None:
    assert private(all_imports(PACKAGE)) == []


def test_every_module_is_in_a_room() -> None:
    loose = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert loose <= {"errors", "files", "config", "cli"}
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert rooms <= set(ROOMS)


def test_wrong_imports_are_found(tmp_path: Path) -> None:
    root = tmp_path / "instructkit"
    for name, text in {
        "__init__.py": "",
        "data/__init__.py": "",
        "data/one.py": "def late():\n    from instructkit.models import net\n",
        "data/two.py": "from . import three\n",
        "data/three.py": "\nimport instructkit.data.two\n",
        "models/__init__.py": "",
        "models/net.py": "from instructkit.data.one import _hidden, shown\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    found = all_imports(root)
    assert [line.split(": ")[0] for line in upward(found)] == ["instructkit/data/one.py:2"]
    assert [line.split(": ")[0] for line in private(found)] == ["instructkit/models/net.py:1"]
    assert {line.split(": ")[0] for line in circles(found)} == {
        "instructkit/data/one.py:2",
        "instructkit/data/two.py:1",
        "instructkit/data/three.py:2",
        "instructkit/models/net.py:1",
    }
