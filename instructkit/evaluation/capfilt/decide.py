"""Which texts of a picture are kept: BLIP's rule, by a threshold, or BLIP-2's, the best of several."""

from __future__ import annotations

from typing import NamedTuple

from instructkit.evaluation.capfilt.judge import Judged, Text


class Rule(NamedTuple):
    """What is kept of a picture's texts.

    Attributes:
        threshold: texts with a lower score are dropped; None for no threshold.
        keep: so many with the highest scores are kept, of equal ones the first; None for all.
    """

    threshold: float | None = None
    keep: int | None = None


class Decided(NamedTuple):
    """A text and why it was dropped: `unmatched`, `ranked lower`, `blank`, `repeat`, `unreadable`; empty if kept."""

    text: Text
    why: str


def decide(judged: Judged, rule: Rule) -> list[Decided]:
    """What becomes of each text of a picture, in order.

    A picture that cannot be read keeps none: nobody looked whether a text fits. Without a filter every text that says
    something is kept, once.
    """
    read = [index for index, text in enumerate(judged.texts) if not text.unread]
    best = sorted(read, key=lambda index: -(judged.texts[index].score or 0.0))[: rule.keep]
    kept = set(best if rule.keep is not None else read)
    found = []
    for index, text in enumerate(judged.texts):
        why = text.unread
        if not why and judged.error:
            why = "unreadable"
        elif not why and rule.threshold is not None and text.score is not None and text.score < rule.threshold:
            why = "unmatched"
        elif not why and index not in kept:
            why = "ranked lower"
        found.append(Decided(text, why))
    return found
