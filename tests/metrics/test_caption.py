import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructkit.evaluation.metrics import caption

from . import golden


def test_official_scores_of_whole_captions() -> None:
    cider = golden.load_shared("cider")
    predictions = [image["candidate"] for image in cider["images"]]
    references = [image["references"] for image in cider["images"]]
    got = caption.scores(predictions, references)
    assert got == pytest.approx([image["cider"] for image in cider["images"]], abs=1e-6)
    corpus = caption.CiderMetric().compute(predictions=predictions, references=references)
    assert corpus["cider"] == pytest.approx(100 * cider["overall"]["cider"], abs=1e-6)


def test_official_scores_of_the_small_corpora() -> None:
    for name, corpus in golden.load_shared("cider")["small_corpora"].items():
        images = corpus["images"]
        got = caption.cider_d(
            [image["candidate"].split() for image in images],
            [[reference.split() for reference in image["references"]] for image in images],
        )
        assert got == pytest.approx([image["cider"] for image in images], abs=1e-6), name
        assert sum(got) / len(got) == pytest.approx(corpus["overall"]["cider"], abs=1e-6), name


def test_the_references_themselves_get_10_and_foreign_words_0() -> None:
    references = [["two dogs run on grass"], ["a red bus in the street"]]
    assert caption.scores(["Two dogs run on grass.", "a red bus in the street"], references) == pytest.approx([10, 10])
    assert caption.scores(["zq xw vv uu", ""], references) == [0.0, 0.0]


def test_one_image_alone_has_no_document_frequencies() -> None:
    assert caption.scores(["a dog runs"], [["a dog runs"]]) == [0.0]


_TOKENS = st.lists(st.sampled_from("abcd"), max_size=7)


_IMAGES = st.lists(st.tuples(_TOKENS, st.lists(_TOKENS, min_size=1, max_size=3)), min_size=1, max_size=4)


def _by_the_book(images: list[tuple[list[str], list[list[str]]]]) -> list[float]:
    """CIDEr-D one n-gram at a time, as its formula reads."""

    def grams(tokens: list[str], length: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(tokens[at : at + length]) for at in range(len(tokens) - length + 1))

    def weights(tokens: list[str], length: int) -> dict[tuple[str, ...], float]:
        return {
            gram: count
            * math.log(len(images) / max(1, sum(any(gram in grams(r, length) for r in i[1]) for i in images)))
            for gram, count in grams(tokens, length).items()
        }

    def similarity(candidate: list[str], reference: list[str], length: int) -> float:
        left, right = weights(candidate, length), weights(reference, length)
        norms = math.hypot(*left.values()) * math.hypot(*right.values())
        penalty = math.exp(-((max(1, len(candidate)) - max(1, len(reference))) ** 2) / (2 * 6**2))
        product = sum(min(left[gram], right[gram]) * right[gram] for gram in left.keys() & right.keys())
        return product / norms * penalty if norms else 0.0

    return [
        10
        * sum(similarity(candidate, each, length) for each in references for length in (1, 2, 3, 4))
        / (4 * len(references))
        for candidate, references in images
    ]


@given(_IMAGES)
def test_scores_follow_the_formula(images: list[tuple[list[str], list[list[str]]]]) -> None:
    got = caption.cider_d([image[0] for image in images], [image[1] for image in images])
    assert got == pytest.approx(_by_the_book(images), abs=1e-9)


@given(_IMAGES)
def test_scores_stay_in_range_and_follow_their_image(images: list[tuple[list[str], list[list[str]]]]) -> None:
    forward = caption.cider_d([image[0] for image in images], [image[1] for image in images])
    backward = caption.cider_d([image[0] for image in images[::-1]], [image[1][::-1] for image in images[::-1]])
    assert all(0.0 <= score <= 10.0 + 1e-9 for score in forward)
    assert forward == pytest.approx(backward[::-1])


@pytest.mark.parametrize(
    ("references", "said"),
    [
        ([["a red car", "a car"]], "there is one"),
        ([["a red car"], ["A red car."]], "all 2 have the same n-grams"),
        ([["a b", "b a"], ["b a", "a b"], ["a b", "b a", "a b"]], "all 3 have the same n-grams"),
        ([[""], [""]], "all 2 have the same n-grams"),
    ],
)
def test_a_corpus_without_document_frequencies_has_no_value(references: list[list[str]], said: str) -> None:
    predictions = [each[0] for each in references]
    assert set(caption.scores(predictions, references)) == {0.0}  # as the official scorer gives it
    with pytest.raises(ValueError, match=f"CIDEr needs images with different references, but {said}"):
        caption.CiderMetric().aggregate(predictions, references)
    with pytest.raises(ValueError, match="CIDEr needs images with different references"):
        caption.CiderMetric().compute(predictions=predictions, references=references)


def test_one_ngram_that_differs_is_enough() -> None:
    found = caption.CiderMetric().aggregate(["a b", "b a"], [["a b"], ["b a"]])
    assert found["cider"] > 0


def test_errors() -> None:
    with pytest.raises(ValueError, match="reference 0 has no answers"):
        caption.scores(["a dog"], [[]])
    with pytest.raises(ValueError, match="1 predictions but 0 references"):
        caption.scores(["a dog"], [])


def test_empty_captions_and_an_empty_set() -> None:
    assert caption.scores(["", ""], [[""], ["", ""]]) == [0.0, 0.0]
    assert caption.scores([], []) == []
