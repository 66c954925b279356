"""Retrieval with a model that matches: which texts an image finds, and which images a text finds (BLIP-2, section 4.4).

Each image and each text is embedded once. The k most similar of each make its shortlist; the matching head then looks
at every pair of a shortlist, and the score of a pair is its logit plus the similarity, not divided by the temperature.
All that is kept lies in files, a file a block, each made on one rank: embeddings, shortlists, logits.

An image's features are not kept for the second look. ViT-g's of 5,000 images take 3.6 GB at 224 pixels and 9.5 GB at
364 in half precision, which fits no memory limit and would be written once to be read once: pairs are put in order by
image, so its features are needed for one block alone. Encoding it again costs a few percent of matching it with some
hundred texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple, Protocol, TypeVar

import msgspec
import torch
from torch import Tensor

from instructkit.errors import UserError
from instructkit.evaluation.blocks import Blocks
from instructkit.evaluation.shortlist import Shortlist, places, shortlists
from instructkit.models.batches import padded

T = TypeVar("T")
U = TypeVar("U")
IMAGES = 64
"""Images whose embeddings make a block."""
TEXTS = 1024
"""Texts whose embeddings make a block."""
MATCHED = 16
"""Images whose pairs make a block; the features of so many are in memory."""


class Matcher(Protocol):
    """A model that embeds images and texts and says how well they match: `Blip2Pretraining`, or `Blip`."""

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Features `[images, patches, vision width]`."""

    def embed_images(self, features: Tensor) -> Tensor:
        """Embeddings `[images, queries, width]`, normalised."""

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings `[texts, width]`, normalised."""

    def match(self, features: Tensor, image_index: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logit "matches" of each pair, `[pairs]`."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Its weights."""


class Pixels(NamedTuple):
    """Some images, decoded.

    Attributes:
        numbers: which could be read.
        values: `[numbers, 3, size, size]`.
        errors: by number, why another could not.
    """

    numbers: list[int]
    values: Tensor
    errors: dict[int, str]


class Gallery(NamedTuple):
    """What is searched.

    Attributes:
        images: how many.
        pixels: decodes those of some numbers.
        texts: tokens of each text, with those that frame it.
        owner: number of the image that each text belongs to.
        name: for messages.
        pad: fills rows of tokens up.
    """

    images: int
    pixels: Callable[[Sequence[int]], Pixels]
    texts: list[list[int]]
    owner: list[int]
    name: str
    pad: int = 0


class Hits(NamedTuple):
    """What some images or texts find, the best first.

    Attributes:
        numbers: of what is found, `[searching, k]`.
        score: `[searching, k]`.
        place: of the best right one, from 1, `[searching]`; 0 where none is in the shortlist.
    """

    numbers: Tensor
    score: Tensor
    place: Tensor


class Retrieved(NamedTuple):
    """What retrieval came to, among the images that could be read and their texts.

    Attributes:
        images: their numbers.
        texts: numbers of their texts.
        of_images: texts that each of `images` finds.
        of_texts: images that each of `texts` finds.
        errors: by number, why an image takes no part, and with it its texts.
    """

    images: Tensor
    texts: Tensor
    of_images: Hits
    of_texts: Hits
    errors: dict[int, str]


@torch.no_grad()
def retrieve(model: Matcher, gallery: Gallery, k: int, batch_size: int, blocks: Blocks) -> Retrieved | None:
    """Let every image search the texts, and every text the images; all ranks call it.

    Args:
        model: in evaluation mode.
        gallery: images and texts.
        k: so many of each are looked at as pairs.
        batch_size: images, texts or pairs a forward pass.
        blocks: open; what lies there is not computed again.

    Returns:
        What was found; None on other ranks than the first.

    Raises:
        UserError: the model computes something that is no number.
    """
    spans = _spans(gallery.images, IMAGES)
    blocks.make(
        "images",
        [len(span) for span in spans],
        lambda number: _embed_images(model, gallery, spans[number], batch_size),
        "images",
        f"embed images of {gallery.name}",
    )
    text_spans = _spans(len(gallery.texts), TEXTS)
    blocks.make(
        "texts",
        [len(span) for span in text_spans],
        lambda number: _embed_texts(model, gallery, text_spans[number], batch_size),
        "texts",
        f"embed texts of {gallery.name}",
    )
    if blocks.ranks.first and not blocks.there("shortlists"):
        blocks.keep("shortlists", 0, _shortlists(gallery, k, blocks, _device(model)))
    blocks.ranks.wait()
    found = blocks.read("shortlists", 0)
    if not len(found["images"]):
        none = Hits(*(torch.empty(0, 0, dtype=kind) for kind in (torch.long, torch.float32, torch.long)))
        return Retrieved(found["images"], found["texts"], none, none, _errors(found["errors"]))
    pairs = _pairs(found)
    images = found["images"]
    edges = torch.arange(0, len(images) + MATCHED, MATCHED).clamp(max=len(images))
    starts = torch.searchsorted(pairs, edges * len(found["texts"])).tolist()
    blocks.make(
        "matches",
        [end - start for start, end in pairwise(starts)],
        lambda number: _match(model, gallery, found, pairs[starts[number] : starts[number + 1]], batch_size),
        "pairs",
        f"match pairs of {gallery.name}",
    )
    if not blocks.ranks.first:
        return None
    logits = torch.cat([blocks.read("matches", number)["logits"] for number in range(len(starts) - 1)])
    return _retrieved(found, pairs, logits)


def ahead(function: Callable[[T], U], parts: Iterable[T]) -> Iterator[U]:
    """`map(function, parts)`, with the next one computed while this one is used."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        following = None
        for part in parts:
            ready, following = following, pool.submit(function, part)
            if ready is not None:
                yield ready.result()
        if following is not None:
            yield following.result()


def _spans(count: int, size: int) -> list[range]:
    return [range(start, min(count, start + size)) for start in range(0, count, size)]


def _device(model: Matcher) -> torch.device:
    return next(iter(model.parameters())).device


def _features(model: Matcher, pixels: Tensor) -> Tensor:
    weight = next(iter(model.parameters()))
    return model.encode_images(pixels.to(weight.device, weight.dtype))


def _embed_images(model: Matcher, gallery: Gallery, span: range, batch_size: int) -> dict[str, Tensor]:
    """The block of some images: embeddings of those that can be read, and the errors of the others."""
    numbers: list[int] = []
    embeds: list[Tensor] = []
    errors: dict[int, str] = {}
    for pixels in ahead(
        gallery.pixels, [span[start : start + batch_size] for start in range(0, len(span), batch_size)]
    ):
        errors |= pixels.errors
        if pixels.numbers:
            numbers += pixels.numbers
            embeds.append(model.embed_images(_features(model, pixels.values)).float().cpu())
            _check(embeds[-1], gallery.name, "image")
    return {
        "numbers": torch.tensor(numbers, dtype=torch.long),
        "embeds": torch.cat(embeds) if embeds else torch.empty(0),
        "errors": torch.frombuffer(bytearray(msgspec.json.encode(errors)), dtype=torch.uint8),
    }


def _embed_texts(model: Matcher, gallery: Gallery, span: range, batch_size: int) -> dict[str, Tensor]:
    """The block of some texts; those of about one length go through the model together."""
    order = sorted(span, key=lambda number: (len(gallery.texts[number]), number))
    found = [
        model.embed_texts(**_rows(gallery, order[start : start + batch_size], _device(model))).float().cpu()
        for start in range(0, len(order), batch_size)
    ]
    embeds = torch.cat(found)
    _check(embeds, gallery.name, "text")
    return {"embeds": embeds[torch.argsort(torch.tensor(order))]}


def _rows(gallery: Gallery, numbers: Sequence[int], device: torch.device) -> dict[str, Tensor]:
    ids = [gallery.texts[number] for number in numbers]
    return {
        "input_ids": padded(ids, gallery.pad).to(device),
        "attention_mask": padded([[1] * len(row) for row in ids], 0).to(device),
    }


def _check(values: Tensor, name: str, what: str) -> None:
    if not values.isfinite().all():
        raise UserError(
            f"{name}: the model's embedding of {what}s is not finite, so nothing can be found; try dtype=float32"
        )


def _shortlists(gallery: Gallery, k: int, blocks: Blocks, device: torch.device) -> dict[str, Tensor]:
    """Shortlists of the images that could be read and of their texts, numbered among themselves."""
    images, embeds, errors = _read_images(gallery, blocks)
    packed = torch.frombuffer(bytearray(msgspec.json.encode(errors)), dtype=torch.uint8)
    owner = torch.tensor(gallery.owner, dtype=torch.long)
    texts = torch.isin(owner, images).nonzero().flatten()
    if not len(images):
        return {"images": images, "texts": texts, "errors": packed}
    every = torch.cat([blocks.read("texts", number)["embeds"] for number in range(len(_spans(len(owner), TEXTS)))])
    owner = torch.searchsorted(images, owner[texts])
    of_images, of_texts = shortlists(embeds.to(device), every[texts].to(device), owner.to(device), k)
    return {
        "images": images,
        "texts": texts,
        "owner": owner,
        "errors": packed,
        "images.numbers": of_images.numbers,
        "images.similarity": of_images.similarity,
        "texts.numbers": of_texts.numbers,
        "texts.similarity": of_texts.similarity,
    }


def _read_images(gallery: Gallery, blocks: Blocks) -> tuple[Tensor, Tensor, dict[int, str]]:
    """Numbers and embeddings of the images that could be read, and the errors of the others."""
    numbers: list[Tensor] = []
    embeds = torch.empty(0)
    errors: dict[int, str] = {}
    for number in range(len(_spans(gallery.images, IMAGES))):
        block = blocks.read("images", number)
        errors |= _errors(block["errors"])
        part = block["embeds"]
        if len(part):
            if not numbers:
                embeds = part.new_empty(gallery.images, *part.shape[1:])
            done = sum(map(len, numbers))
            embeds[done : done + len(part)] = part
            numbers.append(block["numbers"].clone())
    found = torch.cat(numbers) if numbers else torch.empty(0, dtype=torch.long)
    return found, embeds[: len(found)], errors


def _errors(packed: Tensor) -> dict[int, str]:
    return msgspec.json.decode(packed.numpy().tobytes(), type=dict[int, str])


def _lists(found: dict[str, Tensor]) -> tuple[Shortlist, Shortlist]:
    of_images, of_texts = (
        Shortlist(found[f"{kind}.numbers"], found[f"{kind}.similarity"]) for kind in ("images", "texts")
    )
    return of_images, of_texts


def _keys(found: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Number of each pair of both kinds of shortlists: image times texts plus text."""
    of_images, of_texts = _lists(found)
    images, texts = torch.arange(len(of_images.numbers)), torch.arange(len(of_texts.numbers))
    return images[:, None] * len(texts) + of_images.numbers, of_texts.numbers * len(texts) + texts[:, None]


def _pairs(found: dict[str, Tensor]) -> Tensor:
    """All pairs of the shortlists, each once, by image, then by text."""
    return torch.unique(torch.cat([keys.flatten() for keys in _keys(found)]))


def _match(
    model: Matcher, gallery: Gallery, found: dict[str, Tensor], pairs: Tensor, batch_size: int
) -> dict[str, Tensor]:
    """The block of some pairs, whose images follow one another."""
    image, text = pairs // len(found["texts"]), pairs % len(found["texts"])
    mine, row = torch.unique(image, return_inverse=True)
    numbers = found["images"][mine].tolist()
    features = torch.cat([_again(model, gallery, part) for part in torch.tensor(numbers).split(batch_size)])
    texts = found["texts"][text].tolist()
    # Of about one length, those of an image together: it is read once, and little is padding.
    of_image, lengths = row.tolist(), [len(gallery.texts[number]) for number in texts]
    order = sorted(range(len(pairs)), key=lambda pair: (of_image[pair], lengths[pair]))
    logits = torch.empty(len(pairs))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        seen, index = torch.unique(row[part], return_inverse=True)
        rows = _rows(gallery, [texts[pair] for pair in part], features.device)
        logits[part] = model.match(features[seen.to(features.device)], index.to(features.device), **rows).float().cpu()
    if not logits.isfinite().all():
        raise UserError(f"{gallery.name}: the model's logits of pairs are not finite; try dtype=float32")
    return {"logits": logits}


def _again(model: Matcher, gallery: Gallery, numbers: Tensor) -> Tensor:
    """Features of images that could be read a while ago."""
    pixels = gallery.pixels(numbers.tolist())
    for error in pixels.errors.values():
        raise UserError(f"{gallery.name}: a picture could be read at first and no more: {error}")
    return _features(model, pixels.values)


def _retrieved(found: dict[str, Tensor], pairs: Tensor, logits: Tensor) -> Retrieved:
    of_images, of_texts = (
        logits[torch.searchsorted(pairs, keys)] + listed.similarity
        for keys, listed in zip(_keys(found), _lists(found), strict=True)
    )
    images, texts = _lists(found)
    owner, numbers = found["owner"], torch.arange(len(found["images"]))
    return Retrieved(
        found["images"],
        found["texts"],
        _hits(images.numbers, of_images, owner[images.numbers] == numbers[:, None], found["texts"]),
        _hits(texts.numbers, of_texts, texts.numbers == owner[:, None], found["images"]),
        _errors(found["errors"]),
    )


def _hits(index: Tensor, score: Tensor, right: Tensor, numbers: Tensor) -> Hits:
    """The best first; of equal ones first those that are wrong, as `places` counts them."""
    wrong_first = right.byte().argsort(dim=1, stable=True)
    order = wrong_first.gather(1, score.gather(1, wrong_first).argsort(dim=1, descending=True, stable=True))
    return Hits(numbers[index.gather(1, order)], score.gather(1, order), places(score, right))
