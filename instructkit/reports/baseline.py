"""What answering without the image would score."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from instructkit import sources
from instructkit.data.dataset import MANIFEST, load_examples
from instructkit.data.examples import Example
from instructkit.prompts.protocols import Protocol


def blind_baseline(train: Iterable[Example], test: Iterable[Example]) -> float:
    """Accuracy, 0 to 100, of answering every question with its most frequent training answer, without the image.

    A question that training never asks counts as wrong.
    """
    counts: dict[str, dict[str, int]] = {}
    for example in train:
        asked = counts.setdefault(example.question or "", {})
        for given in example.answers:
            asked[given] = asked.get(given, 0) + 1
    best = {question: max(given, key=lambda text: given[text]) for question, given in counts.items()}
    right = [best.get(example.question or "") in example.answers for example in test]
    return 100 * sum(right) / len(right)


def blind(root: Path, protocol: Protocol) -> float | None:
    """The blind baseline over the whole split, where the training split lies beside it and a question has one answer.

    Args:
        root: folder of converted datasets.
        protocol: the benchmark.
    """
    train = sources.source(protocol.source).split
    folder = root / protocol.source
    comparable = protocol.metric in ("exact_match", "top1") and protocol.references == "answers"
    # The split itself, or what it is cut into.
    places = [folder / train] if (folder / train / MANIFEST).is_file() else sorted(folder.glob(f"{train}-*"))
    if not comparable or train == protocol.split or not places:
        return None
    seen = (example for place in places for example in load_examples(place))
    return blind_baseline(seen, load_examples(folder / protocol.split))
