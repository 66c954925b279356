"""Words on pictures that a release lacks, by a reader of the user's: `convert --ocr package:function`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from instructkit.data.examples import Example
from instructkit.data.media import located
from instructkit.data.ocr import with_ocr
from instructkit.data.readers import RawRecord, Reject
from instructkit.errors import UserError
from instructkit.prompts.jinja import FIELDS
from instructkit.sources import Reading, Source

KEPT = 4096
"""Pictures whose words a process remembers: questions about one follow on each other."""


def find_reader(name: str) -> Callable[[Path], list[str]]:
    """The function that `package:function` names; modules in the working directory are found as well.

    Raises:
        UserError: it is not there, cannot be imported or is no function.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise UserError(
            f"--ocr {name}: is package:function, of a function from the path of a picture to a list of words"
        )
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = import_module(module)
    except Exception as error:  # whatever the module does when it is run
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--ocr {name}: {module} cannot be imported ({type(error).__name__}: {reason})") from error
    finally:
        sys.path.remove(os.getcwd())
    function: Callable[[Path], list[str]] | None = getattr(found, attribute, None)
    if not callable(function):
        raise UserError(f"--ocr {name}: {module} has no function {attribute}")
    return function


def with_words(reading: Reading, source: Source, media_root: Path, name: str) -> Reading:
    """The reading of a release, its examples with words where they have none.

    A picture whose words cannot be read rejects its record, with the reason. The manifest's notes name the reader.

    Args:
        reading: of the release.
        source: the dataset.
        media_root: folder of the pictures.
        name: `package:function`; it gets the path of a picture and gives its words in reading order.

    Raises:
        UserError: there is no such function, or no prompt of the dataset's task reads words.
    """
    if "ocr_tokens" not in FIELDS[source.task]:
        tasks = ", ".join(task for task, fields in FIELDS.items() if "ocr_tokens" in fields)
        raise UserError(
            f"--ocr: no prompt of {source.name} ({source.task}) reads words on pictures; those of {tasks} do"
        )
    read = find_reader(name)

    @lru_cache(KEPT)
    def read_words(path: Path) -> list[str]:
        try:
            words = read(located(path))
        except Exception as error:  # of a library that is not ours, about one picture
            raise Reject(f"{path}: {name} cannot read it ({type(error).__name__}: {error})") from error
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise Reject(f"{path}: {name} gave a {type(words).__name__}, not a list of words")
        return [word for word in words if word.strip()]

    convert = reading.convert

    def convert_with_words(record: RawRecord) -> list[Example]:
        return [with_ocr(example, media_root, read_words) for example in convert(record)]

    note = f"words on pictures are those of the release, or where it has none, read by {name}"
    return replace(reading, convert=convert_with_words, warnings=[*reading.warnings, note])
