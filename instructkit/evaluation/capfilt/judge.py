"""Captions are written for web pictures, and each text of a picture gets a score: block by block, over ranks.

What a block holds follows from its pictures, the models and the seed alone: a run that was killed goes on with the
blocks that are missing and ends in the same bytes, on however many ranks. Which texts are kept is decided afterwards
(`decide`), so that another threshold asks no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Literal, NamedTuple, Protocol

import msgspec
import torch
from torch import Tensor

from instructkit.data.media import MIN_SIDE, image_pixels, load_image
from instructkit.errors import UserError
from instructkit.evaluation.blocks import Blocks
from instructkit.evaluation.capfilt.pictures import WebPicture, WebPictures
from instructkit.evaluation.retrieve import ahead
from instructkit.prompts.jinja import plain_caption

PICTURES = 512
"""Pictures of a block."""
BLOCK = "pictures"

Origin = Literal["web", "synthetic", "human"]


class Sees(Protocol):
    """Something with an image encoder."""

    size: int
    """Pixels of a side of the pictures that it reads."""

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Features of pictures, `[pictures, patches, width]`, of pixels `[pictures, 3, size, size]`."""


class Captioner(Sees, Protocol):
    """Writes captions."""

    def write(self, features: Tensor, draws: Sequence[Sequence[Random]]) -> list[list[str]]:
        """Captions of each picture, one for each of its random number generators."""


class Scored(NamedTuple):
    """What a filter says about texts.

    Attributes:
        scores: of each text with its picture, the higher the better, `[texts]`.
        cut: whether it read only the beginning of a text.
    """

    scores: Tensor
    cut: Sequence[bool]


class Filter(Sees, Protocol):
    """Says how well texts fit pictures."""

    def score(self, features: Tensor, image_index: Tensor, texts: Sequence[str]) -> Scored:
        """Scores of texts with the pictures that `image_index` names, `[texts]`, in ascending order."""


class Models(NamedTuple):
    """The captioner and the filter.

    Where they are one object, a picture goes through its encoder once for both; of two, each encoder reads it once.

    Attributes:
        captioner: None: no captions are written.
        filter: None: texts get no scores.
    """

    captioner: Captioner | None
    filter: Filter | None


class Text(msgspec.Struct, omit_defaults=True):
    """A text of a picture.

    Attributes:
        text: cleaned (`plain_caption`).
        origin: who wrote it.
        score: the filter's; None without a filter, or for a text that was not looked at.
        unread: why the filter did not look at it: `blank`, or `repeat` of a text of this picture; empty if it did.
        cut: whether the filter read only its beginning.
    """

    text: str
    origin: Origin
    score: float | None = None
    unread: str = ""
    cut: bool = False


class Judged(msgspec.Struct, omit_defaults=True):
    """A web picture with its texts.

    Attributes:
        image: where it lies.
        texts: the web's, then those that were written.
        error: why it could not be read; its texts then have no score.
    """

    image: str
    texts: list[Text]
    error: str = ""


class Settings(NamedTuple):
    """How pictures are judged.

    Attributes:
        captions: written for each picture.
        seed: captions are drawn from it and the picture's name.
        batch_size: pictures, and texts, a forward pass.
    """

    captions: int = 1
    seed: int = 0
    batch_size: int = 32


class _Decoded(NamedTuple):
    """Some pictures; `pixels` by side, of those without an error."""

    pictures: list[WebPicture]
    pixels: dict[int, Tensor]
    errors: list[str]


@torch.no_grad()
def judge(models: Models, pictures: WebPictures, settings: Settings, blocks: Blocks) -> None:
    """Write captions for all pictures and score all their texts; all ranks call it.

    Args:
        models: in evaluation mode.
        pictures: the web's.
        settings: how.
        blocks: open; what lies there is not computed again.

    Raises:
        UserError: a model computes something that is no number.
    """
    spans = block_spans(len(pictures))
    blocks.make(
        BLOCK,
        [len(span) for span in spans],
        lambda number: _pack(judge_pictures(models, pictures.take(spans[number]), settings)),
        "pictures",
        "caption and filter",
    )


def judged(blocks: Blocks, pictures: int) -> Iterator[Judged]:
    """All that was judged, in order.

    Args:
        blocks: all of them made.
        pictures: how many there are.
    """
    for number in range(len(block_spans(pictures))):
        packed = blocks.read(BLOCK, number)["judged"]
        yield from msgspec.json.decode(packed.numpy().tobytes(), type=list[Judged])


def block_spans(pictures: int) -> list[range]:
    """Numbers of the pictures of each block."""
    return [range(start, min(pictures, start + PICTURES)) for start in range(0, pictures, PICTURES)]


def _pack(found: list[Judged]) -> dict[str, Tensor]:
    return {"judged": torch.frombuffer(bytearray(msgspec.json.encode(found)), dtype=torch.uint8)}


@torch.no_grad()
def judge_pictures(models: Models, pictures: Sequence[WebPicture], settings: Settings) -> list[Judged]:
    """Captions and scores of some pictures, in order.

    Args:
        models: in evaluation mode.
        pictures: some of the web's.
        settings: how.

    Raises:
        UserError: the filter's scores are not finite.
    """
    sizes = {each.size for each in models if each is not None}
    size = settings.batch_size
    batches = [pictures[start : start + size] for start in range(0, len(pictures), size)]
    return [
        each
        for decoded in ahead(lambda batch: _decode(batch, sizes), batches)
        for each in _judge_batch(models, decoded, settings)
    ]


def _decode(pictures: Sequence[WebPicture], sizes: set[int]) -> _Decoded:
    """Each picture is read from disk once, whatever sizes are wanted."""
    pixels: dict[int, list[Tensor]] = {size: [] for size in sizes}
    errors = []
    for picture in pictures:
        try:
            image = load_image(picture.path)
            if min(image.size) < MIN_SIDE:
                raise UserError(f"{picture.path}: {image.width} x {image.height} pixels, too small to be a picture")
        except UserError as error:
            errors.append(str(error))
            continue
        errors.append("")
        for size, found in pixels.items():
            found.append(torch.from_numpy(image_pixels(image, size)))
    stacked = {size: torch.stack(found) for size, found in pixels.items() if found}
    return _Decoded(list(pictures), stacked, errors)


def _judge_batch(models: Models, decoded: _Decoded, settings: Settings) -> list[Judged]:
    found = [
        Judged(str(picture.path), [Text(plain_caption(text), "web") for text in picture.texts], error)
        for picture, error in zip(decoded.pictures, decoded.errors, strict=True)
    ]
    seen = [(picture, each) for picture, each in zip(decoded.pictures, found, strict=True) if not each.error]
    if seen:
        captions, features = _write(models, [picture for picture, _ in seen], decoded.pixels, settings)
        for (_, each), written in zip(seen, captions, strict=True):
            each.texts += [Text(plain_caption(caption), "synthetic") for caption in written]
    for each in found:
        _mark_unread(each.texts)
    if seen and models.filter is not None:
        if features is None:
            features = models.filter.encode(decoded.pixels[models.filter.size])
        _score(models.filter, features, [each for _, each in seen], settings.batch_size)
    return found


def _write(
    models: Models, pictures: Sequence[WebPicture], pixels: dict[int, Tensor], settings: Settings
) -> tuple[list[list[str]], Tensor | None]:
    """Captions of each picture, and the features that the filter reads as well, if the captioner is the filter."""
    if models.captioner is None:
        return [[] for _ in pictures], None
    features = models.captioner.encode(pixels[models.captioner.size])
    draws = [
        [Random(f"{settings.seed}/caption/{number}/{picture.name}") for number in range(settings.captions)]
        for picture in pictures
    ]
    same = models.captioner is models.filter
    return models.captioner.write(features, draws), features if same else None


def _mark_unread(texts: Sequence[Text]) -> None:
    before: set[str] = set()
    for each in texts:
        if not each.text:
            each.unread = "blank"
        elif each.text in before:
            each.unread = "repeat"
        before.add(each.text)


def _score(scorer: Filter, features: Tensor, pictures: Sequence[Judged], batch_size: int) -> None:
    """Give each text that is to be read its score, the texts of a picture one behind the other."""
    read = [(index, text) for index, each in enumerate(pictures) for text in each.texts if not text.unread]
    for start in range(0, len(read), batch_size):
        part = read[start : start + batch_size]
        numbers, index = torch.unique(torch.tensor([number for number, _ in part]), return_inverse=True)
        seen = features[numbers.to(features.device)]
        found = scorer.score(seen, index.to(features.device), [text.text for _, text in part])
        scores = found.scores.float().cpu()
        if not scores.isfinite().all():
            raise UserError("the filter's scores are not finite, so nothing can be kept or dropped; try dtype=float32")
        for (_, text), score, cut in zip(part, scores.tolist(), found.cut, strict=True):
            text.score, text.cut = round(score, 6), cut
