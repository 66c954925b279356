"""A run's settings: one YAML file, `key=value` words behind it, checked by type, range and name.

    deepspeed recipes/instruct.py --config recipes/configs/easy_vqa.yaml max_steps=20 towers.llm=frozen

A file may begin with `base: other.yaml`, a file beside it or the name of a config: its own keys then go over those of
that file, which has no base itself. Words go over files; `epochs` in one takes the place of `max_steps` below it.

A word names a key with its group (`training.max_steps`) or, where no two groups share it, without (`max_steps`).
`data=mine/receipts.jsonl` is short for `data.raw.jsonl=mine/receipts.jsonl data.train=[jsonl/receipts]`, and
`data=mine`, a folder, for `data.raw.jsonl=mine data.train=[jsonl/train]`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import msgspec

from instructkit.config.conflicts import conflicts_of, conflicts_of_capfilt
from instructkit.config.settings import GROUPS, CapFiltRun, EvaluationRun, RunConfig
from instructkit.errors import QUOTED, UserError, did_you_mean, quote
from instructkit.files import fit, parse_yaml, read_yaml

LENGTHS = frozenset(("max_steps", "epochs"))
"""Settings of which one says how long a run is."""
_BOTH_LENGTHS = "training.epochs and training.max_steps both say how long the run is; give one of the two"


def load_config(path: Path, words: Sequence[str] = ()) -> RunConfig:
    """Read a config file and put `key=value` words over it.

    Raises:
        UserError: a missing file, an unknown key, a value of the wrong type or out of range, settings that contradict
            each other.
    """
    tree = _with_base(path, RunConfig)
    config: RunConfig = fit(tree, RunConfig, str(path))
    given: set[str] = set()
    for word in words:
        given |= _override(tree, word)
        if len(given) > 1:
            raise UserError(f"{quote(word)}: {_BOTH_LENGTHS}")
        for name in LENGTHS - given if given else ():  # the file's
            tree["training"].pop(name, None)
        config = fit(tree, RunConfig, quote(word))
    for problem in conflicts_of(config):
        raise UserError(f"{path}{' with ' + quote(' '.join(words)) if words else ''}: {problem}")
    return config


def load_capfilt(path: Path, words: Sequence[str] = ()) -> CapFiltRun:
    """Read a config file of CapFilt and put `key=value` words over it.

    Raises:
        UserError: as `load_config`.
    """
    tree = _with_base(path, CapFiltRun)
    for word in words:
        key, sign, text = word.partition("=")
        if not sign:
            raise UserError(f"{quote(word)}: settings are given as key=value, such as filter.threshold=0.4")
        *groups, name = _locate(key, CapFiltRun)
        value = parse_yaml(text, quote(word))
        inner = tree
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = value
        fit(tree, CapFiltRun, quote(word))
    config: CapFiltRun = fit(tree, CapFiltRun, str(path))
    for problem in conflicts_of_capfilt(config):
        raise UserError(f"{path}{' with ' + quote(' '.join(words)) if words else ''}: {problem}")
    return config


def load_settings(path: Path, words: Sequence[str] = ()) -> RunConfig | CapFiltRun:
    """Read a config file of any recipe and put `key=value` words over it.

    Raises:
        UserError: as `load_config`.
    """
    return load_capfilt(path, words) if _recipe_of(path) == "capfilt" else load_config(path, words)


def _recipe_of(path: Path) -> Any:
    """The recipe that a config file names, or the one that it goes over; None where none does."""
    tree = _mapping(path)
    base = tree.get("base")
    if "recipe" not in tree and isinstance(base, str) and base.strip():
        tree = _mapping(_base_file(path, base))
    return tree.get("recipe")


def _with_base(path: Path, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The keys of a config file over those of the one that it names as its `base`."""
    _check_kind(path, _recipe_of(path), kind)
    tree = _read(path, kind)
    if "base" not in tree:
        return tree
    name = tree.pop("base")
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{path}: base = {quote(name)}: Expected the name of a config or a file beside this one")
    below = _base_file(path, name)
    base = _read(below, kind)
    if "base" in base:
        raise UserError(f"{path}: its base {below} has a base itself; a base is one level deep")
    return _over(base, tree, kind)


def _base_file(path: Path, name: str) -> Path:
    beside = [path.parent / name, path.parent / f"{name}.yaml"]
    for place in beside:
        if place.is_file():
            return place
    if name.endswith((".yaml", ".yml")):
        raise UserError(f"{path}: base = {quote(name)}: no such file; it is looked for at {quote(str(beside[0]))}")
    try:
        return find_config(name)
    except UserError as error:
        raise UserError(f"{path}: base = {error}") from error


_NEEDED = ("model.name", "evaluation.benchmarks", "output")
_FORMER = {
    "out": "output=... is its name now",
    "batch_size": "eval_batch_size=... is its name now",
    "data": "the folder of converted datasets is data.root=...",
}


def evaluation_settings(values: Mapping[str, Any]) -> EvaluationRun:
    """Settings of an evaluation by key, with or without its group; `benchmarks` may be one text with commas.

    Args:
        values: such as {"model": "runs/easy_vqa/model", "benchmarks": "gqa,vsr", "output": "runs/gqa"}; `model` with a
            text is short for `model.name`.

    Raises:
        UserError: a key is unknown or missing, or a value does not fit.
    """
    tree: dict[str, Any] = {}
    for key, value in values.items():
        if key in _FORMER and not (key in EvaluationRun.__struct_fields__ and isinstance(value, dict)):
            raise UserError(f"{key}={quote(value)}: {_FORMER[key]}")
        path = ["model", "name"] if key == "model" and not isinstance(value, dict) else _locate(key, EvaluationRun)
        if path[-1] == "benchmarks" and (value is None or isinstance(value, str)):
            value = [name.strip() for name in (value or "").split(",") if name.strip()]
        inner = tree.setdefault(path[0], {}) if len(path) > 1 else tree
        inner[path[-1]] = value
        fit({"output": "-"} | tree, EvaluationRun, "evaluation settings")
    for needed in _NEEDED:
        group, _, name = needed.rpartition(".")
        if not (tree.get(group, {}) if group else tree).get(name):
            raise UserError(f"evaluation needs {name if group == 'evaluation' else needed}=...")
    run: EvaluationRun = fit(tree, EvaluationRun, "evaluation settings")
    dtype = run.evaluation.dtype or "float32"
    return msgspec.structs.replace(run, evaluation=msgspec.structs.replace(run.evaluation, dtype=dtype))


def evaluation_words(words: Sequence[str]) -> EvaluationRun:
    """Settings of an evaluation from words such as `model.name=runs/easy_vqa/model limit=100`.

    Raises:
        UserError: a word is no `key=value`, or its key or value does not fit.
    """
    values: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign:
            raise UserError(f"{quote(word)}: settings are given as key=value, such as limit=100")
        values[name] = parse_yaml(text, quote(word))
    return evaluation_settings(values)


def _mapping(path: Path) -> dict[str, Any]:
    """The keys of one config file, unchecked."""
    if not path.is_file():
        raise UserError(f"{path}: no such config file")
    tree = read_yaml(path)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values, not {quote(tree)}")
    return tree


def _read(path: Path, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The keys of one config file, checked by name, type and range."""
    tree = _mapping(path)
    fit({key: value for key, value in tree.items() if key != "base"}, kind, str(path))
    if kind is RunConfig and all(tree.get("training", {}).get(name) is not None for name in LENGTHS):
        raise UserError(f"{path}: {_BOTH_LENGTHS}")
    return tree


def _check_kind(path: Path, recipe: Any, kind: type[msgspec.Struct]) -> None:
    """Refuse a file whose keys are those of another kind of recipe, before they are called unknown."""
    wrong = recipe == "capfilt" if kind is RunConfig else recipe not in (None, "capfilt")
    if wrong:
        wanted = "a recipe that trains" if kind is RunConfig else "recipes/capfilt.py"
        raise UserError(f"{path}: recipe = {quote(recipe)}: these settings are for that recipe, not for {wanted}")


def _over(base: dict[str, Any], tree: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """One file's keys over another's, key by key in each group; one that says how long a run is replaces the other."""
    both = base | tree
    for name in _groups(kind):
        if name in base and name in tree:
            lengths = any(tree[name].get(key) is not None for key in LENGTHS)
            below = {key: value for key, value in base[name].items() if not (lengths and key in LENGTHS)}
            both[name] = below | tree[name]
    return both


def recipes_folder() -> Path:
    """The folder `recipes/`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def config_names() -> dict[str, Path]:
    """The configs that are found by name, sorted: those of `recipes/configs` here, then those that are shipped."""
    folders = [recipes_folder() / "configs", Path("recipes") / "configs"]
    return dict(sorted((path.stem, path) for folder in folders for path in folder.glob("*.yaml")))


def described(config: Path) -> str:
    """The first sentence of a config file's heading comment."""
    lines = takewhile(lambda line: line.startswith("# "), config.read_text(encoding="utf-8").splitlines())
    return re.split(r"(?<=\w)\.(?: |$)", " ".join(line[2:] for line in lines), maxsplit=1)[0]


def find_config(name: str) -> Path:
    """A config file by its path, or by its name in `recipes/configs` of this folder or of the toolkit.

    Raises:
        UserError: there is none.
    """
    if Path(name).is_file() or name.endswith((".yaml", ".yml")):
        return Path(name)
    known = config_names()
    if name not in known:
        raise UserError(f"{name}: no such config file, and no config has that name; {did_you_mean(name, list(known))}")
    return known[name]


def _override(tree: dict[str, Any], word: str) -> set[str]:
    """Put a word over a tree; returns which of `LENGTHS` it gives."""
    key, sign, text = word.partition("=")
    if not sign:
        raise UserError(f"{quote(word)}: settings are given as key=value, such as max_steps=20")
    path = _locate(key)
    value = parse_yaml(text, quote(word))
    if key == "data" and isinstance(value, str):
        _train_on_own(tree.setdefault("data", {}), value)
        return set()
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    if path[0] in GROUPS and len(path) == 1 and isinstance(value, dict):
        tree.setdefault(key, {}).update(value)
    else:
        tree[path[-1]] = value
    group = value if path == ["training"] and isinstance(value, dict) else {path[-1]: value}
    return {name for name in LENGTHS if path[0] == "training" and group.get(name) is not None}


def _train_on_own(data: dict[str, Any], place: str) -> None:
    """Put the settings that convert your own file or folder, and train on it, into the group `data`."""
    data["raw"] = {**data.get("raw", {}), "jsonl": place}
    data["train"] = [f"jsonl/{Path(place).stem if place.endswith('.jsonl') else 'train'}"]


def _locate(key: str, kind: type[msgspec.Struct] = RunConfig) -> list[str]:
    """Where a key stands: itself at the top, in the group it names, or in the only group that has it.

    Behind a setting that is a mapping, such as `data.weights`, stands one of its keys, whatever letters that has.
    """
    groups = GROUPS if kind is RunConfig else _groups(kind)
    first, *more = key.split(".")
    if first in groups and more:
        known = groups[first].__struct_fields__
        if more[0] not in known:
            raise UserError(f"unknown key {_shown(key)}; {did_you_mean(more[0], known)}")
        path, inner = [first, more[0]], more[1:]
    elif first in kind.__struct_fields__:
        path, inner = [first], more
    else:
        found = [name for name, group in groups.items() if first in group.__struct_fields__]
        if not found:
            everything = [*kind.__struct_fields__]
            everything += [field for group in groups.values() for field in group.__struct_fields__]
            fields = ", ".join(kind.__struct_fields__)
            everywhere = f"there are {fields}; instructkit/config/settings.py explains all their keys"
            raise UserError(f"unknown key {_shown(key)}; {did_you_mean(first, everything, everywhere)}")
        if len(found) > 1:
            names = " or ".join(f"{group}.{key}" for group in found)
            raise UserError(f"key {_shown(key)} is in several groups: write {names}")
        path, inner = [found[0], first], more
    if inner:
        value = get_type_hints(groups[path[0]])[path[1]] if len(path) > 1 else None
        if get_origin(value) is not dict:
            raise UserError(f"unknown key {_shown(key)}; {'.'.join(path)} is a single value")
        path.append(".".join(inner))
    return path


def _groups(kind: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct]]:
    hints = get_type_hints(kind)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, msgspec.Struct)}


def _shown(key: str) -> str:
    return key if key.isprintable() and len(key) <= QUOTED else quote(key)
