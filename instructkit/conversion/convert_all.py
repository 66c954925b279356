"""`instructkit convert all`: every release that lies below one folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from instructkit import sources
from instructkit.conversion.catalogue import number, table
from instructkit.conversion.convert import Outcome, Progress, convert
from instructkit.data.readers import MissingFile, nearby
from instructkit.errors import UserError
from instructkit.prompts.protocols import benchmarks, load_protocol
from instructkit.sources import Source


class Result(NamedTuple):
    """What became of one split of one source.

    Attributes:
        source: its name.
        split: its split.
        status: `converted`, `unchanged`, `missing`, `failed`, or `needs none` for a source that uses another's
            examples.
        reason: why it is missing or failed, or whose examples it uses.
        outcome: the conversion, if there was one.
    """

    source: str
    split: str
    status: str
    reason: str = ""
    outcome: Outcome | None = None

    @property
    def bad(self) -> bool:
        """Whether it failed, too many records were rejected, or no media file is there."""
        made = self.outcome
        return self.status == "failed" or (made is not None and (made.too_many_rejects or bool(made.no_media)))


def convert_all(
    root: Path,
    out: Path,
    *,
    every_split: bool = False,
    images: Path | None = None,
    limit: int | None = None,
    jobs: int = 1,
    check_images: bool = False,
    force: bool = False,
    progress: Progress = lambda records: None,
) -> Iterator[Result]:
    """Convert what is found below a folder, source by source.

    A release is looked for in `root/<source name>`, then in `root` itself and in its other folders, where it counts as
    found if the split's files are there and no other source has files of the same names.

    Args:
        root: the folder.
        out: where converted datasets are kept.
        every_split: all splits that are found, instead of those that `needed_splits` names.
        images: as in `convert`, likewise the others.

    Raises:
        UserError: there is no such folder.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    for source in _releases():
        if source.examples_of is not None:
            yield Result(source.name, source.split, "needs none", f"uses the examples of {source.examples_of}")
            continue
        for split in source.splits if every_split else needed_splits(source):
            try:
                raw = find_release(root, source, split)
                outcome = convert(
                    source.name,
                    raw,
                    out,
                    split=split,
                    images=images,
                    limit=limit,
                    jobs=jobs,
                    check_images=check_images,
                    force=force,
                    progress=progress,
                )
            except MissingFile as error:
                yield Result(source.name, split, "missing", str(error))
            except UserError as error:
                yield Result(source.name, split, "failed", str(error))
            else:
                yield Result(source.name, split, "converted" if outcome.converted else "unchanged", "", outcome)


def needed_splits(source: Source) -> list[str]:
    """The split that the paper uses and those that benchmarks ask about or take their candidates from."""
    splits = [source.split]
    for protocol in map(load_protocol, benchmarks()):
        if protocol.source == source.name:
            splits += [protocol.split, *(protocol.vocabulary.splits if protocol.vocabulary else [])]
    return list(dict.fromkeys(splits))


def summary(results: Sequence[Result]) -> str:
    """A table of all results, and below it what went wrong."""
    rows = [("source", "split", "found", "examples", "rejected", "published", "count")]
    for result in results:
        counts = ("-", "-", "-", "-")
        if result.outcome is not None:
            made = result.outcome.manifest
            agrees = {None: "-", True: "agrees", False: "differs"}[result.outcome.agrees]
            agrees = "miniature" if made.miniature else agrees
            counts = (number(made.examples), number(made.rejected), number(made.published), agrees)
        rows.append((result.source, result.split, result.status, *counts))
    lines = [table(rows, right=[3, 4, 5])]
    for result in results:
        reason = result.reason
        if result.outcome is not None and result.outcome.too_many_rejects:
            reason = result.outcome.complaint()
        elif result.outcome is not None and result.outcome.no_media:
            reason = result.outcome.no_media
        if reason:
            lines.append(f"{result.source} {result.split}: {reason}")
        for warning in result.outcome.warnings if result.outcome is not None else []:
            lines.append(f"{result.source} {result.split}: note: {warning}")
    found = sum(result.outcome is not None for result in results)
    missing = sum(result.status == "missing" for result in results)
    lines.append(f"{found} found, {missing} missing, {sum(result.bad for result in results)} failed")
    return "\n".join(lines)


def find_release(root: Path, source: Source, split: str) -> Path:
    """The folder below `root` that holds a source's release.

    Raises:
        MissingFile: there is none.
        UserError: the files could be another source's as well.
    """
    own = root / source.name
    if own.is_dir():
        return own
    names = sources.names()
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir() and path.name not in names)]
    for folder in folders:
        if not _holds(folder, source, split):
            continue
        claimed = _declared(source, split)
        rivals = [
            other.name
            for other in _releases()
            if other.name != source.name
            and other.examples_of is None
            and any(claimed & _declared(other, name) and _holds(folder, other, name) for name in other.splits)
        ]
        if rivals:
            raise UserError(
                f"{folder}: could be {source.name} or {' or '.join(rivals)}; rename it to the source's name"
            )
        return folder
    raise MissingFile(f"{root}: no folder {source.name} and none with {', '.join(source.splits[split].files)}")


def no_release(root: Path) -> str:
    """What is wrong with a folder below which no release was found, and which folder beside it holds some."""
    near = next((folder for folder in nearby(root) if _holds_any(folder)), None)
    if near is None:
        return f"{root}: holds no release that could be converted; `instructkit sources` lists the sources by name"
    return f"{root}: holds no release that could be converted, but {near} does: did you mean --raw {near}?"


def _holds_any(root: Path) -> bool:
    return any(
        _holds(folder, source, split)
        for source in _releases()
        if source.examples_of is None
        for folder in (root, root / source.name)
        for split in source.splits
    )


def _releases() -> list[Source]:
    return [source for source in sources.sources() if not source.own]


def _declared(source: Source, split: str) -> set[str]:
    return {name for file in source.splits[split].files for name in file.split(" | ")}


def _holds(folder: Path, source: Source, split: str) -> bool:
    files = source.splits[split].files
    return bool(files) and all(any(_exists(folder, name) for name in file.split(" | ")) for file in files)


def _exists(folder: Path, name: str) -> bool:
    """Whether a file is there; its name may be a pattern."""
    return any(True for _ in folder.glob(name)) if any(char in name for char in "*?[") else (folder / name).exists()
