"""Files for the servers that score splits whose answers are not public, in the official result formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from instructkit.evaluation.responses import Answer
from instructkit.files import write_atomically

FOLDER = "submissions"


def key_of(answer: Answer) -> str:
    """The release's own key of an example: the last part of its id."""
    return answer.example.rsplit("/", 1)[1]


def vqa(answers: Sequence[Answer]) -> Any:
    """VQAv2 (visualqa.org/evaluation): `[{"question_id": 1, "answer": "yes"}]`; OKVQA and TextVQA take the same."""
    return [{"question_id": int(key_of(answer)), "answer": answer.text} for answer in answers]


def vizwiz(answers: Sequence[Answer]) -> Any:
    """VizWiz (vizwiz.org): `[{"image": "VizWiz_test_00000000.jpg", "answer": "yes"}]`."""
    return [{"image": PurePosixPath(answer.images[0]).name, "answer": answer.text} for answer in answers]


def captions(answers: Sequence[Answer]) -> Any:
    """NoCaps and COCO: `[{"image_id": 1, "caption": "a dog"}]`."""
    return [{"image_id": int(key_of(answer)), "caption": answer.text} for answer in answers]


FORMATS: dict[str, Callable[[Sequence[Answer]], Any]] = {
    "vqav2": vqa,
    "textvqa": vqa,
    "vizwiz": vizwiz,
    "nocaps": captions,
}
"""By benchmark; A-OKVQA's two benchmarks share one file, see `aokvqa`."""


def aokvqa(direct: Sequence[Answer], choices: Sequence[Answer]) -> Any:
    """A-OKVQA's leaderboard: `{question_id: {"multiple_choice": "cat", "direct_answer": "cat"}}`."""
    found: dict[str, dict[str, str]] = {}
    for name, answers in (("multiple_choice", choices), ("direct_answer", direct)):
        for answer in answers:
            found.setdefault(key_of(answer), {})[name] = answer.text
    return found


def write_submissions(folder: Path, hidden: Mapping[str, Sequence[Answer]]) -> list[str]:
    """Write `submissions/<benchmark>_<split>.json` for what a server takes.

    An example that failed is left out of its file, so that the server tells what is missing instead of scoring an
    answer that nobody gave.

    Args:
        folder: of the run.
        hidden: answers by benchmark, as NAME/SPLIT.

    Returns:
        The files, relative to the folder.
    """
    made: dict[str, Any] = {}
    for name, answers in hidden.items():
        given = [answer for answer in answers if answer.error is None]
        benchmark, _, split = name.partition("/")
        if benchmark in FORMATS:
            made[f"{benchmark}_{split}"] = FORMATS[benchmark](given)
    for split in sorted({name.partition("/")[2] for name in hidden if name.startswith("aokvqa")}):
        both = [hidden.get(f"{name}/{split}", []) for name in ("aokvqa", "aokvqa_mc")]
        made[f"aokvqa_{split}"] = aokvqa(*([each for each in part if each.error is None] for part in both))
    paths = []
    for stem, content in made.items():
        path = folder / FOLDER / f"{stem}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.encode(content))
        paths.append(path.relative_to(folder).as_posix())
    return paths
