"""Templates: an `Example` becomes a `Prompt`, the text that the Q-Former and the LLM read.

`templates/train/<task>.yaml` holds the wordings of a task group, our own, ten or more each:

    task: vqa
    target: "{{ answers | choice }}"          # for all wordings that name no target of their own
    templates:
      - name: short_answer
        instruction: "{{ question }} Answer briefly."
      - name: options
        when: choices                         # drawn only for examples of which this Jinja expression holds
        instruction: "{{ question }} Pick one: {{ choices | lettered }}."
        target: "{{ choices[choice] }}"

`templates/eval/<benchmark>.yaml` is a frozen protocol, see `instructkit.prompts.protocols`.

The texts are Jinja, see `instructkit.prompts.jinja`. Which wording an example gets, and what `choice` picks, follows
from (seed, epoch, example id) alone, so it does not depend on order, workers or ranks.
"""

from __future__ import annotations

from functools import cache
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import msgspec

from instructkit.data.examples import TASKS, Example
from instructkit.errors import UserError
from instructkit.files import read_yaml
from instructkit.prompts.jinja import Condition, Draws, Text


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One wording: Jinja for what the model reads and for what it is to write.

    Attributes:
        name: unique within its file.
        instruction: what the model reads beside the image.
        target: what it is to write; None takes the file's.
        when: Jinja expression over the fields; the wording is drawn only for examples of which it holds.
    """

    name: str
    instruction: str
    target: str | None = None
    when: str | None = None


class TemplateFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `templates/train/<task>.yaml`.

    Attributes:
        task: the task group; the file's name.
        templates: the wordings.
        target: Jinja of the target, for wordings that name none of their own.
        before: Jinja that stands in front of every instruction, such as the OCR tokens.
        plain: Jinja of the bare input behind it, for a run without instructions (`data.instructions`); blank where the
            picture is all there is.
    """

    task: str
    templates: list[Template]
    target: str | None = None
    before: str = ""
    plain: str = ""


class Prompt(msgspec.Struct, frozen=True):
    """An example in words.

    Attributes:
        example: id of the example.
        template: name of the wording.
        instruction: text for the Q-Former and the LLM.
        target: text that the LLM learns to write; None in evaluation.
        images: paths of the pictures, relative to the media root.
        video: path of the video instead of images.
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
    package = Path(__file__).parents[1]
    inside = package / "templates"
    return inside if inside.is_dir() else package.parent / "templates"


class Wording(NamedTuple):
    """A compiled `Template`."""

    name: str
    instruction: Text
    target: Text
    when: str | None


class Templates:
    """The wordings of one task group, compiled.

    Attributes:
        path: the file.
        task: the task group.
        templates: as they stand in the file.
        wordings: the same, compiled.
        plain: the bare input, compiled; it may come out blank.

    Raises:
        UserError: the file is missing or has an unknown key, a broken text, a repeated name or a field that the task
            does not have.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = read_yaml(path, TemplateFile)
        if file.task not in TASKS:
            raise UserError(f"{path}: task {file.task!r} is not one of {', '.join(TASKS)}")
        if file.task != path.stem:
            raise UserError(f"{path}: is of task {file.task!r}; task and file name must agree")
        self.task = file.task
        self.templates = file.templates
        names = [template.name for template in file.templates]
        if len(set(names)) < len(names) or not names:
            raise UserError(f"{path}: template names must be unique and there must be at least one")
        self.wordings = [_compile(template, file, path) for template in file.templates]
        self.plain = Text(file.before + file.plain, file.task, f"{path}: plain", blank=True)
        self._conditions: dict[str, Condition] = {}
        for template in file.templates:
            if template.when is not None and template.when not in self._conditions:
                where = f"{path}: template {template.name!r}"
                self._conditions[template.when] = Condition(template.when, file.task, where)
        self._fitting: dict[tuple[bool, ...], list[int]] = {}

    def __len__(self) -> int:
        return len(self.templates)

    def fitting(self, example: Example) -> list[int]:
        """Indices of the wordings whose `when` holds of the example, or that have none.

        Raises:
            UserError: none fits.
        """
        holds = tuple([condition.holds(example) for condition in self._conditions.values()])
        found = self._fitting.get(holds)
        if found is None:
            true = {None, *compress(self._conditions, holds)}
            found = [index for index, wording in enumerate(self.wordings) if wording.when in true]
            if not found:
                raise UserError(f"{self.path}: no template fits example {example.id}: {' | '.join(self._conditions)}")
            self._fitting[holds] = found
        return found

    def render(self, example: Example, seed: int = 0, epoch: int = 0, wording: int | None = None) -> Prompt:
        """Put an example into words; blanks around the target are left out.

        Args:
            example: must have the fields that the wording uses.
            seed: of the run.
            epoch: each epoch draws another wording and another of several answers.
            wording: index of the wording, instead of a drawn one.

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
        # Annotators typed blanks around answers; a model is not to learn them.
        target_text = target.render(example, draws).strip()
        return make_prompt(example, name, instruction.render(example, draws), target_text)


def _compile(template: Template, file: TemplateFile, path: Path) -> Wording:
    where = f"{path}: template {template.name!r}"
    target = template.target if template.target is not None else file.target
    if target is None:
        raise UserError(f"{where} has no target and the file has none for all")
    return Wording(
        template.name,
        Text(file.before + template.instruction, file.task, where),
        Text(target, file.task, where),
        template.when,
    )


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
