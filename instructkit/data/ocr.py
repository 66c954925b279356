"""Words read off pictures: those that releases have (Rosetta's, with TextVQA), and a way to fill in those they lack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from instructkit.data.examples import Example
from instructkit.data.folders import spots
from instructkit.data.readers import UNDECODABLE, RawRecord, Reject, json_member


class Entry(msgspec.Struct, gc=False):
    """One picture of `TextVQA_Rosetta_OCR_v0.2_*.json`; its boxes are not read."""

    image_id: str
    ocr_tokens: list[str]


class _Picture(msgspec.Struct, gc=False):
    image_id: str


_decode_entry = msgspec.json.Decoder(Entry).decode
_decode_picture = msgspec.json.Decoder(_Picture).decode


def with_ocr(example: Example, media_root: Path, read_words: Callable[[Path], list[str]]) -> Example:
    """The example with the words of its pictures, for releases that have none; one that has words stays as it is.

    Args:
        example: its `images` lie below `media_root`.
        media_root: of the manifest the example is from.
        read_words: an OCR library's reading of one picture, in reading order.
    """
    if example.ocr_tokens:
        return example
    words = [word for image in example.images for word in read_words(media_root / image)]
    return msgspec.structs.replace(example, ocr_tokens=words)


def rosetta_file(raw: Path, split: str) -> Path | None:
    """TextVQA's file of OCR tokens, where the raw folder has one."""
    places = (raw / place for place in spots(f"TextVQA_Rosetta_OCR_v0.2_{split}.json"))
    return next((path for path in places if path.is_file()), None)


def missing_note(raw: Path, split: str) -> str:
    """What a release without the file of OCR tokens means for its scores."""
    path = raw / f"TextVQA_Rosetta_OCR_v0.2_{split}.json"
    return f"{path} is not here: the release gives no OCR tokens, with which published models were asked"


def lay_beside(records: Iterable[RawRecord], rosetta: Path | None) -> Iterator[RawRecord]:
    """Wrap each record as `{"record": ..., "ocr_tokens": ...}`, null for a picture without an entry, all undecoded.

    Raises:
        UserError: the file of OCR tokens has no list `data`.
    """
    tokens = _tokens(rosetta) if rosetta else {}
    for file, key, data in records:
        try:
            words = tokens.get(_decode_picture(data).image_id, b"null")
        except UNDECODABLE:
            words = b"null"  # decoding the record in full will say what is wrong with it
        yield RawRecord(file, key, b'{"record":%b,"ocr_tokens":%b}' % (data, words))


def required_tokens(tokens: list[str] | None, rosetta: Path | None) -> list[str]:
    """The tokens laid beside a record, without blank ones.

    Raises:
        Reject: there is a file of OCR tokens, but it has nothing (readable) on this picture.
    """
    if rosetta is not None and tokens is None:
        raise Reject(f"{rosetta.name} has no sound entry of this image_id")
    return [token for token in tokens or [] if token.strip()]


def _tokens(rosetta: Path) -> dict[str, bytes]:
    """Tokens by picture, encoded; a broken entry is left out, so that its picture's records are rejected."""
    tokens = {}
    for _, _, data in json_member(rosetta, "data"):
        try:
            entry = _decode_entry(data)
        except UNDECODABLE:
            continue
        tokens[entry.image_id] = msgspec.json.encode(entry.ocr_tokens)
    return tokens
