"""IconQA in miniature: `problems.json` with `pid_splits.json`, and a folder each problem, nine sets of one or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.sources.mini import write_json, write_picture

PROBLEMS: dict[str, dict[str, Any]] = {
    "choose_txt": {
        "question": "Is the number of snails even or odd?",
        "choices": ["odd", "even"],
        "answer": 1,
        "ques_type": "choose_txt",
        "grade": "grade1",
        "label": "A9",
    },
    "choose_img": {
        "question": "Which rope is longer?",
        "choices": ["choice_0.png", "choice_1.png", "choice_2.png"],
        "answer": 2,
        "ques_type": "choose_img",
        "grade": "prek",
        "label": "I2",
    },
    "fill_in_blank": {
        "question": "Use tiles to measure the rope. It is about (_) tiles long.",
        "answer": "7",
        "ques_type": "fill_in_blank",
        "grade": "kindergarten",
        "label": "T3",
    },
}
PARTS = ("train", "val", "test")


def write(root: Path) -> None:
    """Write the release; problem `n` of a set counts on over all sets from 1."""
    problems: dict[str, Any] = {}
    splits: dict[str, list[str]] = {}
    pid = 0
    for part in PARTS:
        for kind, problem in PROBLEMS.items():
            pids = splits[f"{kind}_{part}"] = []
            for _ in range(2):
                pid += 1
                pids.append(str(pid))
                problems[str(pid)] = {**problem, "split": part}
                folder = root / "iconqa" / part / kind / str(pid)
                write_json(folder / "data.json", problem)
                for number, name in enumerate(["image.png", *problem.get("choices", [])]):
                    if name.endswith(".png"):
                        write_picture(folder / name, pid + number)
    write_json(root / "problems.json", problems)
    write_json(root / "pid_splits.json", splits)
