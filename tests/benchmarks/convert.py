"""How fast and how big a conversion is: `python -m tests.benchmarks.convert`.

Input as large as VQAv2's training split (443,757 questions, 4.4M answers) is made by script in the release's schema.
Then each in a fresh process, one after the other:

    floor    orjson decodes both files, pyarrow writes the same rows in the same schema, nothing is checked
    ours     instructkit convert vqav2 --jobs 2

and the rows are compared. Then a caption list as Web CapFilt's, short and long, to show that memory does not grow with
the list. Times are wall time of the process, memory is the highest sum of resident memory over the process and its
children (shared pages counted in each), looked at every 10 ms. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from instructkit.data.dataset import SCHEMA

QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "v2_mscoco_train2014_annotations.json"
CAPTIONS = "ccs_synthetic_filtered_large.json"
WORDS = [
    "what",
    "is",
    "the",
    "color",
    "of",
    "man",
    "holding",
    "a",
    "red",
    "umbrella",
    "near",
    "old",
    "train",
    "on",
    "left",
    "side",
    "how",
    "many",
    "people",
    "are",
    "there",
    "in",
    "this",
    "picture",
    "does",
    "it",
    "look",
    "like",
    "rain",
    "where",
    "was",
    "photo",
    "taken",
    "which",
    "animal",
    "can",
    "be",
    "seen",
    "behind",
    "wooden",
    "fence",
    "why",
    "sitting",
]
ANSWERS = ["yes", "no", "2", "red", "white", "umbrella", "left", "on the table", "tennis racket", "skateboarding", "3"]
TIME_LIMIT, MEMORY_LIMIT = 2.5, 1.5


class Cost(NamedTuple):
    """Of one process and its children: seconds of wall time, of processor time (all cores), peak resident bytes."""

    seconds: float
    processor: float
    peak: int


def write_vqav2(folder: Path, count: int) -> None:
    """Questions and annotations in VQAv2's schema and order; 5.4 questions a picture, ten answers each."""
    rng = random.Random(0)
    head = {"info": {"description": "made by script"}, "data_type": "mscoco", "data_subtype": "train2014"}
    with (folder / QUESTIONS).open("wb") as questions, (folder / ANNOTATIONS).open("wb") as annotations:
        questions.write(orjson.dumps(head)[:-1] + b',"questions": [')
        annotations.write(orjson.dumps(head)[:-1] + b',"annotations": [')
        for index in range(count):
            image, number = 9 + index * 10 // 54, (9 + index * 10 // 54) * 1000 + index % 10
            text = " ".join(rng.choices(WORDS, k=rng.randint(4, 9))).capitalize() + "?"
            given = rng.choices(ANSWERS, k=3)
            answers = [
                {"answer": given[min(place % 5, 2)], "answer_confidence": "yes", "answer_id": place + 1}
                for place in range(10)
            ]
            comma = b", " if index else b""
            questions.write(comma + orjson.dumps({"image_id": image, "question": text, "question_id": number}))
            annotations.write(
                comma
                + orjson.dumps(
                    {
                        "question_type": "what is the",
                        "multiple_choice_answer": given[2],
                        "answers": answers,
                        "image_id": image,
                        "answer_type": "other",
                        "question_id": number,
                    }
                )
            )
        questions.write(b"]}")
        annotations.write(b"]}")


def write_captions(folder: Path, count: int) -> None:
    """A list of pictures and captions in Web CapFilt's schema."""
    rng = random.Random(0)
    captions = [" ".join(rng.choices(WORDS, k=rng.randint(6, 14))) for _ in range(1000)]
    with (folder / CAPTIONS).open("w") as file:
        file.write("[")
        for index in range(count):
            comma = ", " if index else ""
            file.write(f'{comma}{{"image": "cc/{index:09}.jpg", "caption": "{captions[index % 1000]} {index}"}}')
        file.write("]")


def floor(raw: Path, out: Path) -> None:
    """The least that can be done with common tools and all memory: decode, lay out in columns, write."""
    gc.disable()  # five million small objects, none in a cycle
    questions = {entry["question_id"]: entry for entry in orjson.loads((raw / QUESTIONS).read_bytes())["questions"]}
    annotations = orjson.loads((raw / ANNOTATIONS).read_bytes())["annotations"]
    columns: dict[str, list[Any]] = {
        "id": [f"vqav2/train/{entry['question_id']}" for entry in annotations],
        "images": [[f"train2014/COCO_train2014_{entry['image_id']:012}.jpg"] for entry in annotations],
        "question": [questions[entry["question_id"]]["question"] for entry in annotations],
        "answers": [[answer["answer"] for answer in entry["answers"]] for entry in annotations],
        "meta": [
            [
                {"key": "question_type", "value": entry["question_type"]},
                {"key": "answer_type", "value": entry["answer_type"]},
            ]
            for entry in annotations
        ],
    }
    arrays = []
    for field in SCHEMA:
        empty: list[Any] | None = [] if pa.types.is_list(field.type) else None
        arrays.append(pa.array(columns.get(field.name, [empty] * len(annotations)), field.type))
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), out, compression="zstd")


def measure(*command: str) -> Cost:
    """Run a command to its end and watch its memory."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(_resident, _tree(process.pid))))
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    assert process.stderr is not None
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{process.stderr.read().decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak)


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(process for child in children for process in _tree(int(child)))]


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def compare_vqav2(folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Convert VQAv2-sized input both ways; ratios of the best of some rounds."""
    raw = folder / "vqav2"
    raw.mkdir()
    write_vqav2(raw, count)
    size = sum(path.stat().st_size for path in raw.iterdir()) / 1e6
    print(f"VQAv2-sized input: {count:,} questions, {10 * count:,} answers, {size:.0f} MB of JSON")
    floors, ours = [], []
    for number in range(rounds):
        floors.append(measure("-m", "tests.benchmarks.convert", "--floor", str(raw), str(folder / "floor.parquet")))
        out = folder / f"out{number}"
        ours.append(
            measure("-m", "instructkit.cli", "convert", "vqav2", "--raw", str(raw), "--out", str(out), "--jobs", "2")
        )
        print(f"  round {number + 1}: floor {_words(floors[-1])}; instructkit --jobs 2 {_words(ours[-1])}")
    made = pq.read_table(sorted((out / "vqav2" / "train").glob("*.parquet")))
    same = made.sort_by("id").equals(pq.read_table(folder / "floor.parquet").sort_by("id"))
    print(
        f"  {made.num_rows:,} rows with {pc.sum(pc.list_value_length(made['answers'])).as_py():,} answers; same: {same}"
    )
    if not same:
        raise SystemExit("the two ways did not write the same rows")
    return {
        "time_ratio": round(min(cost.seconds for cost in ours) / min(cost.seconds for cost in floors), 3),
        "memory_ratio": round(max(cost.peak for cost in ours) / min(cost.peak for cost in floors), 3),
    }


def compare_captions(folder: Path, count: int) -> float:
    """Peak memory of a list of captions over that of one a 14th as long."""
    peaks = []
    for pairs in (count // 14, count):
        raw = folder / f"captions{pairs}"
        raw.mkdir()
        write_captions(raw, pairs)
        size = (raw / CAPTIONS).stat().st_size / 1e6
        out = str(folder / f"captions-out{pairs}")
        cost = measure(
            "-m", "instructkit.cli", "convert", "web_capfilt", "--raw", str(raw), "--out", out, "--jobs", "2"
        )
        print(f"Web CapFilt-like list: {pairs:,} pairs, {size:.0f} MB of JSON: {_words(cost)}")
        peaks.append(cost.peak)
    return round(peaks[1] / peaks[0], 3)


def _words(cost: Cost) -> str:
    return f"{cost.seconds:.2f} s ({cost.processor:.2f} s of processor time), {cost.peak / 1e6:.0f} MB"


def main() -> None:
    """Run both comparisons; exit code 1 where a limit is not kept."""
    parser = argparse.ArgumentParser(description="Time and memory of a conversion against a bare floor.")
    parser.add_argument("--questions", type=int, default=443_757, help="size of the VQAv2-like input")
    parser.add_argument(
        "--pairs", type=int, default=1_400_000, help="size of the Web CapFilt-like list; 0 leaves it out"
    )
    parser.add_argument("--rounds", type=int, default=2, help="how often both ways are timed")
    parser.add_argument("--floor", nargs=2, type=Path, metavar=("RAW", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.floor:
        floor(*arguments.floor)
        return
    with tempfile.TemporaryDirectory() as folder:
        ratios = compare_vqav2(Path(folder), arguments.questions, arguments.rounds)
        if arguments.pairs:
            ratios["captions_memory_ratio"] = compare_captions(Path(folder), arguments.pairs)
    print(json.dumps(ratios))
    if ratios["time_ratio"] > TIME_LIMIT or ratios["memory_ratio"] > MEMORY_LIMIT:
        sys.exit(1)


if __name__ == "__main__":
    main()
