"""Files: written whole or not at all, known again by their SHA-256, and YAML that is read strictly.

A SHA-256 is read in full or remembered from an earlier reading, in the user's cache folder (`$XDG_CACHE_HOME` or
`~/.cache`, there `instructkit/checksums`), one file a folder of data, by size, times and inode. A file that was written
in the last seconds is not remembered: a later write might leave it the same time.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import shutil
import time
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import yaml

from instructkit.errors import QUOTED, UserError, did_you_mean, quote

BLOCK = 1 << 20
_SETTLED_SECONDS = 2
_log = logging.getLogger(__name__)

Stamp = tuple[int, int, int, int]
"""Size, time of the last write and of the last change (ns), inode."""
_Known = dict[str, tuple[Stamp, str]]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def damage(folder: Path, checksums: Mapping[str, str], *, anew: bool = False) -> list[str]:
    """What is wrong with files: a phrase for each that is missing, cannot be read or has another SHA-256.

    Args:
        folder: where the files are.
        checksums: SHA-256 by file name.
        anew: read every file, whatever is remembered.
    """
    memory = _memory(folder)
    known = _recall(memory) if memory is not None else {}
    found: _Known = {}
    wrong = []
    for name, expected in checksums.items():
        path = folder / name
        try:
            stamp = _stamp(path)
            remembered = known.get(name)
            fresh = anew or remembered is None or remembered[0] != stamp
            actual = sha256_of(path) if fresh or remembered is None else remembered[1]
        except FileNotFoundError:
            wrong.append(f"{path}: missing")
            continue
        except OSError as error:
            wrong.append(f"{path}: cannot be read ({error.strerror})")
            continue
        if max(stamp[1:3]) < (time.time() - _SETTLED_SECONDS) * 1e9 and _stamp(path) == stamp:
            found[name] = (stamp, actual)
        if actual != expected:
            wrong.append(f"{path}: damaged, its SHA-256 is not that of what was written")
    if memory is not None and any(known.get(name) != value for name, value in found.items()):
        _remember(memory, known | found)
    return wrong


def _stamp(path: Path) -> Stamp:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


def _memory(folder: Path) -> Path | None:
    """The file that remembers what was read in a folder; None for a user without a home."""
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not os.path.isabs(home):
        return None
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return Path(home) / "instructkit" / "checksums" / f"{name}.json"


def _recall(memory: Path) -> _Known:
    try:
        return msgspec.json.decode(memory.read_bytes(), type=_Known)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}  # nothing is remembered: everything is read


def _remember(memory: Path, known: _Known) -> None:
    partial = memory.with_name(f"{memory.name}.{os.getpid()}.tmp")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(msgspec.json.encode(known))
        os.replace(partial, memory)
    except OSError as error:
        _log.warning("%s: cannot be written (%s), so checksums are read again next time", memory, error.strerror)


def write_atomically(path: Path, text: str | bytes) -> None:
    """Write a small file so that a reader sees the old one or the new one, never half of it."""
    partial = path.with_name(path.name + ".tmp")
    try:
        partial.write_bytes(text.encode() if isinstance(text, str) else text)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` when it is whole; until then that one stays.

    Raises:
        UserError: the disk refuses; what was written is removed.
    """
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with writing(folder):
            aside.mkdir(parents=True)
            yield aside
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_stream(path: Path, parts: Iterable[str]) -> None:
    """Write a text file part by part; it appears under its name only when it is whole.

    Raises:
        UserError: the file cannot be written.
    """
    partial = path.with_name(path.name + ".tmp")
    with writing(path):
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(parts)
        os.replace(partial, path)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn what the disk refuses into a `UserError` that names what was to be written."""
    try:
        yield
    except Exception as error:
        reason = refusal(error, place)
        if reason is None:
            raise
        raise UserError(f"{place}: cannot be written ({reason})") from error


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turn what a file raises that is damaged or cannot be read into a `UserError` that names it.

    Args:
        path: what is read.
        remedy: what to do about it, in a few words.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from error
    except (ValueError, LookupError, TypeError, AttributeError, EOFError, RecursionError, msgspec.DecodeError) as error:
        raise UserError(f"{path}: damaged ({_short(str(error)) or type(error).__name__}); {remedy}") from error


def read_json(path: Path, kind: Any, remedy: str) -> Any:
    """Read a JSON file that this toolkit wrote.

    Args:
        path: the file.
        kind: type of its content.
        remedy: what to do about a damaged one, in a few words.

    Raises:
        UserError: the file cannot be read, or is not of this type.
    """
    with reading(path, remedy):
        return msgspec.json.decode(path.read_bytes(), type=kind)


def refusal(error: BaseException, place: Path) -> str | None:
    """Why the disk took or gave no file, if that is what an error says: of Python, of torch or of safetensors.

    Args:
        error: what was raised.
        place: what was written; where the library does not pass the reason on, how full its disk is.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or str(error)
    text = " ".join(str(error).split())
    of_safetensors = re.search(r'IoError\(Os \{.*message: "([^"]*)"|I/O error: (.+) \(os error \d+\)', text)
    if of_safetensors is not None:
        return of_safetensors[1] or of_safetensors[2]
    if "inline_container" in text or "PytorchStreamWriter" in text:  # torch's own files
        there = next((folder for folder in (place, *place.parents) if folder.exists()), Path("/"))
        return f"perhaps the disk is full: {shutil.disk_usage(there).free / 1e6:,.1f} MB are free"
    return None


def read_yaml(path: Path, kind: Any = Any) -> Any:
    """Read a YAML file into a struct; see `parse_yaml`.

    Raises:
        UserError: the file cannot be read, is not taken, or has an unknown, missing or ill-typed key; the message
            begins with its name.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # the latter of a NUL in the name, or of bytes that are no UTF-8
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason})") from error
    return fit(parse_yaml(text, str(path)), kind, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text says, as plain values.

    YAML is read more strictly than usual, where it would say something else than people mean: numbers are decimal
    (`010` and `1:30` stay texts, `1e-5` is a number), dates stay texts, keys are texts and stand once, and aliases
    (`*name`) may neither run in a circle nor unfold to more than 100,000 values.

    Args:
        text: the YAML.
        where: begins every message: a file's name, or the word of a command line.

    Raises:
        UserError: the text is no YAML, or breaks one of these rules.
    """
    try:
        loader = _Strict(text)
        try:
            node = loader.get_single_node()
            if node is None:  # an empty text
                return None
            _unfolded(node, {}, set())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UserError(f"{where}: {_yaml_problem(error)}") from error
    except (RecursionError, MemoryError) as error:
        raise UserError(f"{where}: is nested too deeply") from error
    except ValueError as error:  # of Python itself: an integer of thousands of digits
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error


def fit(value: Any, kind: Any, where: str) -> Any:
    """Plain values as a struct of this type.

    Raises:
        UserError: a key is unknown or missing, or a value is of the wrong type or out of range; the message names the
            key and quotes the value.
    """
    for problem in _impossible(value):
        raise UserError(f"{where}: {problem}")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {_misfit(str(error), value, kind)}") from error


def _impossible(value: Any, key: str = "") -> Iterator[str]:
    """What no setting and no text can be: a number that is not finite, letters that cannot be written."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _impossible(name, key)
            yield from _impossible(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _impossible(inner, f"{key}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{key} = {value}: Expected a finite number"
    elif isinstance(value, str) and ("\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
        yield f"{key} = {quote(value)}: Expected a text without NUL and halves of surrogate pairs"


def _misfit(message: str, value: Any, kind: Any) -> str:
    """What does not fit, instead of msgspec's words: key, value, and what is expected there."""
    problem, _, place = message.rpartition(" - at ") if " - at `" in message else (message, "", "")
    steps = re.findall(r"\[\d+\]|\[\.\.\.\]|[^.\[\]]+", place.strip("`").removeprefix("$"))
    for step in steps:
        kind = _inside(kind, step)
        if step.startswith("["):
            value = value[int(step[1:-1])] if isinstance(value, list) and step != "[...]" else value
        else:
            value = value.get(step) if isinstance(value, dict) else value
    key = "".join(step if step.startswith("[") else f".{step}" for step in steps).removeprefix(".").replace("[...]", "")
    fields = getattr(_plain(kind), "__struct_fields__", None)
    if (unknown := re.search(r"unknown field `(.*)`$", problem, re.DOTALL)) is not None and fields:
        name = unknown.group(1)
        shown = name if name.isidentifier() and len(name) <= QUOTED else quote(name)
        return f"unknown key {f'{key}.' if key else ''}{shown}; {did_you_mean(name, fields)}"
    if fields and problem.startswith("Expected `object`"):
        return f"{key} is a group of keys, not {quote(value)}" if key else f"holds keys with values, not {quote(value)}"
    if problem.startswith("Invalid enum value"):
        problem = f"Expected {_or(_choices(kind))}"
    problem = problem.replace(f"matching regex {NOT_BLANK!r}", "that is not blank")
    if not key or problem.startswith("Object missing"):
        return f"{key}: {problem}" if key else problem
    return f"{key} = {quote(value)}: {problem}"


NOT_BLANK = r"\S"
"""Pattern of a text that says something."""


def _plain(kind: Any) -> Any:
    """A type without Annotated and without None beside it."""
    while typing.get_origin(kind) in (typing.Annotated, typing.Union, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def _inside(kind: Any, step: str) -> Any:
    """The type of what stands at a field, an index or a key of a type."""
    kind = _plain(kind)
    if step.startswith("["):
        arguments = typing.get_args(kind)
        if not arguments:
            return Any
        return arguments[int(step[1:-1])] if typing.get_origin(kind) is tuple and step != "[...]" else arguments[-1]
    return typing.get_type_hints(kind, include_extras=True).get(step, Any) if isinstance(kind, type) else Any


def _choices(kind: Any) -> list[str]:
    """What the literals of a type allow."""
    if typing.get_origin(kind) is typing.Literal:
        return [str(value) for value in typing.get_args(kind)]
    return ["null"] if kind is type(None) else [text for part in typing.get_args(kind) for text in _choices(part)]


def _or(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "".join(words)


_MOST_VALUES = 100_000


class _Strict(yaml.SafeLoader):
    """A loader of plain values with fewer surprises."""


_OTHERWISE = ("int", "float", "timestamp", "value")
_Strict.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag.rpartition(":")[2] not in _OTHERWISE]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Strict.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Strict.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?((\.[0-9]+|(0|[1-9][0-9_]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)


def _mapping(loader: _Strict, node: yaml.MappingNode) -> Any:
    seen = set()
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.tag != "tag:yaml.org,2002:str":
            shown = quote(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise _not_taken(key, f"a key is a text, not {shown.strip(chr(39))}; put it into quotes if it is meant")
        if key.value in seen:
            raise _not_taken(key, f"the key {quote(key.value)} stands twice; keep one")
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


def _refuse(loader: _Strict, node: yaml.Node) -> Any:
    raise _not_taken(node, f"has the tag {quote(node.tag)}, which is for programs")


_Strict.add_constructor("tag:yaml.org,2002:map", _mapping)
for _tag in ("binary", "timestamp", "omap", "pairs", "set"):
    _Strict.add_constructor(f"tag:yaml.org,2002:{_tag}", _refuse)


def _not_taken(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong, on one line, with the line of the text where it has several."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return _short(str(error))
    mark, parts = error.problem_mark or error.context_mark, [error.context, error.problem]
    line = f"line {mark.line + 1}: " if mark is not None else ""
    return line + _short(", ".join(part for part in parts if part))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 400 else f"{line[:190]} ... {line[-190:]}"


def _unfolded(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """How many values a node comes to once its aliases are written out."""
    if id(node) in above:
        raise _not_taken(node, "a value holds itself")
    if id(node) not in known:
        size = 1
        if isinstance(node, yaml.CollectionNode):
            pairs = isinstance(node, yaml.MappingNode)
            inside = [part for pair in node.value for part in pair] if pairs else node.value
            size += sum(_unfolded(part, known, above | {id(node)}) for part in inside)
        if size > _MOST_VALUES:
            raise _not_taken(node, f"holds more than {_MOST_VALUES:,} values, aliases written out")
        known[id(node)] = size
    return known[id(node)]
