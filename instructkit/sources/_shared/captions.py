"""The three layouts that caption releases come in: Karpathy's splits, COCO's own files, and BLIP's flat lists.

Training splits give one example a caption, evaluation splits one example an image with all its captions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import msgspec

from instructkit.data.examples import Example
from instructkit.data.readers import UNDECODABLE, RawRecord, Reject, json_member
from instructkit.sources._shared.fields import Key, Natural, PictureName, Text

KARPATHY_SPLITS = ("train", "restval", "val", "test")


class Sentence(msgspec.Struct, gc=False):
    """One caption of Karpathy's file."""

    raw: Text
    sentid: Natural


class KarpathyImage(msgspec.Struct, gc=False):
    """One entry of `images` of `dataset_*.json`; `filepath` and `cocoid` are in the one for COCO only."""

    filename: PictureName
    split: str
    sentences: list[Sentence]
    filepath: Key | None = None
    cocoid: Natural | None = None


class CocoImage(msgspec.Struct, gc=False):
    """One entry of `images` of COCO's own layout; `domain` is NoCaps'."""

    id: Natural
    file_name: PictureName
    domain: Text | None = None


class CocoCaption(msgspec.Struct, gc=False):
    """One entry of `annotations` of COCO's own layout."""

    id: Natural
    image_id: Natural
    caption: Text


class CocoRecord(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """An image beside its captions, `images[]` and `annotations[]`; one is missing where the other has no partner."""

    image: CocoImage | None = None
    annotations: list[CocoCaption] = []


class ListedImage(msgspec.Struct, gc=False):
    """One entry of BLIP's lists: training files have one caption an entry, the others all captions of an image."""

    image: Text
    caption: Text | list[Text]


class _Split(msgspec.Struct, gc=False):
    split: str


class _Id(msgspec.Struct, gc=False):
    id: int


class _ImageId(msgspec.Struct, gc=False):
    image_id: int


_decode_karpathy = msgspec.json.Decoder(KarpathyImage).decode
_decode_coco = msgspec.json.Decoder(CocoRecord).decode
_decode_listed = msgspec.json.Decoder(ListedImage).decode
_decode_split = msgspec.json.Decoder(_Split).decode
_decode_id = msgspec.json.Decoder(_Id).decode
_decode_image_id = msgspec.json.Decoder(_ImageId).decode


def karpathy_images(path: Path, splits: Sequence[str]) -> Iterator[RawRecord]:
    """The images of the given splits of one of Karpathy's files, and those whose split cannot be told."""
    others = set(KARPATHY_SPLITS) - set(splits)
    for record in json_member(path, "images"):
        try:
            if _decode_split(record.data).split in others:
                continue
        except UNDECODABLE:
            pass  # decoding it in full will say what is wrong with it
        yield record


def karpathy_converter(
    prefix: str,
    splits: Sequence[str],
    place: Callable[[KarpathyImage], tuple[str, str]],
    *,
    each: bool,
) -> Callable[[RawRecord], list[Example]]:
    """The conversion of Karpathy's images.

    Args:
        prefix: of the ids.
        splits: the splits that are wanted.
        place: an image's key and path.
        each: one example a caption, or else one an image.
    """

    def convert(raw: RawRecord) -> list[Example]:
        record = _decode_karpathy(raw.data)
        if record.split not in splits:
            raise Reject(f"split {record.split!r} is none of {', '.join(KARPATHY_SPLITS)}")
        key, path = place(record)
        captions = [(str(sentence.sentid), sentence.raw) for sentence in record.sentences]
        return caption_examples(prefix, key, path, captions, each=each)

    return convert


def coco_images(path: Path) -> Iterator[RawRecord]:
    """Each image of a file in COCO's own layout beside its captions, still undecoded, in the order of the images.

    What has no partner comes out alone and is rejected by `coco_converter`.

    Raises:
        UserError: the file has no such layout.
    """
    captions: dict[int, list[RawRecord]] = {}
    lost: list[RawRecord] = []
    for caption in json_member(path, "annotations"):
        try:
            captions.setdefault(_decode_image_id(caption.data).image_id, []).append(caption)
        except UNDECODABLE:
            lost.append(caption)
    for file, key, data in json_member(path, "images"):
        try:
            own = captions.pop(_decode_id(data).id, [])
        except UNDECODABLE:
            own = []
        yield RawRecord(file, key, b'{"image":%b,"annotations":[%b]}' % (data, b",".join(each.data for each in own)))
    for file, key, data in [*lost, *(caption for group in captions.values() for caption in group)]:
        yield RawRecord(file, key, b'{"annotations":[%b]}' % data)


def coco_converter(
    prefix: str, folder: str, *, each: bool, captioned: bool = True
) -> Callable[[RawRecord], list[Example]]:
    """The conversion of images with their captions in COCO's own layout.

    Args:
        prefix: of the ids.
        folder: of the pictures, below the media root.
        each: one example a caption, or else one an image.
        captioned: whether an image must have captions.
    """

    def convert(raw: RawRecord) -> list[Example]:
        image, annotations = (record := _decode_coco(raw.data)).image, record.annotations
        if image is None:
            raise Reject("no image has this image_id, or another image has it too")
        if any(caption.image_id != image.id for caption in annotations):
            raise Reject(f"a caption of another image stands beside image {image.id}")
        captions = [(str(caption.id), caption.caption) for caption in annotations]
        path = f"{folder}/{image.file_name}"
        meta = {} if image.domain is None else {"domain": image.domain}
        if not captions and not captioned:
            return [Example(id=f"{prefix}{image.id}", images=[path], meta=meta)]
        return caption_examples(prefix, str(image.id), path, captions, each=each, meta=meta)

    return convert


def list_converter(
    prefix: str, place: Callable[[str], tuple[str, str]], *, each: bool
) -> Callable[[RawRecord], list[Example]]:
    """The conversion of BLIP's lists; their captions have no ids, so the place in the list stands for one.

    Args:
        prefix: of the ids.
        place: an image's key and path, made from the listed one.
        each: one example a caption, or else one an image.
    """

    def convert(raw: RawRecord) -> list[Example]:
        record = _decode_listed(raw.data)
        key, path = place(record.image)
        if isinstance(record.caption, str):
            if not each:
                raise Reject("caption is one text, where evaluation needs the list of all captions of the image")
            captions = [(raw.key, record.caption)]
        else:
            captions = [(f"{raw.key}-{number}", caption) for number, caption in enumerate(record.caption)]
        return caption_examples(prefix, key, path, captions, each=each)

    return convert


def caption_examples(
    prefix: str,
    key: str,
    path: str,
    captions: Sequence[tuple[str, str]],
    *,
    each: bool,
    meta: Mapping[str, str] = MappingProxyType({}),
) -> list[Example]:
    """Examples of one image: one a caption (`each`) under the caption's key, or one under the image's key.

    Raises:
        Reject: there is no caption.
    """
    if not captions:
        raise Reject("no captions")
    texts = [(number, text.strip()) for number, text in captions]
    if each:
        return [
            Example(id=f"{prefix}{number}", images=[path], references=[text], meta=dict(meta)) for number, text in texts
        ]
    return [Example(id=f"{prefix}{key}", images=[path], references=[text for _, text in texts], meta=dict(meta))]
