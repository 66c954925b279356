"""Whether a model lies where a setting says: looked at before anything is loaded, and before data are converted."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, RepositoryNotFoundError

from instructkit.errors import UserError
from instructkit.models.load.packages import PACKAGE, installed, not_installed, opened
from instructkit.models.load.presets import PUBLISHED, SHIPPED

PATIENCE = 10.0
"""Seconds that the hub has to answer in; it is asked once."""
_CONFIGS = ("config.json", "instructkit.json")
_FILES = {".pth", ".pt", ".gguf", ".bin", ".safetensors"}
_FEW = 3


def place_of(name: str) -> str:
    """Folder or hub name that a part's name stands for."""
    if name.startswith(PACKAGE):
        return str(opened(name) or name)
    return SHIPPED.get(name) or PUBLISHED.get(name, name)


def find_model(name: str, part: str = "name", where: str | None = None) -> None:
    """Look whether a folder holds a model, or the hub has one of that name; nothing of it is read.

    Args:
        name: folder, `mini`, published size, hub name or `package:MODULE`.
        part: setting that named it.
        where: begins the message; None for the setting.

    Raises:
        UserError: there is none; the message says which names are near.
    """
    where, path = where or f"model.{part}={name}", Path(place_of(name))
    if name == "nano":
        raise UserError(f"{where}: that is a shape that training starts from random weights; name a model with weights")
    if _holds_model(path):
        return
    if name.startswith(PACKAGE):
        module = name.removeprefix(PACKAGE)
        ships = f"the package {module} ships no model that can be read as model.{part}"
        raise UserError(f"{where}: {ships if installed(name) else not_installed(module)}")
    if path.is_dir():
        above = (path.parent / "model", path.parent.parent / "model")  # as of a run's checkpoints
        inside = _models_below(path) or [each for each in above if _holds_model(each)]
        raise UserError(f"{where}: that folder holds no model (no config.json){_meant(inside)}")
    if path.exists():
        raise UserError(f"{where}: that is a file; name the folder of a model")
    near: list[Path | str] = [*_near_paths(path), *(_near_sizes(name) if part == "name" else [])]
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1 or path.suffix in _FILES:
        raise UserError(f"{where}: no such {'file' if path.suffix in _FILES else 'folder'}{_meant(near)}")
    if part == "name" and "/" not in place_of(name):
        sizes = f"; there are the published sizes {', '.join(PUBLISHED)}" if not near else ""
        raise UserError(f"{where}: no such folder, and no published size has that name{_meant(near)}{sizes}")
    if (problem := _problem_of_hub(place_of(name))) is not None:
        there = "" if name in PUBLISHED else "no such folder, and "
        raise UserError(f"{where}: {there}{problem}{_meant(near)}")


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _CONFIGS)


def _models_below(folder: Path) -> list[Path]:
    """Folders of models in a folder, as in that of a run, or one below."""
    return [each for each in (*sorted(folder.glob("*")), *sorted(folder.glob("*/*"))) if _holds_model(each)]


def _near_paths(path: Path) -> list[Path]:
    """Models of which the path is spelled almost so, or that lie where it ends."""
    known = next((each for each in path.parents if each.is_dir()), Path())
    missing, *rest = path.relative_to(known).parts or ("",)
    names = [each.name for each in known.iterdir() if each.is_dir()]
    near = [known.joinpath(name, *rest) for name in difflib.get_close_matches(missing, names, _FEW)]
    found = [model for each in near for model in (each, each / "model") if _holds_model(model)]
    return found or (_models_below(known) if known != Path() and not known.is_absolute() else [])


def _near_sizes(name: str) -> list[str]:
    """Shipped models and published sizes whose names are almost so."""
    plain = name.rpartition("/")[2].lower().replace("_", "-").removeprefix("instructblip-")
    return difflib.get_close_matches(plain, [*SHIPPED, *PUBLISHED], _FEW)


def _meant(found: Sequence[Path | str]) -> str:
    names = list(dict.fromkeys(map(str, found)))[:_FEW]
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _problem_of_hub(place: str) -> str | None:
    """Why the hub gives no model of a name; None where one is kept here, or the hub has it."""
    try:
        if isinstance(try_to_load_from_cache(place, "config.json"), str):
            return None
        get_hf_file_metadata(hf_hub_url(place, "config.json"), timeout=PATIENCE)
    except HFValidationError:
        return "that is no name of the Hugging Face hub either"
    except GatedRepoError:
        return f"the hub gives {place} only to those who accepted its terms: do so on its page, then hf auth login"
    except RepositoryNotFoundError:
        return f"the Hugging Face hub has no model {place}, or it is private (then: hf auth login)"
    except EntryNotFoundError:
        return f"{place} on the Hugging Face hub has no config.json"
    except Exception as error:  # of whatever client the hub's library uses
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return f"{place} is not in the cache of the Hugging Face hub, which cannot be asked ({reason})"
    return None
