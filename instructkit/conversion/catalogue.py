"""What `instructkit sources` prints: all sources in a table, one in detail, or everything as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from textwrap import shorten
from typing import Any

import msgspec
import msgspec.inspect as inspect

from instructkit.sources import Source

_PLAIN = {
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.StrType: "string",
    inspect.BoolType: "boolean",
    inspect.NoneType: "null",
    inspect.AnyType: "anything",
    inspect.RawType: "anything",
}


def table(rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows in columns, the first row a heading; columns in `right` are set flush right."""
    cells = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def number(value: int | None) -> str:
    """`443,757`, or a dash for None."""
    return "-" if value is None else f"{value:,}"


def overview(sources: Sequence[Source]) -> str:
    """One line a source: name, task group, role, the paper's split and its published size, home page, licence."""
    rows = [("name", "task", "role", "split", "examples", "home", "licence")]
    for source in sources:
        size = number(source.splits[source.split].published)
        rows.append(
            (source.name, source.task, source.role, source.split, size, source.home, shorten(source.licence, 40))
        )
    return table(rows, right=[4])


def details(source: Source) -> str:
    """All about one source: facts, splits with their files, the folder tree, the keys of a record."""
    lines = [
        f"{source.title} ({source.name})",
        f"  task      {source.task}",
        f"  role      {source.role}, split {source.split}",
        f"  licence   {source.licence}",
        f"  home      {source.home}",
    ]
    if source.citation:
        lines.append(f"  citation  {source.citation}")
    lines += ["", "splits"]
    for name, split in source.splits.items():
        lines.append(f"  {name}: {number(split.published)} examples" + (f" ({split.note})" if split.note else ""))
        lines += [f"    {file}" for file in split.files]
    lines += ["", "folder"]
    if source.examples_of is None:
        lines += [f"  {line}" for line in source.tree.splitlines()]
        lines += ["", f"media   {source.images}"]
    else:
        lines.append(f"  needs none: uses the converted examples of {source.examples_of}, whose release is read")
    lines += ["", "record", *(f"  {line}" for line in record_keys(source.record))]
    return "\n".join(lines)


def as_json(source: Source) -> dict[str, Any]:
    """The facts of a source for programs; `files` and `published` are those of its `split`."""
    default = source.splits[source.split]
    return {
        "name": source.name,
        "title": source.title,
        "task": source.task,
        "role": source.role,
        "split": source.split,
        "files": list(default.files),
        "published": default.published,
        "splits": {
            name: {
                "files": list(split.files),
                "published": split.published,
                "hidden": split.hidden,
                "note": split.note,
            }
            for name, split in source.splits.items()
        },
        "images": source.images,
        "licence": source.licence,
        "home": source.home,
        "citation": source.citation,
        "examples_of": source.examples_of,
    }


def record_keys(record: type[msgspec.Struct]) -> Iterator[str]:
    """The keys of a record with their types, structs inside it below it, each once."""
    waiting, shown = [record], set()
    while waiting:
        struct = waiting.pop(0)
        if struct in shown:
            continue
        shown.add(struct)
        info = inspect.type_info(struct)
        assert isinstance(info, inspect.StructType)
        if struct is not record:
            yield f"{struct.__name__}:"
        elif info.array_like:
            yield "(a list of)"
        for field in info.fields:
            name = type_name(field.type, waiting)
            yield f"  {field.encode_name}: {name}{'' if field.required else ' (optional)'}"


def type_name(kind: inspect.Type, structs: list[type[msgspec.Struct]]) -> str:
    """A type in words of JSON; structs that it names are added to `structs`."""
    if type(kind) in _PLAIN:
        return _PLAIN[type(kind)]
    if isinstance(kind, inspect.StructType):
        structs.append(kind.cls)
        return kind.cls.__name__
    if isinstance(kind, inspect.ListType | inspect.SetType | inspect.VarTupleType):
        return f"list of {type_name(kind.item_type, structs)}"
    if isinstance(kind, inspect.TupleType):
        return "list of (" + ", ".join(type_name(item, structs) for item in kind.item_types) + ")"
    if isinstance(kind, inspect.DictType):
        return f"object of {type_name(kind.value_type, structs)}"
    if isinstance(kind, inspect.UnionType):
        return " or ".join(type_name(item, structs) for item in kind.types)
    if isinstance(kind, inspect.LiteralType):
        return " or ".join(map(repr, kind.values))
    return type(kind).__name__.removesuffix("Type").lower()
