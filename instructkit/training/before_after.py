"""A dozen questions of a run's benchmarks: the answers before training and behind it, and where the queries look.

The same pictures every time: which ones follows from a checksum of their ids, so that nobody picks them.
`before_after.json` of the run's folder holds what was found; the report shows it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
from torch import Tensor

from instructkit.config.settings import RunConfig
from instructkit.data.dataset import MANIFEST, load_examples
from instructkit.data.examples import Example
from instructkit.errors import UserError
from instructkit.evaluation.answer import Evaluator
from instructkit.evaluation.assistant import Model
from instructkit.evaluation.benchmark import load_vocabulary
from instructkit.evaluation.questions import Question
from instructkit.evaluation.responses import Response
from instructkit.evaluation.select import Wanted, wanted_benchmarks
from instructkit.evaluation.trie import CandidateTrie
from instructkit.files import read_json, write_atomically
from instructkit.models.batches import Texts
from instructkit.prompts.protocols import Protocol
from instructkit.runs.waiting import first_on_machine, on_first_rank
from instructkit.training.engine import Engine
from instructkit.training.watch import at_rest

FILE = "before_after.json"
COUNT = 12
_DIGITS = 3
"""Of a share of attention; more would differ by rounding from machine to machine."""

Map = list[list[float]]
T = TypeVar("T")


class Case(msgspec.Struct):
    """A question about a picture, with what was answered.

    Attributes:
        title: of the benchmark.
        example: its id.
        picture: its path.
        prompt: the instruction.
        other: that of the next case, under which the queries look at this picture, too.
        expected: the reference in words.
        before: the answer of the model that training began with, or why it has none.
        after: likewise of the trained model.
        maps: where the trained model's queries look under `prompt`, and under `other`: shares of attention by row and
            column of patches, a mean over the queries; empty for a Q-Former that reads no instruction, and for a
            picture that cannot be read.
    """

    title: str
    example: str
    picture: str
    prompt: str
    other: str
    expected: list[str]
    before: str
    after: str
    maps: list[Map]


class _Asked(NamedTuple):
    """A question that is asked before and after."""

    question: Question
    example: Example
    root: Path
    vocabulary: list[str] | None

    @property
    def picture(self) -> Path:
        return self.root / self.example.images[0]


class BeforeAfter:
    """The questions of a run, asked before training; call on every rank, as its methods.

    A run that begins with random weights has none: what such a model answers says nothing.

    Args:
        config: of the run, its data converted.
        engine: with the model as training begins.
        texts: its tokenisers.
    """

    def __init__(self, config: RunConfig, engine: Engine, texts: Texts) -> None:
        random = config.model.name == "nano" and not config.model.joined
        self._engine = engine
        self._texts = Texts(texts.llm, texts.qformer, engine.model.config)
        self._asked = [] if random else first_on_machine(lambda: _chosen(config))
        self._before = self._at_rest(self._answers)

    def finish(self, folder: Path) -> None:
        """Ask the trained model, and write `before_after.json`; call where the engine holds its weights."""
        after = self._at_rest(self._answers)
        prompts = [response.prompt for response in after]
        maps = self._at_rest(partial(self._maps, pairs=list(zip(prompts, _turned(prompts), strict=True))))
        found = [
            Case(
                title=asked.question.protocol.title,
                example=asked.example.id,
                picture=str(asked.picture),
                prompt=response.prompt,
                other=other,
                expected=response.expected,
                before=before.error or before.text,
                after=response.error or response.text,
                maps=looks,
            )
            for asked, other, before, response, looks in zip(
                self._asked, _turned(prompts), self._before, after, maps, strict=True
            )
        ]
        on_first_rank(lambda: write_atomically(folder / FILE, msgspec.json.encode(found) + b"\n"))

    def _at_rest(self, find: Callable[[Evaluator], list[T]]) -> list[T]:
        if not self._asked:
            return []
        with at_rest(self._engine) as model:
            return on_first_rank(lambda: find(Evaluator(model, self._texts)))

    def _answers(self, evaluator: Evaluator) -> list[Response]:
        tries: dict[str, CandidateTrie | None] = {}
        made = []
        for asked in self._asked:
            protocol = asked.question.protocol
            if protocol.benchmark not in tries:
                tries[protocol.benchmark] = evaluator.shared_trie(protocol, asked.vocabulary)
            batch = evaluator.prepare(asked.question, [asked.example], asked.root, asked.vocabulary)
            made += evaluator.answer(asked.question, batch, tries[protocol.benchmark])
        return made

    def _maps(self, evaluator: Evaluator, pairs: Sequence[tuple[str, str]]) -> list[list[Map]]:
        """Where the queries look at each picture under two instructions."""
        model = Model(evaluator.model, self._texts)
        found: list[list[Map]] = []
        for asked, pair in zip(self._asked, pairs, strict=True):
            found.append([])
            if evaluator.model.instruction_aware:
                with suppress(UserError):  # of a picture that cannot be read, which the answers say
                    found[-1] = [_rounded(model.attention(asked.picture, prompt)) for prompt in pair]
        return found


def read_before_after(folder: Path) -> list[Case]:
    """What a run found; of one that began with random weights, nothing."""
    path = folder / FILE
    found: list[Case] = read_json(path, list[Case], "remove it and train again") if path.is_file() else []
    return found


def _turned(prompts: Sequence[str]) -> list[str]:
    """The next one of each."""
    return [*prompts[1:], *prompts[:1]]


def _rounded(queries: Tensor) -> Map:
    found: Map = queries.mean(0).tolist()
    return [[round(share, _DIGITS) for share in row] for row in found]


def _chosen(config: RunConfig) -> list[_Asked]:
    """One of each benchmark, then a second one, and so on."""
    root = Path(config.data.root)
    asked = config.evaluation
    found = wanted_benchmarks(asked.benchmarks, root, asked.prompts) if asked.benchmarks else []
    rounds = zip_longest(*(_of_benchmark(each, root) for each in found))
    return list(islice((asked for asked in chain.from_iterable(rounds) if asked is not None), COUNT))


def _of_benchmark(wanted: Wanted, root: Path) -> Iterator[_Asked]:
    """Questions about one picture, by the checksums of their ids."""
    protocol = wanted.protocol
    folder = root / protocol.source / protocol.split
    if protocol.mode == "retrieve" or wanted.hidden or not (folder / MANIFEST).is_file():
        return
    examples = load_examples(folder)
    places = {example.id: place for place, example in enumerate(examples) if _fits(protocol, example)}
    media, vocabulary = Path(examples.manifest.media_root), load_vocabulary(protocol, root)
    for name in sorted(places, key=lambda name: (zlib.crc32(name.encode()), name))[:COUNT]:
        (example,) = examples.take([places[name]])
        yield _Asked(Question(protocol), example, media, vocabulary)


def _fits(protocol: Protocol, example: Example) -> bool:
    return len(example.images) == 1 and example.video is None and protocol.keeps(example)
