"""Evaluation protocols: `templates/eval/<benchmark>.yaml`, a benchmark as data.

A protocol holds all that a score depends on besides the model: the prompt byte for byte, candidates, decoding, score
rule and metric. It is frozen: whoever changes one of these bumps `version`, which every report prints.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import msgspec

from instructkit.errors import UserError
from instructkit.examples import TASKS, Example
from instructkit.prompts import FIELDS, Prompt, Text, make_prompt, read_yaml, templates_folder


class Decoding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How text is generated (paper, appendix): beams, length penalty, limits in new tokens."""

    num_beams: int = 5
    length_penalty: float = 1.0
    min_new_tokens: int = 1
    max_new_tokens: int = 10


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A published result, shown beside ours.

    Attributes:
        model: as the authors name it.
        value: 0 to 100, or CIDEr times 100.
        source: where the number stands.
        verified: False for a number that was not checked against its source; reports mark it.
    """

    model: str
    value: float
    source: str
    verified: bool = True


class Protocol(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A benchmark as data.

    Attributes:
        benchmark: its name; the file's name.
        version: bumped whenever anything below changes that a score depends on.
        title: how papers write it.
        source: the source dataset (`instructkit sources`).
        split: of that source.
        task: task group, whose fields the prompt may use.
        role: `held-in`, `held-out` or `extra`.
        mode: rank candidates by log-likelihood, or generate text.
        instruction: Jinja, rendered byte for byte.
        candidates: for `rank`: fixed texts, the field of the example that holds them, or `vocabulary` for the answers
            of the source's other splits (see `vocabulary`).
        vocabulary: for `candidates: vocabulary`: the split whose distinct answers are the candidates.
        score: rule that turns token log-probabilities into a candidate's score.
        end_token: whether the end token counts; None: as the predecessor, for encoder-decoders only.
        decoding: for `generate`.
        metric: name in `instructkit.metrics`.
        references: field of the example that the metric compares with.
        positive: for ROC AUC: index of the candidate whose probability is the score.
        where: keep only examples that have this field.
        group_by: key of `meta` by which the report also breaks the score down.
        published: rows to show beside ours.
        notes: what a reader must know.
    """

    benchmark: str
    version: int
    title: str
    source: str
    split: str
    task: str
    role: Literal["held-in", "held-out", "extra"]
    mode: Literal["rank", "generate"]
    instruction: str
    candidates: list[str] | str | None = None
    vocabulary: str | None = None
    score: Literal["sum", "mean"] = "sum"
    end_token: bool | None = None
    decoding: Decoding = Decoding()
    metric: str
    references: str
    positive: int | None = None
    where: str | None = None
    group_by: str | None = None
    published: list[Row] = []
    notes: str = ""

    def text(self) -> Text:
        """The compiled instruction."""
        return Text(self.instruction, self.task, f"templates/eval/{self.benchmark}.yaml")

    def prompt(self, example: Example, text: Text | None = None) -> Prompt:
        """The prompt of one example; pass a compiled `text` to spare compiling it each time."""
        return make_prompt(example, f"eval v{self.version}", (text or self.text()).render(example), None)

    def reference(self, example: Example) -> Any:
        """What the metric compares a prediction with."""
        return getattr(example, self.references)


def benchmarks(folder: Path | None = None) -> list[str]:
    """Names of all protocols, sorted."""
    return sorted(path.stem for path in ((folder or templates_folder()) / "eval").glob("*.yaml"))


def load_protocol(benchmark: str, folder: Path | None = None) -> Protocol:
    """Read a protocol.

    Raises:
        UserError: there is none of that name, or it is not well formed.
    """
    if benchmark not in benchmarks(folder):
        near = difflib.get_close_matches(benchmark, benchmarks(folder), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(benchmarks(folder))}"
        raise UserError(f"no benchmark is called {benchmark!r}; {hint}")
    path = (folder or templates_folder()) / "eval" / f"{benchmark}.yaml"
    protocol: Protocol = read_yaml(path, Protocol)
    _check(protocol, path)
    return protocol


def _check(protocol: Protocol, path: Path) -> None:
    if protocol.task not in TASKS:
        raise UserError(f"{path}: task {protocol.task!r} is not one of {', '.join(TASKS)}")
    if protocol.benchmark != path.stem:
        raise UserError(f"{path}: calls itself {protocol.benchmark!r}; name and file must agree")
    if protocol.mode == "rank" and protocol.candidates is None:
        raise UserError(f"{path}: ranks, but names no candidates")
    if protocol.candidates == "vocabulary" and protocol.vocabulary is None:
        raise UserError(f"{path}: candidates are a vocabulary, but of which split is not said (key vocabulary)")
    if isinstance(protocol.candidates, str) and protocol.candidates not in (
        "vocabulary",
        *FIELDS[protocol.task],
    ):
        raise UserError(f"{path}: candidates {protocol.candidates!r} is no field of the task {protocol.task}")
    if protocol.references not in Example.__struct_fields__:
        raise UserError(f"{path}: references {protocol.references!r} is no field of an example")
    protocol.text()
