"""Templates: an `Example` becomes a `Prompt`, the text that the Q-Former and the LLM read.

`templates/train/<task>.yaml` holds the wordings of a task group, our own, ten or more each:

    task: vqa
    target: "{{ answers | choice }}"          # for all wordings that name no target of their own
    templates:
      - name: short_answer
        instruction: "{{ question }} Answer briefly."

`templates/eval/<benchmark>.yaml` is a frozen protocol, see `instructkit.protocols`.

Texts are Jinja, rendered in a sandbox. A template sees the fields that its task has (`FIELDS`); one that names another
is an error when the file is loaded, not when a batch is made. Which wording an example gets, and what `choice` picks,
follows from (seed, epoch, example id) alone, so it does not depend on order, workers or ranks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.runtime
import jinja2.sandbox
import msgspec
import yaml

from instructkit.errors import UserError
from instructkit.examples import TASKS, Example, Turn

_PICTURE_QUESTION = ("question", "answers")
FIELDS: dict[str, tuple[str, ...]] = {
    "captioning": ("references",),
    "reading_captioning": ("references", "ocr_tokens"),
    "visual_reasoning": ("question", "answers", "choices", "choice", "statement"),
    "vqa": _PICTURE_QUESTION,
    "knowledge_vqa": (*_PICTURE_QUESTION, "choices", "choice", "context", "lecture", "rationales"),
    "reading_vqa": (*_PICTURE_QUESTION, "ocr_tokens"),
    "question_generation": _PICTURE_QUESTION,
    "video_qa": _PICTURE_QUESTION,
    "visual_dialog": (*_PICTURE_QUESTION, "choices", "choice", "history", "references"),
    "classification": (*_PICTURE_QUESTION, "context", "choices", "choice"),
    "llava": (*_PICTURE_QUESTION, "history"),
}
"""The fields of `Example` that templates of a task may name."""


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One wording: Jinja for what the model reads and for what it is to write.

    Attributes:
        name: unique within its file.
        instruction: what the model reads beside the image.
        target: what it is to write; None takes the file's.
    """

    name: str
    instruction: str
    target: str | None = None


class TemplateFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `templates/train/<task>.yaml`."""

    task: str
    templates: list[Template]
    target: str | None = None


class Prompt(msgspec.Struct, frozen=True):
    """An example in words.

    Attributes:
        example: id of the example.
        template: name of the wording.
        instruction: text for the Q-Former and the LLM.
        target: text that the LLM learns to write; None in evaluation.
        images: paths of the pictures, relative to the media root.
        video: path of the video in place of images.
        clip: first and last second inside the video, None for its beginning and end.
    """

    example: str
    template: str
    instruction: str
    target: str | None = None
    images: list[str] = []
    video: str | None = None
    clip: tuple[float | None, float | None] = (None, None)


def templates_folder() -> Path:
    """The folder `templates/`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "templates"
    return inside if inside.is_dir() else package.parent / "templates"


class Templates:
    """The wordings of one task group, compiled.

    Raises:
        UserError: the file is missing or has an unknown key, a broken text, a repeated name or a field that the task
            does not have.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = read_yaml(path, TemplateFile)
        if file.task not in TASKS:
            raise UserError(f"{path}: task {file.task!r} is not one of {', '.join(TASKS)}")
        self.task = file.task
        self.templates = file.templates
        names = [template.name for template in file.templates]
        if len(set(names)) < len(names) or not names:
            raise UserError(f"{path}: template names must be unique and there must be at least one")
        self._compiled = []
        for template in file.templates:
            target = template.target if template.target is not None else file.target
            if target is None:
                raise UserError(f"{path}: template {template.name!r} has no target and the file has none for all")
            where = f"{path}: template {template.name!r}"
            self._compiled.append(
                (Text(template.instruction, file.task, where), Text(target, file.task, where), template.name)
            )

    def __len__(self) -> int:
        return len(self.templates)

    def render(self, example: Example, seed: int = 0, epoch: int = 0, wording: int | None = None) -> Prompt:
        """Put an example into words.

        Args:
            example: must have the fields that the wording uses.
            seed: of the run.
            epoch: each epoch draws another wording and another of several answers.
            wording: index of the wording, in place of a drawn one.

        Raises:
            UserError: the instruction or the target comes out empty, or uses a field that this example lacks.
        """
        rng = random.Random(f"{seed}/{epoch}/{self.task}/{example.id}")
        drawn = rng.randrange(len(self._compiled))
        instruction, target, name = self._compiled[drawn if wording is None else wording]
        return make_prompt(example, name, instruction.render(example, rng), target.render(example, rng))


class Text:
    """One compiled Jinja text over the fields of a task.

    Raises:
        UserError: the text is no Jinja, or names something that the task does not have.
    """

    def __init__(self, source: str, task: str, where: str) -> None:
        self.source, self.where = source, where
        try:
            self._template = environment().from_string(source)
            named = jinja2.meta.find_undeclared_variables(environment().parse(source))
        except jinja2.TemplateError as error:
            raise UserError(f"{where}: {error.message} in {source!r}") from error
        unknown = sorted(named - set(FIELDS[task]))
        if unknown:
            raise UserError(
                f"{where}: {', '.join(unknown)} is no field of the task {task}; it has {', '.join(FIELDS[task])}"
            )
        self.fields = sorted(named)

    @cached_property
    def is_constant(self) -> bool:
        """Whether the text is the same for every example."""
        return not self.fields

    def render(self, example: Example, rng: random.Random | None = None) -> str:
        """The text for one example; `rng` decides what `choice` picks.

        Raises:
            UserError: a field that is used is empty in this example, or the text comes out blank.
        """
        values = {name: getattr(example, name) for name in self.fields}
        try:
            text = self._template.render(values, rng_=rng)
        except (jinja2.TemplateError, TypeError, IndexError) as error:
            raise UserError(f"{self.where}: {error} (example {example.id})") from error
        if not text.strip():
            raise UserError(f"{self.where}: comes out empty for example {example.id}")
        return text


def make_prompt(example: Example, template: str, instruction: str, target: str | None) -> Prompt:
    """A prompt that carries the example's pictures or video."""
    return Prompt(
        example.id, template, instruction, target, example.images, example.video, (example.start, example.end)
    )


@cache
def train_templates(task: str, folder: Path | None = None) -> Templates:
    """The wordings of a task group.

    Raises:
        UserError: there is no file for the task.
    """
    return Templates((folder or templates_folder()) / "train" / f"{task}.yaml")


def read_yaml(path: Path, kind: type[Any]) -> Any:
    """Read a YAML file into a struct.

    Raises:
        UserError: the file is missing, is no YAML, or has an unknown, missing or ill-typed key.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), kind)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}") from error


@cache
def environment() -> jinja2.sandbox.SandboxedEnvironment:
    """The Jinja environment of all templates: sandboxed, strict, with the filters that prompts need."""
    env = jinja2.sandbox.SandboxedEnvironment(
        undefined=jinja2.StrictUndefined, finalize=_finalize, keep_trailing_newline=True
    )
    env.globals.clear()
    env.filters["choice"] = _choice
    env.filters["lettered"] = lettered
    env.filters["dialog"] = dialog
    env.filters["most_common"] = most_common
    return env


def lettered(choices: Sequence[str]) -> str:
    """Options as the paper writes them: `(a) apple (b) pear`."""
    return " ".join(f"({chr(ord('a') + index)}) {choice}" for index, choice in enumerate(choices))


def dialog(history: Sequence[Turn], answer: str = " ", turn: str = " ") -> str:
    """Earlier turns in one line: question and answer joined by `answer`, turns by `turn`."""
    return turn.join(f"{entry.question}{answer}{entry.answer}" for entry in history)


def most_common(answers: Sequence[str]) -> str:
    """The answer most annotators gave; of several, the first given."""
    return max(answers, key=answers.count)


@jinja2.pass_context
def _choice(context: jinja2.runtime.Context, options: Sequence[str]) -> str:
    """One of several at random, by the seed of the prompt."""
    if not options:
        raise jinja2.UndefinedError("choice of an empty list")
    rng = context.get("rng_")
    return options[0] if rng is None else options[rng.randrange(len(options))]


def _finalize(value: Any) -> Any:
    if value is None:
        raise jinja2.UndefinedError("uses a field that is empty")
    return value
