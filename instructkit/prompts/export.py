"""Converted examples in words, for people and for other tools: one generator a format, flat in memory.

    preview    what the model reads and writes, for people
    text       JSON lines {id, template, instruction, target, images | video, start, end}
    messages   JSON lines {id, messages, images | videos}: chat messages as TRL and transformers' chat templates read
               them; each `{"type": "image"}` stands for the next path of `images`
    llava      one JSON list of {id, image | video, conversations} as LLaVA trains on

Media paths are absolute. In `messages` and `llava` a dialog is one conversation of several turns: examples that each go
on where the one before ended are joined, and earlier turns are turns, not text in front of the question.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from instructkit.data.dataset import Examples, load_examples
from instructkit.data.examples import TASKS, Example, Turn, has_reply
from instructkit.data.media import located
from instructkit.errors import UserError
from instructkit.prompts.templates import Prompt, train_templates

_PLACE = re.compile(r"\s*<(?:image|video)>\s*")


class Rendered(NamedTuple):
    """An example in words.

    Attributes:
        prompt: instruction and target; for a conversation those of the last turn.
        media: absolute paths of the pictures, or of the video.
        turns: the conversation before; empty where `prompt` holds it.
    """

    prompt: Prompt
    media: list[str]
    turns: list[Turn]


def render(folders: Iterable[Path], task: str | None = None, seed: int = 0) -> Iterator[Rendered]:
    """Every example of converted datasets in words, as a model reads it in training.

    Examples without an answer, such as those of a split that a server scores, are left out; a line on standard error
    says how many.

    Args:
        folders: converted splits.
        task: task group whose templates are used; by default the dataset's own.
        seed: decides the wording.

    Raises:
        UserError: no such task, or a template needs a field that an example lacks.
    """
    for data, example, words in _examples(folders, task):
        yield Rendered(words(example, seed), _media(data, example), [])


def conversations(folders: Iterable[Path], task: str | None = None, seed: int = 0) -> Iterator[Rendered]:
    """Like `render`, but dialogs as turns: examples that each go on where the one before ended come as one.

    Raises:
        UserError: as `render`.
    """
    last: tuple[Examples, Example, Words] | None = None
    for current in _examples(folders, task):
        if last is not None and not _goes_on(last[1], current[1]):
            yield _conversation(*last, seed)
        last = current
    if last is not None:
        yield _conversation(*last, seed)


def preview(folders: Iterable[Path], task: str | None, seed: int, limit: int | None) -> Iterator[str]:
    """Examples for people to read."""
    for prompt, media, _ in islice(render(folders, task, seed), limit):
        start, end = prompt.clip
        clip = "" if start is None and end is None else f" ({start or 0:g} to {'its end' if end is None else end} s)"
        yield f"{prompt.example}   wording {prompt.template}\n"
        for path in media:
            yield f"  {'video' if prompt.video else 'picture':<12}{path}{clip}\n"
        for name, text in (("instruction", prompt.instruction), ("target", prompt.target or "")):
            yield f"  {name:<12}" + text.replace("\n", "\n" + " " * 14) + "\n"
        yield "\n"


def text(folders: Iterable[Path], task: str | None, seed: int, limit: int | None) -> Iterator[str]:
    """JSON lines of instruction and target."""
    for prompt, media, _ in islice(render(folders, task, seed), limit):
        line: dict[str, Any] = {
            "id": prompt.example,
            "template": prompt.template,
            "instruction": prompt.instruction,
            "target": prompt.target,
        }
        if prompt.video is None:
            line["images"] = media
        else:
            line |= {"video": media[0], "start": prompt.clip[0], "end": prompt.clip[1]}
        yield _json_line(line)


def messages(folders: Iterable[Path], task: str | None, seed: int, limit: int | None) -> Iterator[str]:
    """JSON lines of chat messages."""
    for prompt, media, turns in islice(conversations(folders, task, seed), limit):
        kind = "image" if prompt.video is None else "video"
        chat: list[dict[str, Any]] = []
        for asked, replied in _exchanges(prompt, turns):
            chat.append({"role": "user", "content": [{"type": "text", "text": asked}]})
            chat.append({"role": "assistant", "content": [{"type": "text", "text": replied}]})
        chat[0]["content"][:0] = [{"type": kind} for _ in media]
        yield _json_line({"id": prompt.example, "messages": chat, f"{kind}s": media})


def llava(folders: Iterable[Path], task: str | None, seed: int, limit: int | None) -> Iterator[str]:
    """The parts of a JSON list in LLaVA's layout; several pictures are a list under `image`.

    LLaVA reads `<image>` and `<video>` as a place for pixels wherever they stand, so a text of the data cannot hold
    them: they are taken out of it, and a line on standard error says how often.
    """
    opening = "[\n"
    marked: list[str] = []
    for prompt, media, turns in islice(conversations(folders, task, seed), limit):
        kind = "image" if prompt.video is None else "video"
        chat = []
        for asked, replied in _exchanges(prompt, turns):
            chat += [{"from": "human", "value": asked}, {"from": "gpt", "value": replied}]
        if any(_PLACE.search(message["value"]) for message in chat):
            marked.append(prompt.example)
            chat = [{**message, "value": _without_places(message["value"])} for message in chat]
        chat[0]["value"] = f"<{kind}>\n" * len(media) + chat[0]["value"]
        record = {"id": prompt.example, kind: media[0] if len(media) == 1 else media, "conversations": chat}
        yield opening + json.dumps(record, ensure_ascii=False)
        opening = ",\n"
    if marked:
        print(
            f"llava: took <image> and <video> out of the texts of {len(marked):,} conversations, the first of them "
            f"{marked[0]}: LLaVA would read them as pictures",
            file=sys.stderr,
        )
    yield "\n]\n" if opening == ",\n" else "[]\n"


def _without_places(text: str) -> str:
    return _PLACE.sub(" ", text).strip() if _PLACE.search(text) else text


FORMATS: dict[str, Callable[[Iterable[Path], str | None, int, int | None], Iterator[str]]] = {
    "preview": preview,
    "text": text,
    "messages": messages,
    "llava": llava,
}
"""What `instructkit render --format` offers."""

Words = Callable[[Example, int], Prompt]


def _examples(folders: Iterable[Path], task: str | None) -> Iterator[tuple[Examples, Example, Words]]:
    if task is not None and task not in TASKS:
        raise UserError(f"no task is called {task!r}; there are {', '.join(TASKS)}")
    for folder in folders:
        data = load_examples(folder)
        words = train_templates(task or data.manifest.task).render
        left_out = 0
        for example in data:
            if has_reply(example, data.manifest.task):
                yield data, example, words
            else:
                left_out += 1
        if left_out:
            name = f"{data.manifest.source}/{data.manifest.split}"
            print(f"render: left out {left_out:,} examples of {name} that have no answer", file=sys.stderr)


def _media(data: Examples, example: Example) -> list[str]:
    paths = example.images if example.video is None else [example.video]
    return [str(located(data.media_path(path))) for path in paths]


def _goes_on(example: Example, following: Example) -> bool:
    """Whether the second example is the next turn of the first one's conversation."""
    if following.images != example.images or len(following.history) != len(example.history) + 1:
        return False
    turn = following.history[-1]
    same = turn.question == example.question and turn.answer in example.answers
    return same and following.history[:-1] == example.history


def _conversation(data: Examples, example: Example, words: Words, seed: int) -> Rendered:
    last_turn = msgspec.structs.replace(example, history=[])
    return Rendered(words(last_turn, seed), _media(data, example), example.history)


def _exchanges(prompt: Prompt, turns: list[Turn]) -> Iterator[tuple[str, str]]:
    for turn in turns:
        yield turn.question, turn.answer.strip()
    yield prompt.instruction, prompt.target or ""


def _json_line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
