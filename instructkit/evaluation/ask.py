"""The commands `ask` and `chat`: words of a command line to questions, answers to the console or a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tqdm import tqdm

from instructkit.data.examples import Example, Turn
from instructkit.data.media import located, there
from instructkit.errors import UserError
from instructkit.evaluation.asked import LINES, PLAIN, decoded, example_about, example_of, protocol_of
from instructkit.evaluation.assistant import Model
from instructkit.evaluation.benchmark import load_vocabulary
from instructkit.evaluation.predictions import Asking, csv_lines, json_rows, prediction, read_questions
from instructkit.evaluation.score import READERS
from instructkit.files import write_stream
from instructkit.prompts.protocols import VOCABULARY, Protocol
from instructkit.prompts.templates import train_templates

Load = Callable[[], Model]


def ask(
    words: Sequence[str],
    load: Load,
    *,
    protocol: str | None = None,
    candidates: Sequence[str] | None = None,
    decoding: dict[str, Any] | None = None,
    data: Path | None = None,
    as_json: bool = False,
    out: Path | None = None,
    batch_size: int = 32,
) -> bool:
    """Answer what a command line asks; an answer is printed, many are written as CSV or JSON lines.

    Args:
        words: photos and the question; or a folder and the question; or a `.jsonl` file.
        load: gives the model, once the words are found to be right.
        protocol: name of a benchmark whose prompt, and decoding or candidates, are used.
        candidates: to be ranked.
        decoding: settings of `Decoding` instead of the protocol's.
        data: folder of converted datasets, for a protocol whose candidates are their answers.
        as_json: JSON lines instead of text and CSV.
        out: file instead of the console.
        batch_size: questions a forward pass.

    Returns:
        Whether every question has an answer.

    Raises:
        UserError: the words, or what they name, do not fit.
    """
    asks = decoded(protocol_of(protocol, ranks=bool(candidates)), decoding or {})
    if asks.candidates == VOCABULARY and not candidates:
        if data is None:
            raise UserError(
                f"protocol {asks.benchmark} ranks the answers of its dataset: give --data, the folder where it is "
                "converted, or --candidates"
            )
        candidates = load_vocabulary(asks, data)
    photos, question = _photos_and_question(words, asks)
    many = len(photos) == 1 and (photos[0].is_dir() or photos[0].suffix == ".jsonl")
    if many:
        asking = read_questions(photos[0], question, asks, candidates)
    else:
        asking = Asking([example_about(photos, example_of(question, asks, candidates, "the question"))], [])
    for note in asking.notes:
        print(f"note: {note}", file=sys.stderr)
    model = load()
    streams = not many and not as_json and out is None and asks.mode == "generate" and asks.decoding.num_beams == 1
    responses = model.respond(asking.examples, asks, candidates, _print_piece if streams else None, batch_size)
    predictions = _counted(map(prediction, responses), len(asking.examples) if many else 0)
    failed: list[dict[str, Any]] = []
    if not many and not as_json and out is None:
        (found,) = _watched(predictions, failed)
        if not failed:
            _print_answer(found, streams)
    else:
        wanted = json_rows if as_json or (out is not None and out.suffix in (".jsonl", ".json")) else csv_lines
        lines = wanted(_watched(predictions, failed))
        if out is None:
            sys.stdout.writelines(lines)
        else:
            write_stream(out, lines)
            print(f"wrote {out}")
    if failed:
        how_many = f"{len(failed):,} of {len(asking.examples):,} have no answer, the first: " if many else ""
        print(f"instructkit: {how_many}{failed[0]['error']}", file=sys.stderr)
    return not failed


def chat(photos: Sequence[Path], load: Load, lines: Iterable[str], say: Callable[[str], object]) -> None:
    """Answer line after line about the same photos; each question is asked with all rounds before it in front.

    Args:
        photos: pictures, or one video.
        load: gives the model.
        lines: the questions.
        say: takes what is told about the conversation, the answers apart.

    Raises:
        UserError: a photo is not there, or cannot be read.
    """
    about = example_about(_there(photos), Example(id="the photo"))
    model = load()
    wording = train_templates("llava").templates[0]
    asks = msgspec.structs.replace(PLAIN, instruction=wording.instruction)
    say(f"history template: {wording.name} of templates/train/llava.yaml: {wording.instruction}")
    history: list[Turn] = []
    for line in lines:
        if not line.strip():
            continue
        example = msgspec.structs.replace(about, question=line.strip(), history=history)
        (response,) = model.respond([example], asks, None, _print_piece)
        if response.error is not None:
            raise UserError(response.error)
        print()
        for reader in response.cut:
            say(f"{READERS[reader]} read only the end of the conversation, which is longer than its limit")
        history = [*history, Turn(line.strip(), response.text)]


def _photos_and_question(words: Sequence[str], protocol: Protocol) -> tuple[list[Path], str | None]:
    """The last word is the question, where one is asked."""
    asks = any(line in protocol.compiled.fields for line in LINES)
    alone = len(words) == 1 and words[0].endswith(".jsonl")
    if not asks or alone:
        return _there([Path(word) for word in words]), None
    if len(words) < 2 or os.path.exists(words[-1]):
        raise UserError(f'{words[-1]}: a question is missing; it comes last: instructkit ask PHOTO... "QUESTION"')
    return _there([Path(word) for word in words[:-1]]), words[-1]


def _there(photos: Sequence[Path]) -> list[Path]:
    """The same, once all of them are found."""
    for photo in photos:
        if not photo.is_dir() and not there(located(photo)):
            raise UserError(f"{photo}: no such file or folder")
        if len(photos) > 1 and (photo.is_dir() or photo.suffix == ".jsonl"):
            raise UserError(f"{photo}: a folder or a .jsonl file is asked about alone, without other photos")
    return list(photos)


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)


def _print_answer(found: dict[str, Any], streamed: bool) -> None:
    if found.get("ranked"):
        for text, score in found["ranked"]:
            print(f"{score:9.4f}  {text}")
    else:
        print("" if streamed else found["answer"])
    for reader in found.get("cut", []):
        print(f"note: the prompt is longer than {READERS[reader]} reads; its end alone was read", file=sys.stderr)


def _watched(predictions: Iterable[dict[str, Any]], failed: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same; those that are errors are kept as well."""
    for each in predictions:
        if "error" in each:
            failed.append(each)
        yield each


def _counted(predictions: Iterable[dict[str, Any]], total: int) -> Iterable[dict[str, Any]]:
    """The same with a progress bar, where there are many and somebody watches."""
    return tqdm(predictions, total=total, unit=" questions", desc="ask", disable=None) if total else predictions
