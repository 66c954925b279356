"""A dozen questions of a run's benchmarks: the answers before training and behind it, and where the queries look.

The same pictures every time: which ones follows from a checksum of their ids, so that nobody picks them.
`samples.json` of the run's folder holds what was found; the report shows it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
from torch import Tensor

from instructkit.config.settings import RunConfig
from instructkit.data.dataset import MANIFEST, load_examples
from instructkit.data.examples import Example
from instructkit.evaluation.answer import Evaluator
from instructkit.evaluation.assistant import Model
from instructkit.evaluation.benchmark import load_vocabulary
from instructkit.evaluation.questions import Question
from instructkit.evaluation.responses import Response
from instructkit.evaluation.select import Wanted, wanted_benchmarks
from instructkit.files import read_json, write_atomically
from instructkit.models.batches import Texts
from instructkit.prompts.protocols import Protocol
from instructkit.runs.waiting import first_on_machine, on_first_rank
from instructkit.training.engine import Engine
from instructkit.training.watch import at_rest

FILE = "samples.json"
COUNT = 12
_DIGITS = 3
"""Of a share of attention; more would differ by rounding from machine to machine."""

Map = list[list[float]]
T = TypeVar("T")


class Sample(msgspec.Struct):
    """A question about a picture.

    Attributes:
        title: of the benchmark.
        example: its id.
        picture: its path.
        prompt: the instruction.
        other: that of the next sample, under which the queries look at this picture, too.
        expected: the reference in words.
        before: the answer of the model that training began with.
        after: that of the trained model.
        maps: where the trained model's queries look under `prompt`, and under `other`: shares of attention by row and
            column of patches, a mean over the queries; empty for a Q-Former that reads no instruction.
    """

    title: str
    example: str
    picture: str
    prompt: str
    other: str
    expected: list[str]
    before: str
    after: str = ""
    maps: list[Map] = []


class _Asked(NamedTuple):
    """A question that is asked before and after."""

    question: Question
    example: Example
    root: Path
    vocabulary: list[str] | None

    @property
    def picture(self) -> Path:
        return self.root / self.example.images[0]


class Samples:
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
        """Ask the trained model, and write `samples.json`; call where the engine holds its weights."""
        after, maps = self._at_rest(self._answers), self._at_rest(self._maps)
        prompts = [response.prompt for response in after]
        found = [
            Sample(
                title=asked.question.protocol.title,
                example=asked.example.id,
                picture=str(asked.picture),
                prompt=response.prompt,
                other=other,
                expected=response.expected,
                before=before.text,
                after=response.text,
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
        made = []
        for asked in self._asked:
            batch = evaluator.prepare(asked.question, [asked.example], asked.root, asked.vocabulary)
            trie = evaluator.shared_trie(asked.question.protocol, asked.vocabulary)
            made += evaluator.answer(asked.question, batch, trie)
        return made

    def _maps(self, evaluator: Evaluator) -> list[list[Map]]:
        model = Model(evaluator.model, self._texts)
        if not evaluator.model.instruction_aware:
            return [[] for _ in self._asked]
        prompts = [asked.question.prompt(asked.example).instruction for asked in self._asked]
        return [
            [_rounded(model.attention(asked.picture, prompt)) for prompt in pair]
            for asked, pair in zip(self._asked, zip(prompts, _turned(prompts), strict=True), strict=True)
        ]


def read_samples(folder: Path) -> list[Sample]:
    """What a run found; of a run that looked at none, nothing."""
    path = folder / FILE
    found: list[Sample] = read_json(path, list[Sample], "remove it and train again") if path.is_file() else []
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
    found = wanted_benchmarks(config.evaluation.benchmarks, root) if config.evaluation.benchmarks else []
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
    for name in sorted(places, key=lambda name: (zlib.crc32(name.encode()), name))[:COUNT]:
        (example,) = examples.take([places[name]])
        media = Path(examples.manifest.media_root)
        yield _Asked(Question(protocol), example, media, load_vocabulary(protocol, root))


def _fits(protocol: Protocol, example: Example) -> bool:
    return len(example.images) == 1 and example.video is None and protocol.keeps(example)
