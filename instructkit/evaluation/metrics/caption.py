"""CIDEr-D of captions (COCO, NoCaps, Flickr30K, TextCaps).

Source: `cider/cider_scorer.py` of pycocoevalcap 1.2 (the scorer of tylin/coco-caption): n-grams of 1 to 4 tokens,
clipped, a Gaussian penalty on the difference in length, times 10. The inverse document frequencies come from the
references that are scored, so a score belongs to its set. One image alone, or the same n-grams at every image, leaves
every weight at 0: the official scorer then gives 0 to any caption, here the corpus has no value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import ScoredMetric, check_answers, check_lengths, mean
from .ptb import tokenize

_LONGEST = 4
_LENGTHS = range(1, _LONGEST + 1)
_SIGMA = 6.0

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def _ngrams(captions: Sequence[Sequence[str]]) -> Iterator[tuple[Ints, Ints]]:
    """For 1 to 4 tokens: the caption and the number of every n-gram; equal n-grams have equal numbers."""
    numbers: dict[str, int] = {}
    tokens = np.array(
        [numbers.setdefault(token, len(numbers)) for token in chain.from_iterable(captions)], dtype=np.int64
    )
    owner = np.repeat(np.arange(len(captions)), [len(caption) for caption in captions])
    code = tokens
    start = np.arange(len(tokens))
    yield owner, code
    for length in range(1, _LONGEST):
        # An n-gram goes on where the next token belongs to the same caption.
        inside = start + length < len(tokens)
        inside[inside] = owner[start[inside] + length] == owner[start[inside]]
        start = start[inside]
        code = np.unique(code[inside] * len(numbers) + tokens[start + length], return_inverse=True)[1].reshape(-1)
        yield owner[start], code


def _cosines(owner: Ints, code: Ints, image_of: Ints, images: int) -> Floats:
    """Clipped tf-idf cosine between each reference and its image's candidate, for n-grams of one length.

    Args:
        owner: Caption of each n-gram. The references come first, then one candidate per image.
        code: Number of each n-gram.
        image_of: Image of each caption.
        images: How many there are.
    """
    kinds = int(code.max(initial=0)) + 1
    entries, counts = np.unique(owner * kinds + code, return_counts=True)
    owner, code = entries // kinds, entries % kinds
    place = image_of[owner] * kinds + code
    references = len(image_of) - images
    is_reference = owner < references

    frequency = np.bincount(np.unique(place[is_reference]) % kinds, minlength=kinds)
    weight = counts * (np.log(max(1, images)) - np.log(np.maximum(1, frequency)))[code]
    norm = np.sqrt(np.bincount(owner, weight**2, minlength=len(image_of)))

    candidate_place = np.append(place[~is_reference], -1)
    candidate_weight = np.append(weight[~is_reference], 0.0)
    found = np.searchsorted(candidate_place[:-1], place[is_reference])
    other = np.where(candidate_place[found] == place[is_reference], candidate_weight[found], 0.0)
    own = weight[is_reference]
    product = np.bincount(owner[is_reference], np.minimum(other, own) * own, minlength=references)
    scale = norm[:references] * norm[references:][image_of[:references]]
    return np.divide(product, scale, out=np.zeros(references), where=scale > 0)


def cider_d(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """CIDEr-D, 0..10, of each image from tokens.

    Args:
        candidates: The tokens of one caption per image.
        references: The tokens of each reference caption per image; images may have different numbers of them.

    Returns:
        One score per image. The mean is the corpus value of the official scorer.

    Raises:
        ValueError: Lengths differ or an image has no references.
    """
    check_lengths(candidates, references)
    check_answers(references)
    images = len(candidates)
    sizes = [len(captions) for captions in references]
    image_of = np.concatenate([np.repeat(np.arange(images), sizes), np.arange(images)])
    captions = [*chain.from_iterable(references), *candidates]
    similarity = sum(_cosines(owner, code, image_of, images) for owner, code in _ngrams(captions)) / _LONGEST

    # The official scorer takes the number of bigrams for the length.
    bigrams = np.array([max(0, len(caption) - 1) for caption in captions])
    first_candidate = len(captions) - images
    image_of_reference = image_of[:first_candidate]
    difference = bigrams[first_candidate:][image_of_reference] - bigrams[:first_candidate]
    similarity = similarity * np.exp(-(difference**2) / (2 * _SIGMA**2))
    total = np.bincount(image_of_reference, similarity, minlength=images)
    return [10.0 * float(score) / size for score, size in zip(total, sizes, strict=True)]


def _tokens(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[list[list[str]]]]:
    """The tokens of the predictions and of the references; ValueError if they do not fit each other."""
    check_lengths(predictions, references)
    check_answers(references)
    # A token can hold a no-break space ("1 1/2"); the official scorer splits there once more.
    captions = tokenize([*predictions, *chain.from_iterable(references)])
    words = iter([[word for token in tokens for word in token.split()] for tokens in captions])
    return list(islice(words, len(predictions))), [list(islice(words, len(captions))) for captions in references]


def scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D, 0..10, of each image. A score depends on the references of the whole set.

    A bootstrap over these scores keeps the document frequencies of the full set, which is what one wants.

    Args:
        predictions: One caption per image.
        references: The reference captions per image.

    Raises:
        ValueError: Lengths differ or an image has no references.
    """
    return cider_d(*_tokens(predictions, references))


def _tell_apart(references: Sequence[Sequence[Sequence[str]]]) -> bool:
    """Whether an n-gram of the references is missing at some image, so that its document frequency weighs anything."""
    kinds = (
        {tuple(words[i : i + size]) for words in captions for size in _LENGTHS for i in range(len(words))}
        for captions in references
    )
    first = next(kinds)
    return any(each != first for each in kinds)


class CiderMetric(ScoredMetric):
    """`cider`, 0..1000: 100 times the official corpus value, as papers print it (a good COCO model has 140)."""

    key = "cider"
    unit = "0..10, the official scorer's value of one image"
    scores = staticmethod(scores)

    def aggregate(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """See `ScoredMetric.aggregate`; ValueError too where no n-gram tells one image from another."""
        candidates, tokens = _tokens(predictions, references)
        if tokens and not _tell_apart(tokens):
            what = "there is one" if len(references) == 1 else f"all {len(references):,} have the same n-grams"
            raise ValueError(f"CIDEr needs images with different references, but {what}: score a larger subset")
        return {self.key: 100.0 * mean(cider_d(candidates, tokens))}
