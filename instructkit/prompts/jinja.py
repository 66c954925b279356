"""Jinja texts over the fields of an example, rendered in a sandbox.

A text reads the fields that its task has (`FIELDS`) and uses the filters `FILTERS` and `JINJA_FILTERS`, nothing else;
one that names another field is an error when it is compiled, not when a batch is made. A field that is empty in an
example is false in `{% if %}` and an error where its content is used. What a dataset's text contains is never
interpreted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from hashlib import blake2b
from string import ascii_lowercase
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox

from instructkit.data.examples import Example, Turn
from instructkit.errors import UserError

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


class _Jinja:
    """Jinja over the fields of a task, compiled."""

    def __init__(self, jinja: str, task: str, where: str) -> None:
        self.where = where
        try:
            self._compile(jinja, task)
        except jinja2.TemplateError as error:
            raise UserError(f"{where}: {error.message} in {jinja!r}") from error
        except (*_TOO_MUCH, SyntaxError) as error:  # Python's own, of a template that Jinja compiles to Python
            raise UserError(f"{where}: {_too_much(error)}") from error

    def _compile(self, jinja: str, task: str) -> None:
        where = self.where
        self._template = environment().from_string(jinja)
        self._tree = environment().parse(jinja)
        if next(jinja2.meta.find_referenced_templates(self._tree), "") != "":
            raise UserError(f"{where}: cannot include, import or extend another template")
        # `self` is the compiled template, which Jinja does not count among the variables.
        itself = {"self"} & {node.name for node in self._tree.find_all(jinja2.nodes.Name)}
        self.fields = sorted(jinja2.meta.find_undeclared_variables(self._tree) | itself)
        unknown = [name for name in self.fields if name not in FIELDS[task]]
        if unknown:
            raise UserError(
                f"{where}: {', '.join(unknown)} is no field of the task {task}; it has {', '.join(FIELDS[task])}"
            )

    def _fill(self, example: Example, draws: Draws | None) -> str:
        values: dict[str, Any] = {_DRAWS: draws}
        for name in self.fields:
            value = getattr(example, name)
            values[name] = _EMPTY[name] if is_empty(value) else value
        try:
            # `Template.render` without its two copies of the values, a quarter of the time.
            return "".join(self._template.root_render_func(self._template.new_context(values, shared=True)))
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{self.where}: {error} (example {example.id})") from error
        except _TOO_MUCH as error:
            raise UserError(f"{self.where}: {_too_much(error)} (example {example.id})") from error


_TOO_MUCH = (RecursionError, MemoryError)


def _too_much(error: Exception) -> str:
    """Why a template that is nested too deeply, calls itself or makes a text without end gives none."""
    return "needs too much memory" if isinstance(error, MemoryError) else "is nested too deeply, or calls itself"


class Text(_Jinja):
    """One compiled Jinja text over the fields of a task.

    Args:
        source: the Jinja.
        task: the task group.
        where: file and template, for messages.
        blank: whether the text may come out blank.

    Attributes:
        where: file and template, for messages.
        fields: the fields that it names, sorted.
        is_constant: whether the text is the same for every example.

    Raises:
        UserError: the text is no Jinja, or names something that the task does not have.
    """

    def __init__(self, source: str, task: str, where: str, blank: bool = False) -> None:
        super().__init__(source, task, where)
        self._blank = blank
        chooses = any(node.name == "choice" for node in self._tree.find_all(jinja2.nodes.Filter))
        self.is_constant = not self.fields and not chooses
        self._text: str | None = None
        if self.is_constant:
            self._text = self.render(Example(id="any"))

    def render(self, example: Example, draws: Draws | None = None) -> str:
        """The text for one example; `draws` decide what `choice` picks, which without them is the first.

        Raises:
            UserError: a field that is used is empty in this example, or the text comes out blank and may not.
        """
        text = self._fill(example, draws) if self._text is None else self._text
        if not self._blank and (not text or text.isspace()):
            raise UserError(f"{self.where}: comes out blank for example {example.id}")
        return text


class Condition(_Jinja):
    """One compiled Jinja expression over the fields of a task.

    Raises:
        UserError: it is no expression, or names something that the task does not have.
    """

    def __init__(self, expression: str, task: str, where: str) -> None:
        super().__init__(f"{{% if {expression} %}}true{{% endif %}}", task, where)

    def holds(self, example: Example) -> bool:
        """Whether it is true of the example.

        Raises:
            UserError: it cannot be told, as the text of an empty field is used.
        """
        return self._fill(example, None) == "true"


def is_empty(value: Any) -> bool:
    """Whether a field of an example holds nothing; the number 0 is something."""
    return not value and value != 0


class _Empty(jinja2.StrictUndefined):
    """A field that this example does not have: false and of length 0, an error where its content is used."""

    __slots__ = ()

    def __bool__(self) -> bool:  # type: ignore[override]
        return False

    def __len__(self) -> int:  # type: ignore[override]
        return 0

    # As an index it is an error too; Jinja would take the TypeError for a missing element.
    __index__ = jinja2.StrictUndefined.__int__


_EMPTY = {name: _Empty(hint=f"uses {name}, which is empty") for name in Example.__struct_fields__}


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Lets a template read a turn's question and answer and a loop's counters, and no other attribute or method."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, Turn):
            return attr in Turn.__struct_fields__
        return isinstance(obj, jinja2.runtime.LoopContext) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Jinja has `str.format` pass the attribute check, wrapped; here it is a method like any other."""


@cache
def environment() -> jinja2.sandbox.SandboxedEnvironment:
    """The Jinja environment of all templates: sandboxed, strict, with the filters that prompts need."""
    env = _Sandbox(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    env.globals.clear()
    env.filters = FILTERS | {name: env.filters[name] for name in JINJA_FILTERS}
    return env


def lettered(choices: Sequence[str]) -> str:
    """Options as the paper writes them: `(a) apple (b) pear`. A blank one is left out, the others keep their letters.

    Raises:
        ValueError: there are more than letters.
    """
    if len(choices) > len(ascii_lowercase):
        raise ValueError(f"{len(choices)} choices are more than the alphabet has letters")
    lettered_ones = zip(ascii_lowercase, choices, strict=False)
    return " ".join(f"({letter}) {choice}" for letter, choice in lettered_ones if choice.strip())


def dialog(history: Sequence[Turn], answer: str = " ", turn: str = " ") -> str:
    """Earlier turns in one line: question and answer joined by `answer`, turns by `turn`."""
    return turn.join(f"{entry.question}{answer}{entry.answer}" for entry in history)


def most_common(answers: Sequence[str]) -> str:
    """The answer most annotators gave, the first of several; blanks around answers and blank ones do not count."""
    filled = [answer.strip() for answer in answers if answer.strip()]
    return max(filled, key=filled.count)


def plain_caption(caption: str) -> str:
    """A caption as BLIP-2 reads it (LAVIS: `pre_caption`): lower case, no `. ! " ( ) * # : ; ~`, at most 50 words."""
    return " ".join(caption.lower().translate(_NO_MARKS).split()[:_CAPTION_WORDS])


def plain_question(question: str) -> str:
    """A question as BLIP reads it (LAVIS: `pre_question`): as `plain_caption`, but with nothing in place of marks."""
    return " ".join(question.lower().translate(_WITHOUT_MARKS).split()[:_CAPTION_WORDS])


_WITHOUT_MARKS = str.maketrans("", "", '.!"()*#:;~')
_NO_MARKS = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))
_CAPTION_WORDS = 50


@jinja2.pass_context
def _choice(context: jinja2.runtime.Context, options: Sequence[str]) -> str:
    """One of several at random, by the seed of the prompt, without outer blanks; blank answers are passed over."""
    filled = [option.strip() for option in options if option.strip()]
    if not filled:
        raise ValueError(f"nothing to choose from: all of {options!r} are blank")
    draws = context.get(_DRAWS)
    return filled[0] if draws is None else filled[draws.below(len(filled))]


FILTERS: dict[str, Callable[..., Any]] = {
    "choice": _choice,
    "lettered": lettered,
    "dialog": dialog,
    "most_common": most_common,
    "plain_caption": plain_caption,
    "plain_question": plain_question,
}
"""Filters of our own."""

JINJA_FILTERS = ("capitalize", "default", "first", "join", "last", "length", "lower", "replace", "trim", "upper")
"""Jinja's filters that templates may use; the others draw at random, look into objects or have no use in a prompt."""
