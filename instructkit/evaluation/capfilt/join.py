"""What was kept becomes data: BLIP's list with the human pairs behind it, the texts that were dropped, and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec

from instructkit.evaluation.capfilt.decide import Decided, Rule, decide
from instructkit.evaluation.capfilt.judge import Judged, Origin
from instructkit.evaluation.capfilt.pictures import Captioned
from instructkit.files import write_stream
from instructkit.sources.web_capfilt import OWN_LIST

DROPPED = "dropped.jsonl"
BINS = 20
"""Bars of a histogram of scores."""
SHOWN = 8
"""Pictures of each kind that a report shows."""


class Pair(msgspec.Struct, omit_defaults=True):
    """An entry of the list: what BLIP reads, then where the caption comes from and the filter's score."""

    image: str
    caption: str
    origin: Origin
    score: float | None = None


class Dropped(Pair, kw_only=True):
    """A line of the texts that were dropped; `error` says why a picture could not be read."""

    why: str
    error: str = ""


class Shown(msgspec.Struct):
    """A picture for the report: one of its texts is the reason why it is shown.

    Attributes:
        image: where it lies.
        texts: all of its texts.
        why: why each was dropped; empty if it was kept.
        index: of the text that it is shown for.
    """

    image: str
    texts: list[Pair]
    why: list[str]
    index: int


class Tally(msgspec.Struct):
    """What became of the pictures and texts.

    Attributes:
        pictures: distinct ones.
        listed: examples of the web datasets.
        repeated: pictures that are listed more than once.
        unreadable: pictures that could not be read.
        emptied: pictures that could be read, of which no text was kept.
        human: pairs written by people.
        cut: texts of which the filter read only the beginning.
        kept: texts that were kept, by origin.
        dropped: texts that were dropped, by origin and reason.
        low: lower end of the histograms; scores go up to 1.
        kept_bins: how many texts of each origin with a score between two of `BINS` equal steps were kept.
        dropped_bins: how many were dropped.
        shown: pictures for the report, by `<origin> kept` and `<origin> dropped`.
    """

    pictures: int = 0
    listed: int = 0
    repeated: int = 0
    unreadable: int = 0
    emptied: int = 0
    human: int = 0
    cut: int = 0
    kept: dict[str, int] = {}
    dropped: dict[str, dict[str, int]] = {}
    low: float = 0.0
    kept_bins: dict[str, list[int]] = {}
    dropped_bins: dict[str, list[int]] = {}
    shown: dict[str, list[Shown]] = {}

    def noise(self, origin: str) -> float | None:
        """The share of the texts that the filter looked at and called unmatched, 0 to 1; None where it saw none.

        With BLIP-2's rule, the share of those that were not among the best.
        """
        kept, rejected = sum(self.kept_bins.get(origin, ())), sum(self.dropped_bins.get(origin, ()))
        return rejected / (kept + rejected) if kept + rejected else None


def write_pairs(
    found: Callable[[], Iterable[Judged]], rule: Rule, human: Sequence[Captioned], folder: Path, low: float = 0.0
) -> Tally:
    """Write `capfilt.json`, BLIP's list, and `dropped.jsonl`; each appears when it is whole.

    Args:
        found: gives all judged pictures, in order, as often as it is called.
        rule: what is kept.
        human: pairs written by people, which stand behind the others as they are.
        folder: to write into.
        low: the lowest score that there is, for the histograms.

    Returns:
        The counts; `listed` and `repeated` are left to the caller.
    """
    tally = Tally(low=low)
    write_stream(folder / OWN_LIST, _json_list(_pairs(found(), rule, human)))
    write_stream(folder / DROPPED, _lines(found(), rule, tally))
    tally.human = sum(len(example.references) for each in human for example in each.examples)
    return tally


def _pairs(found: Iterable[Judged], rule: Rule, human: Sequence[Captioned]) -> Iterator[Pair]:
    for judged in found:
        for text, why in decide(judged, rule):
            if not why:
                yield Pair(judged.image, text.text, text.origin, text.score)
    for dataset in human:
        for example in dataset.examples:
            image = str(dataset.root / dataset.path(example))
            for caption in example.references:
                yield Pair(image, caption, "human")


def _json_list(pairs: Iterable[Pair]) -> Iterator[str]:
    begin = "[\n"
    for pair in pairs:
        yield begin + msgspec.json.encode(pair).decode()
        begin = ",\n"
    yield "\n]\n" if begin == ",\n" else "[]\n"


def _lines(found: Iterable[Judged], rule: Rule, tally: Tally) -> Iterator[str]:
    """The lines of the dropped texts; what is passed on the way is counted."""
    sample = _Sample()
    for judged in found:
        decided = decide(judged, rule)
        _count(tally, judged, decided)
        sample.look(judged, decided)
        for text, why in decided:
            if why:
                line = Dropped(judged.image, text.text, text.origin, text.score, why=why, error=judged.error)
                yield msgspec.json.encode(line).decode() + "\n"
    tally.shown = sample.shown()


def _count(tally: Tally, judged: Judged, decided: Sequence[Decided]) -> None:
    tally.pictures += 1
    tally.unreadable += bool(judged.error)
    tally.emptied += not judged.error and all(why for _, why in decided)
    tally.cut += sum(text.cut for text, _ in decided)
    for text, why in decided:
        if why:
            reasons = tally.dropped.setdefault(text.origin, {})
            reasons[why] = reasons.get(why, 0) + 1
        else:
            tally.kept[text.origin] = tally.kept.get(text.origin, 0) + 1
        if text.score is not None:
            bins = (tally.dropped_bins if why else tally.kept_bins).setdefault(text.origin, [0] * BINS)
            bins[min(BINS - 1, max(0, int((text.score - tally.low) / (1 - tally.low) * BINS)))] += 1


class _Sample:
    """A few pictures of each kind: those whose address has the lowest digest, so that they are spread over all.

    A picture is shown once of a kind, for its first such text.
    """

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[bytes, Shown]]] = {}

    def look(self, judged: Judged, decided: Sequence[Decided]) -> None:
        digest = blake2b(judged.image.encode(), digest_size=16).digest()
        kinds: dict[str, int] = {}
        for index, (text, why) in enumerate(decided):
            if why in ("", "unmatched", "ranked lower"):
                kinds.setdefault(f"{text.origin} {'dropped' if why else 'kept'}", index)
        for kind, index in kinds.items():
            best = self._found.setdefault(kind, [])
            if len(best) < SHOWN or digest < best[-1][0]:
                pairs = [Pair(judged.image, each.text, each.origin, each.score) for each, _ in decided]
                best.append((digest, Shown(judged.image, pairs, [each for _, each in decided], index)))
                best.sort(key=lambda each: each[0])
                del best[SHOWN:]

    def shown(self) -> dict[str, list[Shown]]:
        """What was found, the web's texts first."""
        kinds = sorted(self._found, key=lambda kind: (not kind.startswith("web"), kind))
        return {kind: [each for _, each in self._found[kind]] for kind in kinds}
