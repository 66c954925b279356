"""The shipped recipes, from a program's own process or under DeepSpeed's launcher."""

from __future__ import annotations

import atexit
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from instructkit.config.read import find_config, load_settings, recipes_folder
from instructkit.config.settings import EvaluationRun
from instructkit.errors import UserError
from instructkit.files import parse_yaml
from instructkit.runs.run import open_run

_SETTING = re.compile(r"[A-Za-z_][\w.]*=")


def run_recipe(config: str, settings: Mapping[str, Any]) -> Path:
    """Run the recipe of a config in this process, as its only rank.

    Args:
        config: name of a config, or its file.
        settings: over those of the config; values that JSON has, or paths.

    Returns:
        The run's folder.

    Raises:
        UserError: what the recipe says.
    """
    wanted = load_settings(find_config(config), [word(key, value) for key, value in settings.items()])
    recipe = _load(recipes_folder() / f"{wanted.recipe}.py")
    with _one_rank(), open_run(wanted, Path(wanted.output), getattr(wanted, "project", None)) as run:
        getattr(recipe, wanted.recipe)(run)
    return Path(wanted.output)


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """Settings that stand on a command line as `key=value`.

    Raises:
        UserError: a word is none, or its value is no YAML.
    """
    if wrong := [each for each in words if "=" not in each]:
        raise UserError(f"{wrong[0]!r}: settings are given as key=value, such as max_steps=20")
    pairs = (each.split("=", 1) for each in words)
    return {key: parse_yaml(value, key) for key, value in pairs}


def dotted(settings: EvaluationRun) -> dict[str, Any]:
    """Settings of an evaluation by key, with its group in front: `evaluation.limit`."""
    found: dict[str, Any] = {}
    for group, value in msgspec.to_builtins(settings).items():
        if isinstance(value, dict):
            found.update({f"{group}.{key}": each for key, each in value.items()})
        else:
            found[group] = value
    return found


def word(key: str, value: Any) -> str:
    """A setting as a word of a command line.

    Raises:
        UserError: the value is none that a config can hold.
    """
    try:
        text = msgspec.json.encode(str(value) if isinstance(value, os.PathLike) else value).decode()
    except TypeError as error:
        raise UserError(f"{key}: a {type(value).__name__} is no value of a setting") from error
    return f"{key}={text}"


def launch_command(words: Sequence[str]) -> list[str]:
    """The command that runs the recipe of a config under DeepSpeed's launcher.

    Args:
        words: the config first; then settings as `key=value` in any place, and options of the launcher.

    Raises:
        UserError: the config is missing, or it or a setting is not as it must be.
    """
    if not words or words[0].startswith("-") or _SETTING.match(words[0]):
        raise UserError("train: the config comes first, such as easy_vqa: instructkit train CONFIG [key=value ...]")
    config = find_config(words[0])
    settings = [each for each in words[1:] if _SETTING.match(each)]
    wanted = load_settings(config, settings)  # a mistake is said once, before ranks start
    options = [each for each in words[1:] if not _SETTING.match(each)]
    recipe = str(recipes_folder() / f"{wanted.recipe}.py")
    return [sys.executable, "-m", "instructkit.runs.launch", *options, recipe, "--config", str(config), *settings]


def run_on_ranks(config: str, settings: Mapping[str, Any], ranks: int) -> None:
    """Run the recipe of a config under DeepSpeed's launcher, or go on with it; one that has ended is left as it is.

    Args:
        config: name of a config, or its file.
        settings: over those of the config; `output` among them.
        ranks: how many.

    Raises:
        UserError: the run fails; it has said why.
    """
    words = [word(key, value) for key, value in {**settings, "resume": True}.items()]
    if subprocess.run(launch_command([config, "--num_accelerators", str(ranks), *words])).returncode:
        raise UserError(f"{settings['output']}: the run of {config} ended with an error; mend it and start again")


def evaluate_on_ranks(settings: Mapping[str, Any], ranks: int) -> Path:
    """Evaluate a model under DeepSpeed's launcher, or go on with it; returns the folder.

    Args:
        settings: of `recipes/evaluate.py`; `output` among them.
        ranks: how many.

    Raises:
        UserError: the evaluation fails; it has said why.
    """
    words = [word(key, value) for key, value in settings.items()]
    launched = [sys.executable, "-m", "instructkit.runs.launch", "--num_accelerators", str(ranks)]
    if subprocess.run([*launched, str(recipes_folder() / "evaluate.py"), *words]).returncode:
        raise UserError(f"{settings['output']}: the evaluation ended with an error; mend it and start again")
    return Path(settings["output"])


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"instructkit_recipe_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"{path}: the recipe is not there; install instructkit again")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


@contextmanager
def _one_rank() -> Iterator[None]:
    """A run that leaves no variables behind in the environment of its process."""
    import torch.distributed as dist

    before, began = dict(os.environ), dist.is_initialized()
    try:
        yield
    finally:
        # The process group stays for the next run: DeepSpeed holds on to its groups and cannot start again.
        if dist.is_initialized() and not began:
            atexit.register(dist.destroy_process_group)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
