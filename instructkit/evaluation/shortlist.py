"""Who finds whom among all pairs of images and texts, without the matrix of all pairs.

An image and a text are as similar as the text and the nearest of the image's queries (BLIP-2, arXiv 2301.12597, section
3.1). The k most similar of each are its shortlist, which the matching head then puts in order. Where two are equally
similar or have equal scores, the one that is not searched for stands in front: ties count against the model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

IMAGES = 256
"""Images that are compared with all texts at once."""
TEXTS = 2048
"""Texts whose products with the queries of so many images are in memory at once."""


class Shortlist(NamedTuple):
    """The k most similar ones of each image or text, by their number.

    Attributes:
        numbers: `[searching, k]`, int64.
        similarity: cosine `[searching, k]`, float32.
    """

    numbers: Tensor
    similarity: Tensor


def shortlists(images: Tensor, texts: Tensor, owner: Tensor, k: int) -> tuple[Shortlist, Shortlist]:
    """The k most similar texts of each image, and the k most similar images of each text.

    Memory beside the arguments: about `IMAGES` rows of texts, and the shortlists.

    Args:
        images: embeddings `[images, queries, width]`, normalised.
        texts: embeddings `[texts, width]`, normalised.
        owner: the image that each text belongs to, `[texts]`.
        k: length of a shortlist; shorter where there are fewer.
    """
    of_images: list[Shortlist] = []
    of_texts = Shortlist(owner.new_empty(len(texts), 0), texts.new_empty(len(texts), 0))
    numbers = torch.arange(len(texts), device=texts.device)
    for start in range(0, len(images), IMAGES):
        part = images[start : start + IMAGES]
        similar = similarities(part, texts)
        searching = torch.arange(start, start + len(part), device=texts.device)
        of_images.append(_first(Shortlist(numbers.expand_as(similar), similar), owner == searching[:, None], k))
        index = torch.cat([of_texts.numbers, searching.expand(len(texts), -1)], 1)
        found = Shortlist(index, torch.cat([of_texts.similarity, similar.T], 1))
        of_texts = _first(found, index == owner[:, None], k)
    return Shortlist(*(torch.cat(parts) for parts in zip(*of_images, strict=True))), of_texts


def similarities(images: Tensor, texts: Tensor) -> Tensor:
    """Similarity of each image and text, `[images, texts]`: the largest over the image's queries."""
    queries = images.flatten(0, 1)
    found = images.new_empty(len(images), len(texts))
    for start in range(0, len(texts), TEXTS):
        products = queries @ texts[start : start + TEXTS].T
        found[:, start : start + TEXTS] = products.unflatten(0, images.shape[:2]).amax(1)
    return found


def places(score: Tensor, right: Tensor) -> Tensor:
    """Place of the best right one in each row of scores, from 1; 0 where none is right.

    A wrong one with the same score stands in front of it.

    Args:
        score: `[searching, k]`.
        right: which ones are searched for, `[searching, k]`, bool.
    """
    best = score.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    place = 1 + ((score >= best) & ~right).sum(1)
    return place.masked_fill(~right.any(1), 0)


def _first(found: Shortlist, right: Tensor, k: int) -> Shortlist:
    """The k most similar of each row, by ascending number; of equal ones first those that are wrong, then by column."""
    similar = found.similarity
    if similar.shape[1] > k:
        best, columns = similar.topk(k + 1)
        columns = columns[:, :k]
        # Which of equal ones `topk` takes is left open.
        tied = (best[:, k - 1] == best[:, k]).nonzero().flatten()
        for rows in tied.split(IMAGES):
            wrong_first = right[rows].byte().argsort(dim=1, stable=True)
            order = similar[rows].gather(1, wrong_first).argsort(dim=1, descending=True, stable=True)
            columns[rows] = wrong_first.gather(1, order[:, :k])
        found = Shortlist(found.numbers.gather(1, columns), similar.gather(1, columns))
    index, order = found.numbers.sort(1)
    return Shortlist(index, found.similarity.gather(1, order))
