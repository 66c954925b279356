"""What a model answered: one line of `responses.jsonl` an example, written as it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec


class Response(msgspec.Struct):
    """One answered example.

    Attributes:
        example: its id.
        images: pictures or video, relative to the media root.
        prompt: the text that the Q-Former and the LLM read, byte for byte.
        prediction: what the metric gets: a text, the log-odds of the positive candidate, or a score a candidate.
        reference: what the metric compares it with.
        text: the generated text or the best candidate.
        ranked: candidates and their scores, best first, at most 100.
        confidence: softmax of the best candidate's score over all candidates; None for generated text.
        group: value of the key that the report breaks the score down by.
    """

    example: str
    images: list[str]
    prompt: str
    prediction: Any
    reference: Any
    text: str
    ranked: list[tuple[str, float]] = []
    confidence: float | None = None
    group: str | None = None


class ResponseFile:
    """`responses.jsonl` of a benchmark: appended to in whole batches, so that a stopped evaluation can go on.

    Args:
        path: the file; its folder must exist.
        batch: responses are only kept in multiples of this, the last batch excepted, so that an evaluation that goes
            on forms the same batches as one that never stopped.
    """

    def __init__(self, path: Path, batch: int) -> None:
        self.path, self.batch = path, batch
        self._decode = msgspec.json.Decoder(Response).decode

    def read(self) -> list[Response]:
        """All responses in the file."""
        if not self.path.exists():
            return []
        return [self._decode(line) for line in self.path.read_bytes().splitlines()]

    def keep_whole_batches(self, total: int) -> int:
        """Cut off what a killed evaluation left behind its last whole batch; returns how many examples are done."""
        if not self.path.exists():
            return 0
        content = self.path.read_bytes()
        lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
        done = len(lines) if len(lines) >= total else len(lines) // self.batch * self.batch
        with self.path.open("r+b") as file:
            file.truncate(sum(map(len, lines[:done])))
        return done

    def append(self, responses: list[Response]) -> None:
        """Write a batch in one go."""
        with self.path.open("ab") as file:
            file.write(b"".join(msgspec.json.encode(response) + b"\n" for response in responses))
