"""A run's own prompt in place of a task group's wordings.

BLIP-2 trains so (arXiv 2301.12597, sections 3.2 and 4). Its second stage reads nothing beside the picture. An
encoder-decoder LLM is a prefix LM there: the caption is cut in two, and its first part goes to the encoder. Its
finetuned models read "a photo of" or "Question: ... Answer:".

InstructBLIP's multitask baselines train so, too (arXiv 2305.06500, figure 4): on the bare input, or with the name of
task and dataset in front of it.
"""

from __future__ import annotations

import msgspec

from instructkit.config.settings import Instructions
from instructkit.data.examples import Example
from instructkit.files import read_yaml
from instructkit.prompts.jinja import Draws, Text
from instructkit.prompts.protocols import Protocol
from instructkit.prompts.templates import Prompt, TemplateFile, Templates, train_templates

NOTHING = "none"
"""`data.prompt` of a run whose model reads nothing beside the picture."""


class OwnPrompt:
    """A prompt for all examples of a task group; the targets are those of its wordings.

    Args:
        prompt: Jinja over the fields of the task; blank for nothing.
        task: the task group.
        prefix: cut each target between two words; what stands before the cut is read behind the prompt.

    Raises:
        UserError: the prompt is no Jinja, or names something that the task does not have.
    """

    def __init__(self, prompt: str, task: str, prefix: bool = False) -> None:
        self._templates, self._prefix, self._name = train_templates(task), prefix, ""
        self._text = Text(prompt, task, "data.prompt") if prompt.strip() else None

    @classmethod
    def plain(cls, task: str, name: str = "") -> OwnPrompt:
        """The bare input of a task group.

        Args:
            task: the task group.
            name: what stands in front of it.
        """
        found = cls("", task)
        found._text, found._name = found._templates.plain, name
        return found

    def render(self, example: Example, seed: int = 0, epoch: int = 0) -> Prompt:
        """Put an example into words; where a target is cut follows from (seed, epoch, example id) alone.

        Raises:
            UserError: the prompt uses a field that is empty in this example.
        """
        prompt = self._templates.render(example, seed, epoch)
        read = "" if self._text is None else self._text.render(example)
        read = " ".join(filter(None, (self._name, read)))
        words = (prompt.target or "").split()
        cut = 0
        if self._prefix and words:
            cut = Draws(f"{seed}/{epoch}/prefix/{example.id}").below(len(words))
        if cut:
            read, target = " ".join([*read.split(), *words[:cut]]), " ".join(words[cut:])
            return msgspec.structs.replace(prompt, template="prompt", instruction=read, target=target)
        return msgspec.structs.replace(prompt, template="prompt", instruction=read)


def wordings_of(
    task: str, source: str = "", prompt: str | None = None, prefix: bool = False, instructions: Instructions = "full"
) -> Templates | OwnPrompt:
    """What puts the examples of a task group into words.

    Args:
        task: the task group.
        source: the dataset.
        prompt: `data.prompt`.
        prefix: `data.prefix`.
        instructions: `data.instructions`.
    """
    if prompt is not None:
        return OwnPrompt("" if prompt == NOTHING else prompt, task, prefix)
    if instructions == "full":
        return train_templates(task)
    return OwnPrompt.plain(task, _names(task, source) if instructions == "name" else "")


def asked_barely(protocol: Protocol, prompts: Instructions) -> Protocol:
    """A benchmark without its instruction: asked by the bare input, as a run with `data.instructions` trains on it.

    The model never saw the name of a held-out dataset, so the task's stands alone (arXiv 2305.06500, section 3.4).

    Args:
        protocol: the benchmark.
        prompts: full leaves it as it is; so do pictures and texts that retrieve each other.
    """
    if prompts == "full" or protocol.mode == "retrieve":
        return protocol
    file = read_yaml(train_templates(protocol.task).path, TemplateFile)
    source = protocol.source if protocol.role == "held-in" else ""
    names = _names(protocol.task, source) if prompts == "name" else ""
    return msgspec.structs.replace(protocol, instruction=" ".join(filter(None, (names, file.before + file.plain))))


def _names(task: str, source: str) -> str:
    return f"[{':'.join(filter(None, (task.replace('_', ' '), source)))}]"
