"""Evaluation protocols: `templates/eval/<benchmark>.yaml`, a benchmark as data.

A protocol holds all that a score depends on besides the model: the prompt byte for byte, candidates, decoding, score
rule, references and metric. It is frozen: whoever changes one of these bumps `version`, which every report prints.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from instructkit.data.examples import TASKS, Example
from instructkit.errors import UserError, did_you_mean, quote
from instructkit.files import read_yaml
from instructkit.prompts.jinja import FIELDS, Text, is_empty
from instructkit.prompts.templates import Prompt, make_prompt, templates_folder

RIGHT_CANDIDATE = "right_candidate"
VOCABULARY = "vocabulary"

Texts = tuple[str, ...]
"""The texts (verbalisers) of one candidate, any of which stands for it."""


class Decoding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How text is generated (paper, appendix; repetition penalty and what lengths count: LAVIS's `generate`).

    Attributes:
        num_beams: width of the beam search.
        length_penalty: exponent of the length that a beam's log-likelihood is divided by; -1 favours short answers.
        min_new_tokens: minimum number of new tokens; 0 allows an empty answer.
        max_new_tokens: maximum number of new tokens.
        decoder_only_max_new_tokens: the same of a decoder-only LLM, where it differs; None where it does not.
        repetition_penalty: the score of a token that was generated already is multiplied by it where it is negative and
            divided where it is positive (arXiv 1909.05858). Tokens of the prompt have none. 1 changes nothing.
    """

    num_beams: int = 5
    length_penalty: float = 1.0
    min_new_tokens: int = 0
    max_new_tokens: int = 10
    decoder_only_max_new_tokens: int | None = None
    repetition_penalty: float = 1.0

    def most_new_tokens(self, decoder_only: bool) -> int:
        """After how many tokens the generation of an LLM stops."""
        if decoder_only and self.decoder_only_max_new_tokens is not None:
            return self.decoder_only_max_new_tokens
        return self.max_new_tokens


class Retrieval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How images and texts search each other (BLIP-2, section 4.4).

    Attributes:
        k: the most similar ones of each that the matching head puts in order.
        text_tokens: texts are cut to so many tokens, `[CLS]` and `[SEP]` among them; the beginning is kept.
    """

    k: int = 128
    text_tokens: int = 35


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A published result, shown beside ours.

    Attributes:
        model: as the authors name it.
        value: 0 to 100, or CIDEr times 100; of a metric with several measures the first.
        source: where the number stands, and on which split where that is not the protocol's.
        verified: whether the number was read in a copy of `source`; False for one that was only remembered, which
            reports mark.
        details: what else was published of it: the metric's other measures by its names for them, `bleu_4`, or the
            main one on other splits (`test_dev`, `test_std`).
    """

    model: str
    value: float
    source: str
    verified: bool = True
    details: dict[str, float] = {}


class Vocabulary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Candidates that are the answers of other splits of the source.

    Attributes:
        splits: whose answers.
        top: number of candidates to keep, the most frequent first; None keeps all.
    """

    splits: list[str]
    top: int | None = None

    def texts(self, examples: Iterable[Example]) -> list[str]:
        """The distinct answers of all examples of `splits` that are not blank, by frequency, then as they came."""
        counts = Counter(answer for example in examples for answer in example.answers if answer.strip())
        return [answer for answer, _ in counts.most_common(self.top)]


class Protocol(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """A benchmark as data.

    Attributes:
        benchmark: its name; the file's name.
        version: bumped whenever anything below changes that a score depends on.
        title: how papers write it.
        source: the source dataset (`instructkit sources`).
        split: of that source.
        task: task group, whose fields the prompt may use.
        role: `held-in`, `held-out` or `extra`.
        mode: rank candidates by log-likelihood, generate text, or let images and captions retrieve each other.
        instruction: Jinja, rendered byte for byte; with `retrieve` the form of a caption, rendered for each reference.
        candidates: fixed candidates, each one text or a list of texts that stand for it; or the field of the example
            that holds them; or `vocabulary`. With `generate` they only say which texts are accepted as right.
        vocabulary: which answers are the candidates, for `candidates: vocabulary`.
        score: rule that turns a text's token log-probabilities into its score; see `merge_scores` for a candidate of
            several texts.
        end_token: whether the end token counts; None: as the predecessor, for encoder-decoders only.
        decoding: for `generate`.
        retrieval: for `retrieve`.
        frames: number of frames of a video, sampled uniformly over the clip.
        metric: name in `instructkit.evaluation.metrics`.
        references: what the metric compares with: a field of the example; or `right_candidate`, all texts of the
            candidate that the example's `choice` names; or, for a metric that takes several things, a mapping from
            its names to fields.
        positive: for ROC AUC: index of the candidate that stands for label 1.
        needs: keep only examples that have all these fields.
        only: keep only examples whose `meta` has these values.
        group_by: key of `meta` by which the report also breaks the score down.
        published: rows to show beside ours.
        notes: what a reader must know, how certain the prompt is included.
    """

    benchmark: str
    version: int
    title: str
    source: str
    split: str
    task: str
    role: Literal["held-in", "held-out", "extra"]
    mode: Literal["rank", "generate", "retrieve"]
    instruction: str
    candidates: list[str | list[str]] | str | None = None
    vocabulary: Vocabulary | None = None
    score: Literal["sum", "mean"] = "sum"
    end_token: bool | None = None
    decoding: Decoding = Decoding()
    retrieval: Retrieval | None = None
    frames: int = 4
    metric: str
    references: str | dict[str, str]
    positive: int | None = None
    needs: list[str] = []
    only: dict[str, str] = {}
    group_by: str | None = None
    published: list[Row] = []
    notes: str = ""

    @cached_property
    def compiled(self) -> Text:
        """The compiled instruction."""
        blank = not self.instruction.strip()  # the bare input of captioning, see `own_prompt.asked_barely`
        return Text(self.instruction, self.task, f"templates/eval/{self.benchmark}.yaml", blank=blank)

    def text(self) -> Text:
        """The compiled instruction."""
        return self.compiled

    def prompt(self, example: Example, text: Text | None = None) -> Prompt:
        """The prompt of one example, or of another instruction over it (`text`), as for a spread over wordings."""
        return make_prompt(example, f"eval v{self.version}", (text or self.compiled).render(example), None)

    def captions(self, example: Example) -> list[str]:
        """The texts that an example's picture is to find, each reference put into words by itself.

        Raises:
            UserError: one comes out blank.
        """
        alone = (msgspec.structs.replace(example, references=[reference]) for reference in example.references)
        return [self.compiled.render(each) for each in alone]

    def keeps(self, example: Example) -> bool:
        """Whether the example belongs to the benchmark (`needs` and `only`)."""
        return not any(is_empty(getattr(example, name)) for name in self.needs) and all(
            example.meta.get(key) == value for key, value in self.only.items()
        )

    def options(self, example: Example, vocabulary: Sequence[str] | None = None) -> list[Texts]:
        """The candidates for one example, each with the texts that stand for it.

        Args:
            example: whose field holds them, if `candidates` names one.
            vocabulary: what `Vocabulary.texts` gave, for `candidates: vocabulary`.

        Raises:
            UserError: the example has none, or the vocabulary is not given.
        """
        if isinstance(self.candidates, list):
            return self._fixed
        found = vocabulary if self.candidates == VOCABULARY else getattr(example, self.candidates or "choices")
        if not found:
            raise UserError(f"{self.benchmark}: no candidates ({self.candidates}) for example {example.id}")
        return [(text,) for text in found]

    @cached_property
    def _fixed(self) -> list[Texts]:
        return [(each,) if isinstance(each, str) else tuple(each) for each in self.candidates or ()]

    def reference(self, example: Example) -> Any:
        """What the metric compares a prediction with (see `references`).

        Raises:
            UserError: the right candidate is asked for, but the example has no `choice` or one out of range.
        """
        if isinstance(self.references, dict):
            return {name: getattr(example, field) for name, field in self.references.items()}
        if self.references != RIGHT_CANDIDATE:
            return getattr(example, self.references)
        options = self.options(example)
        if example.choice is None or not 0 <= example.choice < len(options):
            raise UserError(f"{self.benchmark}: example {example.id} has no right one among {len(options)} candidates")
        return list(options[example.choice])


def merge_scores(options: Sequence[Texts], scores: Sequence[float]) -> list[float]:
    """Scores of candidates from the scores of their texts, which lie one after the other.

    The texts of a candidate are different outcomes of one distribution, so the candidate's probability is the sum of
    theirs: its score is the log of the summed exponentials. A single text keeps its score.
    """
    merged, start = [], 0
    for texts in options:
        part = scores[start : start + len(texts)]
        start += len(texts)
        best = max(part, default=-math.inf)
        spread = sum(math.exp(score - best) for score in part) if best > -math.inf else 1.0
        merged.append(best + math.log(spread))
    if start != len(scores):
        raise ValueError(f"{len(scores)} scores for {start} texts of {len(options)} candidates")
    return merged


def benchmarks(folder: Path | None = None) -> list[str]:
    """Names of all protocols, sorted."""
    return sorted(path.stem for path in ((folder or templates_folder()) / "eval").glob("*.yaml"))


def load_protocol(benchmark: str, folder: Path | None = None) -> Protocol:
    """Read a protocol; a file that has not changed since is not read again.

    Raises:
        UserError: there is none of that name, or it is not well formed.
    """
    if benchmark not in benchmarks(folder):
        raise UserError(f"no benchmark is called {quote(benchmark)}; {did_you_mean(benchmark, benchmarks(folder))}")
    path = (folder or templates_folder()) / "eval" / f"{benchmark}.yaml"
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    found = path.stat()
    return _read(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=256)
def _read(path: Path, changed: int, size: int) -> Protocol:
    """The protocol in a file as it was when it last changed; reading YAML takes some ten milliseconds."""
    protocol: Protocol = read_yaml(path, Protocol)
    for problem in _problems(protocol, path):
        raise UserError(f"{path}: {problem}")
    return protocol


def _problems(protocol: Protocol, path: Path) -> Iterable[str]:
    if protocol.task not in TASKS:
        yield f"task {protocol.task!r} is not one of {', '.join(TASKS)}"
    if protocol.benchmark != path.stem:
        yield f"calls itself {protocol.benchmark!r}; name and file must agree"
    if not protocol.instruction.strip():
        yield "its instruction is blank"
    if protocol.version < 1:
        yield f"version {protocol.version}; the first is 1"
    decoding = protocol.decoding
    fewest = max(1, decoding.min_new_tokens)
    if min(map(decoding.most_new_tokens, (True, False))) < fewest or decoding.repetition_penalty <= 0:
        yield "decoding needs max_new_tokens of 1 and of min_new_tokens at least, and a repetition_penalty above 0"
    yield from _retrieval_problems(protocol)
    yield from _candidate_problems(protocol)
    yield from _field_problems(protocol)
    # Compiling says by itself what is wrong with the instruction.
    protocol.text()


def _retrieval_problems(protocol: Protocol) -> Iterable[str]:
    retrieval = protocol.retrieval
    if (protocol.mode == "retrieve") != (retrieval is not None):
        yield "the key retrieval belongs to `mode: retrieve`, and that needs it"
    if retrieval is not None and (retrieval.k < 1 or retrieval.text_tokens < 3):
        yield "retrieval needs a k of 1 and text_tokens of 3 at least"
    if (protocol.mode == "retrieve") != (protocol.metric == "retrieval"):
        yield "the metric retrieval belongs to `mode: retrieve`, and that takes no other"
    if retrieval is not None and (protocol.references != "references" or protocol.candidates is not None):
        yield "what is retrieved are the example's captions: references is `references`, and there are no candidates"


def _candidate_problems(protocol: Protocol) -> Iterable[str]:
    candidates = protocol.candidates
    if candidates is None and protocol.mode == "rank":
        yield "ranks, but names no candidates"
    if (candidates == VOCABULARY) != (protocol.vocabulary is not None):
        yield "the key vocabulary belongs to `candidates: vocabulary`, and that needs it"
    if isinstance(candidates, str) and candidates not in (VOCABULARY, *FIELDS[protocol.task]):
        yield f"candidates {candidates!r} is no field of the task {protocol.task}"
    if isinstance(candidates, list):
        texts = [text for each in protocol.options(Example(id="")) for text in each]
        if len(set(texts)) < len(texts) or not all(map(str.strip, texts)) or [] in candidates:
            yield "candidates must be different texts, none of them blank"
    if protocol.positive is not None and not (isinstance(candidates, list) and protocol.positive in (0, 1)):
        yield "positive is the index, 0 or 1, of one of two fixed candidates"


def _field_problems(protocol: Protocol) -> Iterable[str]:
    references = protocol.references
    named = list(references.values()) if isinstance(references, dict) else [references]
    for name in [*named, *protocol.needs]:
        if name not in Example.__struct_fields__ and not (name == RIGHT_CANDIDATE == references):
            yield f"{name!r} in references or needs is no field of an example"
    if references == RIGHT_CANDIDATE and protocol.candidates in (None, VOCABULARY):
        yield "references are the right candidate, but the example names none of them as right"
