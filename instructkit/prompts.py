"""Templates: an `Example` becomes a `Prompt`, the text that the Q-Former and the LLM read.

`templates/train/<task>.yaml` holds the wordings of a task group, our own, ten or more each:

    task: vqa
    target: "{{ answers | choice }}"          # for all wordings that name no target of their own
    templates:
      - name: short_answer
        instruction: "{{ question }} Answer briefly."
      - name: options
        needs: [choices]                      # drawn only for examples that have these fields
        instruction: "{{ question }} Pick one: {{ choices | lettered }}."
        target: "{{ choices[choice] }}"

`templates/eval/<benchmark>.yaml` is a frozen protocol, see `instructkit.protocols`.

Texts are Jinja, rendered in a sandbox: a template reads the fields that its task has (`FIELDS`) and uses the filters of
`FILTERS`, nothing else; one that names another field is an error when the file is loaded, not when a batch is made. A
field that is empty in an example is false in `{% if %}` and an error anywhere else. What a dataset's text contains is
never interpreted. Which wording an example gets, and what `choice` picks, follows from (seed, epoch, example id)
alone, so it does not depend on order, workers or ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

import jinja2
import jinja2.meta
import jinja2.nodes
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

_DRAWS = "draws_"


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One wording: Jinja for what the model reads and for what it is to write.

    Attributes:
        name: unique within its file.
        instruction: what the model reads beside the image.
        target: what it is to write; None takes the file's.
        needs: fields without which the wording is not drawn for an example.
    """

    name: str
    instruction: str
    target: str | None = None
    needs: list[str] = []


class TemplateFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `templates/train/<task>.yaml`.

    Attributes:
        task: the task group; the file's name.
        templates: the wordings.
        target: Jinja of the target, for wordings that name none of their own.
        before: Jinja that stands in front of every instruction, such as the OCR tokens.
    """

    task: str
    templates: list[Template]
    target: str | None = None
    before: str = ""


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


class Draws:
    """Random numbers that follow from a key alone, on every machine: the digits of its hash in mixed radix.

    A quarter of the time that seeding `random.Random` takes; the 256 bits are good for some fifty draws among ten.
    """

    def __init__(self, key: str) -> None:
        self._number = int.from_bytes(blake2b(key.encode(), digest_size=32).digest(), "big")

    def below(self, count: int) -> int:
        """A number of 0 to `count` - 1."""
        self._number, digit = divmod(self._number, count)
        return digit


class Wording(NamedTuple):
    """A compiled `Template`."""

    name: str
    instruction: Text
    target: Text
    needs: tuple[str, ...]


class Templates:
    """The wordings of one task group, compiled.

    Attributes:
        path: the file.
        task: the task group.
        templates: as they stand in the file.
        wordings: the same, compiled.

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
        self.wordings = [_compile(template, file, path) for template in file.templates]
        self._needed = sorted({name for wording in self.wordings for name in wording.needs})
        self._fitting: dict[tuple[bool, ...], list[int]] = {}

    def __len__(self) -> int:
        return len(self.templates)

    def fitting(self, example: Example) -> list[int]:
        """Indices of the wordings whose `needs` the example has.

        Raises:
            UserError: none fits.
        """
        empty = tuple([is_empty(getattr(example, name)) for name in self._needed])
        found = self._fitting.get(empty)
        if found is None:
            lacking = {name for name, lacks in zip(self._needed, empty, strict=True) if lacks}
            found = [index for index, wording in enumerate(self.wordings) if lacking.isdisjoint(wording.needs)]
            if not found:
                raise UserError(f"{self.path}: no template fits example {example.id}, which has no {_list(lacking)}")
            self._fitting[empty] = found
        return found

    def render(self, example: Example, seed: int = 0, epoch: int = 0, wording: int | None = None) -> Prompt:
        """Put an example into words.

        Args:
            example: must have the fields that the wording uses.
            seed: of the run.
            epoch: each epoch draws another wording and another of several answers.
            wording: index of the wording, in place of a drawn one.

        Raises:
            UserError: there is no such wording, the instruction or the target comes out blank, or uses a field that
                is empty in this example.
        """
        draws = Draws(f"{seed}/{epoch}/{self.task}/{example.id}")
        if wording is None:
            fitting = self.fitting(example)
            wording = fitting[draws.below(len(fitting))]
        elif not 0 <= wording < len(self.wordings):
            raise UserError(f"{self.path}: no wording {wording}, there are 0 to {len(self.wordings) - 1}")
        name, instruction, target, _ = self.wordings[wording]
        return make_prompt(example, name, instruction.render(example, draws), target.render(example, draws))


def _compile(template: Template, file: TemplateFile, path: Path) -> Wording:
    where = f"{path}: template {template.name!r}"
    target = template.target if template.target is not None else file.target
    if target is None:
        raise UserError(f"{where} has no target and the file has none for all")
    _check_fields(template.needs, file.task, where)
    return Wording(
        template.name,
        Text(file.before + template.instruction, file.task, where),
        Text(target, file.task, where),
        tuple(template.needs),
    )


class Text:
    """One compiled Jinja text over the fields of a task.

    Attributes:
        source: the Jinja.
        where: file and template, for messages.
        fields: the fields that it names, sorted.

    Raises:
        UserError: the text is no Jinja, or names something that the task does not have.
    """

    def __init__(self, source: str, task: str, where: str) -> None:
        self.source, self.where = source, where
        try:
            self._template = environment().from_string(source)
            tree = environment().parse(source)
        except jinja2.TemplateError as error:
            raise UserError(f"{where}: {error.message} in {source!r}") from error
        if next(jinja2.meta.find_referenced_templates(tree), "") != "":
            raise UserError(f"{where}: cannot include, import or extend another template")
        self.fields = sorted(jinja2.meta.find_undeclared_variables(tree))
        _check_fields(self.fields, task, where)
        chooses = any(node.name == "choice" for node in tree.find_all(jinja2.nodes.Filter))
        self._constant = None if self.fields or chooses else self._checked(self._template.render(), "any")

    @property
    def is_constant(self) -> bool:
        """Whether the text is the same for every example."""
        return self._constant is not None

    def render(self, example: Example, draws: Draws | None = None) -> str:
        """The text for one example; `draws` decide what `choice` picks, which without them is the first.

        Raises:
            UserError: a field that is used is empty in this example, or the text comes out blank.
        """
        if self._constant is not None:
            return self._constant
        values: dict[str, Any] = {_DRAWS: draws}
        for name in self.fields:
            value = getattr(example, name)
            values[name] = _EMPTY[name] if is_empty(value) else value
        try:
            text = "".join(self._template.root_render_func(self._template.new_context(values, shared=True)))
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{self.where}: {error} (example {example.id})") from error
        return self._checked(text, example.id)

    def _checked(self, text: str, example: str) -> str:
        if not text or text.isspace():
            raise UserError(f"{self.where}: comes out blank for example {example}")
        return text


def is_empty(value: Any) -> bool:
    """Whether a field of an example holds nothing; the number 0 is something."""
    return not value and value != 0


def _check_fields(named: Iterable[str], task: str, where: str) -> None:
    unknown = sorted(set(named) - set(FIELDS[task]))
    if unknown:
        raise UserError(f"{where}: {_list(unknown)} is no field of the task {task}; it has {_list(FIELDS[task])}")


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


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


class _Empty(jinja2.StrictUndefined):
    """A field that this example does not have: false in a condition, an error where its text is used."""

    __slots__ = ()

    def __bool__(self) -> bool:  # type: ignore[override]
        return False


_EMPTY = {name: _Empty(hint=f"uses {name}, which is empty") for name in Example.__struct_fields__}


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Lets a template read a turn's question and answer and a loop's counters, and no other attribute or method."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, Turn):
            return attr in Turn.__struct_fields__
        return isinstance(obj, jinja2.runtime.LoopContext) and super().is_safe_attribute(obj, attr, value)


@cache
def environment() -> jinja2.sandbox.SandboxedEnvironment:
    """The Jinja environment of all templates: sandboxed, strict, with the filters that prompts need."""
    env = _Sandbox(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    env.globals.clear()
    env.filters = FILTERS | {name: env.filters[name] for name in JINJA_FILTERS}
    return env


def lettered(choices: Sequence[str]) -> str:
    """Options as the paper writes them: `(a) apple (b) pear`."""
    if len(choices) > len(ascii_lowercase):
        raise ValueError(f"{len(choices)} choices are more than the alphabet has letters")
    return " ".join(f"({letter}) {choice}" for letter, choice in zip(ascii_lowercase, choices, strict=False))


def dialog(history: Sequence[Turn], answer: str = " ", turn: str = " ") -> str:
    """Earlier turns in one line: question and answer joined by `answer`, turns by `turn`."""
    return turn.join(f"{entry.question}{answer}{entry.answer}" for entry in history)


def most_common(answers: Sequence[str]) -> str:
    """The answer most annotators gave; of several, the first given."""
    return max(answers, key=answers.count)


@jinja2.pass_context
def _choice(context: jinja2.runtime.Context, options: Sequence[str]) -> str:
    """One of several at random, by the seed of the prompt."""
    draws = context.get(_DRAWS)
    return options[0] if draws is None else options[draws.below(len(options))]


FILTERS: dict[str, Callable[..., Any]] = {
    "choice": _choice,
    "lettered": lettered,
    "dialog": dialog,
    "most_common": most_common,
}
"""Filters of our own."""

JINJA_FILTERS = ("capitalize", "default", "first", "join", "last", "length", "lower", "replace", "trim", "upper")
"""Jinja's filters that templates may use; the others draw at random, look into objects or have no use in a prompt."""
