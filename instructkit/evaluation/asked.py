"""A question about photos as the example and the protocol that an evaluator asks by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from instructkit.data.examples import Example
from instructkit.data.media import VIDEO_SUFFIXES
from instructkit.errors import UserError
from instructkit.prompts.protocols import VOCABULARY, Decoding, Protocol, load_protocol

Asked = str | Example | None
"""A question: its words, or an example whose fields a protocol reads; None where the protocol asks by itself."""
GREEDY = Decoding(num_beams=1, max_new_tokens=256)
LINES = ("question", "statement", "context")
PLAIN = Protocol(
    benchmark="ask",
    version=1,
    title="A question as it stands",
    source="jsonl",
    split="val",
    task="llava",
    role="extra",
    mode="generate",
    instruction="{{ question }}",
    decoding=GREEDY,
    metric="exact_match",
    references="answers",
)
"""How a question is asked without a benchmark's protocol: word for word, answered greedily."""


def protocol_of(protocol: str | Protocol | None, ranks: bool = False) -> Protocol:
    """A protocol by its name, the plain one without; with `ranks` it is asked for scores of candidates.

    Raises:
        UserError: there is none of that name, or it asks nothing.
    """
    found = load_protocol(protocol) if isinstance(protocol, str) else protocol or PLAIN
    if found.mode == "retrieve":
        raise UserError(f"protocol {found.benchmark} asks nothing: its pictures and captions retrieve each other")
    if not ranks or found.mode == "rank":
        return found
    candidates = found.candidates if isinstance(found.candidates, list) else "choices"
    # `choices` need not be a field that the task's prompt may name: candidates are read off the example itself.
    return msgspec.structs.replace(found, mode="rank", candidates=candidates, vocabulary=None)


def decoded(protocol: Protocol, options: dict[str, Any]) -> Protocol:
    """The protocol with some settings of its decoding replaced.

    Raises:
        UserError: a setting is out of range, or the protocol ranks candidates and decodes nothing.
    """
    if not options:
        return protocol
    if protocol.mode == "rank":
        names = ", ".join(options).replace("num_beams", "beams")
        raise UserError(
            f"protocol {protocol.benchmark} ranks candidates, so {names} would change nothing; leave it out"
        )
    if "max_new_tokens" in options:
        options = {**options, "decoder_only_max_new_tokens": None}
    decoding = msgspec.structs.replace(protocol.decoding, **options)
    most = min(map(decoding.most_new_tokens, (True, False)))
    if decoding.num_beams < 1 or most < 1 or not 0 <= decoding.min_new_tokens <= most:
        raise UserError(
            f"beams={decoding.num_beams}, min_new_tokens={decoding.min_new_tokens}, max_new_tokens={most}: beams and "
            "max_new_tokens are 1 at least, min_new_tokens 0 to max_new_tokens"
        )
    if not decoding.repetition_penalty > 0:
        raise UserError(f"repetition_penalty={decoding.repetition_penalty}: is above 0; 1 changes nothing")
    if decoding.num_beams == 1 and "length_penalty" in options:
        raise UserError("length_penalty weighs beams against each other; with one beam it changes nothing: set beams")
    return msgspec.structs.replace(protocol, decoding=decoding)


def example_of(asked: Asked, protocol: Protocol, candidates: Sequence[str] | None = None, name: str = "") -> Example:
    """A question as the example that a protocol reads.

    Args:
        asked: words, which go where the protocol's prompt has its question, statement or context; or an example.
        protocol: what asks.
        candidates: become the example's choices, where the protocol reads those.
        name: id of the example, for messages.

    Raises:
        UserError: a question is missing or blank, or the protocol has no place for one; or the candidates do not fit.
    """
    if isinstance(asked, Example):
        example = msgspec.structs.replace(asked, id=f"{name} ({asked.id})" if asked.id else name)
    else:
        example = msgspec.structs.replace(Example(id=name), **line_of(asked, protocol, name))
    if candidates is None:
        if protocol.mode == "rank" and protocol.candidates == "choices" and not example.choices:
            raise UserError(
                f"{name}: no candidates are given, which protocol {protocol.benchmark} ranks for each question"
            )
        return example
    if isinstance(candidates, str) or not all(isinstance(each, str) and each.strip() for each in candidates):
        raise UserError(f"{name}: candidates are a list of texts, none of them blank, not {candidates!r}"[:300])
    if isinstance(protocol.candidates, list):
        raise UserError(f"protocol {protocol.benchmark} has candidates of its own; leave yours out")
    if protocol.mode == "generate":
        raise UserError(f"protocol {protocol.benchmark} generates its answer and ranks no candidates; use rank")
    if protocol.candidates == VOCABULARY:
        return example
    return msgspec.structs.replace(example, choices=list(candidates))


def example_about(photos: Sequence[Path | str], example: Example) -> Example:
    """The example about these pictures or this video.

    Raises:
        UserError: there is none, or a video and something beside it.
    """
    paths = [str(path) for path in photos]
    films = [path for path in paths if Path(path).suffix.lower() in VIDEO_SUFFIXES]
    if not paths:
        raise UserError(f"{example.id}: no photo is given")
    if films and len(paths) > 1:
        raise UserError(f"{films[0]}: a question is about one video or about pictures, not about both or several")
    return msgspec.structs.replace(example, images=[] if films else paths, video=films[0] if films else None)


def line_of(asked: str | None, protocol: Protocol, name: str) -> dict[str, str]:
    """The words of a question by the field that holds them: the line that the protocol's prompt has.

    Raises:
        UserError: there are no words, or the protocol has no line for them.
    """
    fields = protocol.compiled.fields
    place = next((line for line in LINES if line in fields), None)
    if asked is None and place is None:
        return {}
    if place is None:
        raise UserError(
            f"{name}: protocol {protocol.benchmark} asks by itself ({protocol.instruction!r}); give no question"
        )
    if asked is None or not asked.strip():
        raise UserError(f"{name}: no question is given; protocol {protocol.benchmark} needs one")
    return {place: asked}
