"""What a model answered: one line of `responses.jsonl` an example, written as it is made."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from instructkit.data.media_files import Stamps
from instructkit.errors import UserError
from instructkit.files import read_json, reading, write_atomically
from instructkit.runs.ranks import Ranks

CAPTION = "caption"
"""In `Answer.cut`: a caption of a retrieval was cut, and its beginning was read."""


class Answer(msgspec.Struct, kw_only=True):
    """One answered example, as far as scoring reads it.

    Attributes:
        example: its id.
        images: pictures or video, relative to the media root.
        prompt: the text that the Q-Former and the LLM are given, byte for byte.
        cut: which of them read its end alone, as the whole was longer than its limit: `qformer`, `instruction` (LLM);
            of a retrieval `caption` for each caption that was cut at its end.
        prediction: what the metric gets: a text, the log-odds of the positive candidate, a score a candidate, or the
            places of a retrieval.
        reference: what the metric compares it with.
        text: the generated text, the best candidate, or the first text that a picture finds.
        confidence: softmax of the best candidate's score over all candidates; None for generated text.
        group: value of the key that the report breaks the score down by.
        error: why there is no answer; an example with an error is not scored, and the report names it.
    """

    example: str
    images: list[str] = []
    prompt: str = ""
    cut: list[str] = []
    prediction: Any = None
    reference: Any = None
    text: str = ""
    confidence: float | None = None
    group: str | None = None
    error: str | None = None


class Response(Answer, kw_only=True):
    """One answered example, as it is written down.

    Attributes:
        ranked: candidates, or texts that a picture finds, and their scores, best first, at most 100.
        found: for each caption of a retrieval the first pictures that it finds, and their scores.
        expected: the reference in words, for people.
        clip: first and last second inside the video.
    """

    ranked: list[tuple[str, float]] = []
    found: list[list[tuple[str, float]]] = []
    expected: list[str] = []
    clip: tuple[float | None, float | None] = (None, None)


class _Line(msgspec.Struct):
    example: str
    error: str | None = None
    images: list[str] = []


_read_line = msgspec.json.Decoder(_Line).decode
_read_answer = msgspec.json.Decoder(Answer).decode
_read_response = msgspec.json.Decoder(Response).decode

IDENTITY = "identity.json"
RESPONSES = "responses.jsonl"
MEDIA = "media.json"


class ResponseLog:
    """The responses to one benchmark in a folder, written by one or several ranks, kept whole batch by whole batch.

    While ranks write, the first rank's lines lie in `responses.jsonl` and those of rank r in `responses.<r>.jsonl`. A
    finished evaluation has all in `responses.jsonl`, in the order of the split. `identity.json` beside it says what the
    lines depend on, `media.json` which pictures and videos they were given about: size and time of change of each.

    Args:
        folder: made by `open`.
        ranks: this process and the others.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self.path = folder / RESPONSES
        self.replaced = 0
        """Answers that were thrown away, as their pictures are not those that they were given about."""
        self.damaged = 0
        """Lines that were thrown away, as they cannot be read."""
        self._own = self.path if ranks.first else folder / f"responses.{ranks.rank}.jsonl"

    def open(
        self,
        identity: dict[str, Any],
        batches: Sequence[Sequence[str]],
        replace: bool = False,
        media: Stamps | None = None,
    ) -> list[int]:
        """Begin, or go on where an evaluation was stopped; all ranks call it.

        Batches of which an example is missing, has an error or was asked about another picture are dropped: they are
        answered again as a whole, so that an evaluation that goes on forms the same batches as one that never stopped.
        So is one with a line that cannot be read.

        Args:
            identity: what responses depend on.
            batches: example ids of each batch.
            replace: discard responses that depend on something else, instead of an error.
            media: the stamps of the split's media files; None where none are compared.

        Returns:
            the batches that are still to be answered.

        Raises:
            UserError: the folder holds responses that depend on something else.
        """
        if self.ranks.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check(identity, replace)
            lines = self._lines()
            for name in self._outdated(media or {}, lines):
                del lines[name]
                self.replaced += 1
            whole = {name for batch in batches if all(map(lines.__contains__, batch)) for name in batch}
            self._rewrite([place for name, place in lines.items() if name in whole])
            if media is not None:
                write_atomically(self.folder / MEDIA, msgspec.json.encode(media))
        self.ranks.wait()
        done = self._lines()
        self.ranks.wait()
        return [number for number, batch in enumerate(batches) if not all(map(done.__contains__, batch))]

    def append(self, responses: Iterable[Response]) -> None:
        """Write a batch in one go."""
        with self._own.open("ab") as file:
            file.write(b"".join(msgspec.json.encode(response) + b"\n" for response in responses))

    def close(self, order: Sequence[str]) -> None:
        """Merge what all ranks wrote into `responses.jsonl`, in the order given; all ranks call it."""
        self.ranks.wait()
        if self.ranks.first:
            lines = self._lines(with_errors=True)
            self._rewrite([lines[name] for name in order])
        self.ranks.wait()

    def answers(self) -> list[Answer]:
        """All answers, without the candidates' scores."""
        with reading(self.path, self._remedy):
            return [_read_answer(line) for _, line in _whole_lines(self.path)]

    def responses(self, wanted: Iterable[str]) -> list[Response]:
        """Some responses in full, in the order of the file."""
        names = set(wanted)
        with reading(self.path, self._remedy):
            return [_read_response(line) for _, line in _whole_lines(self.path) if _read_line(line).example in names]

    @property
    def _remedy(self) -> str:
        return f"remove {self.folder} and evaluate again, which answers its questions anew"

    def _check(self, identity: dict[str, Any], replace: bool) -> None:
        path = self.folder / IDENTITY
        wanted = msgspec.json.decode(msgspec.json.encode(identity))
        if self._files() and path.is_file():
            found = self._identity(path, replace)
        else:
            found = wanted if not self._files() else {}
        different = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        if different and not replace:
            what = ", ".join(f"{key} was {found.get(key)!r}, is {wanted.get(key)!r}" for key in different)
            raise UserError(
                f"{self.folder}: holds responses of another evaluation ({what}); choose another folder or delete this"
            )
        if different:
            for file in self._files():
                file.unlink()
        write_atomically(path, msgspec.json.format(msgspec.json.encode(wanted, order="sorted")) + b"\n")

    def _outdated(self, media: Stamps, names: Collection[str]) -> list[str]:
        """Examples among `names` whose media files are no longer those that were answered about."""
        path = self.folder / MEDIA
        if not (names and media and path.is_file()):
            return []
        before = read_json(path, Stamps, self._remedy)
        changed = {name for name, stamp in media.items() if name in before and before[name] != stamp}
        lines = (_head(line) for file in self._files() for _, line in _whole_lines(file)) if changed else ()
        return [
            line.example for line in lines if line and line.example in names and not changed.isdisjoint(line.images)
        ]

    def _identity(self, path: Path, replace: bool) -> dict[str, Any]:
        """What `identity.json` says; nothing where it is damaged and the responses may be replaced."""
        try:
            found: dict[str, Any] = read_json(path, dict[str, Any], self._remedy)
        except UserError:
            if not replace:
                raise
            return {}
        return found

    def _files(self) -> list[Path]:
        return [path for path in sorted(self.folder.glob("responses*.jsonl")) if path.is_file()]

    def _lines(self, with_errors: bool = False) -> dict[str, tuple[Path, int, int]]:
        """Where each example's line lies: file, first byte, length."""
        found: dict[str, tuple[Path, int, int]] = {}
        for path in self._files():
            for start, line in _whole_lines(path):
                head = _head(line)
                if head is None:
                    self.damaged += 1
                elif head.error is None or with_errors:
                    found[head.example] = (path, start, len(line))
        return found

    def _rewrite(self, places: Iterable[tuple[Path, int, int]]) -> None:
        """Make `responses.jsonl` of these lines and nothing else, and remove the other ranks' files."""
        files = {path: path.open("rb") for path in self._files()}
        partial = self.folder / "responses.tmp"
        with partial.open("wb") as out:
            for path, start, length in places:
                files[path].seek(start)
                out.write(files[path].read(length))
        for file in files.values():
            file.close()
        os.replace(partial, self.path)
        for path in files.keys() - {self.path}:
            path.unlink()


def _head(line: bytes) -> _Line | None:
    """What a line says first; None of one that is damaged, which counts as not written."""
    try:
        return _read_line(line)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(first byte, line) of every line that was written to its end."""
    if not path.exists():
        return
    start = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield start, line
            start += len(line)
