"""What a recipe does before torch is loaded, so that help and mistakes are told at once: arguments, settings, cores."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from instructkit.config.read import find_config
from instructkit.errors import UserError
from instructkit.runs.cores import share_cores
from instructkit.runs.ending import ENDING

C = TypeVar("C")


def start(
    module: str,
    doc: str | None,
    kind: type[C],
    load: Callable[..., C],
    default: str | None = None,
    arguments: Sequence[str] | None = None,
) -> C | None:
    """Read a recipe's command line; call at the top of the recipe, before torch is loaded.

    Args:
        module: the recipe's `__name__`; nothing is read where it is imported.
        doc: its docstring, of which the first line describes it.
        kind: of the settings, whose docstrings `--help` shows.
        load: makes them of the path of a config file and `key=value` words, of the words alone if there is no default.
        default: name of the config that is read where none is named; None for a recipe that has no configs.
        arguments: the command line without the program's name.

    Returns:
        The settings; None where the recipe is imported.
    """
    share_cores()
    if module != "__main__":
        return None
    ENDING.begin()
    # A script's own folder comes first on the path, where evaluate.py would hide the package of that name.
    sys.path.append(sys.path.pop(0))
    parser = argparse.ArgumentParser(
        description=(doc or "").splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["settings:", *setting_lines(kind)]),
    )
    if default is not None:
        parser.add_argument("--config", default=default, help="YAML file, or a name in recipes/configs (%(default)s)")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings, over those of a config")
    options = parser.parse_args(arguments)
    try:
        return load(*([] if default is None else [find_config(options.config)]), options.settings)
    except UserError as error:
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # the ranks of a machine all read the same words
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def setting_lines(kind: type, prefix: str = "") -> Iterator[str]:
    """A line for each setting: its name, its default and what it is, from the docstrings."""
    said = attributes(kind)
    fields = msgspec.structs.fields(kind)
    for field in fields:
        if not _is_group(field.type):
            yield f"  {prefix}{field.encode_name}={_default(field)}: {_first_sentence(said.get(field.name, ''))}"
    for field in fields:
        if _is_group(field.type):
            yield from setting_lines(field.type, f"{prefix}{field.encode_name}.")


def attributes(kind: type) -> dict[str, str]:
    """What a class's docstring says about each of its attributes."""
    found: dict[str, str] = {}
    for base in kind.__bases__:  # what it inherits
        found |= attributes(base) if base is not object else {}
    _, _, section = (inspect.cleandoc(kind.__doc__ or "")).partition("Attributes:\n")
    for name, text in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
        found[name] = " ".join(text.split())
    return found


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "..."
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return msgspec.json.encode(value).decode()


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\w)[.;] |\.$", text, maxsplit=1)[0]
