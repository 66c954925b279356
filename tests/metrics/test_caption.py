import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructkit.metrics import caption

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


@given(st.lists(st.tuples(_TOKENS, st.lists(_TOKENS, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_scores_stay_in_range_and_follow_their_image(images: list[tuple[list[str], list[list[str]]]]) -> None:
    forward = caption.cider_d([image[0] for image in images], [image[1] for image in images])
    backward = caption.cider_d([image[0] for image in images[::-1]], [image[1][::-1] for image in images[::-1]])
    assert all(0.0 <= score <= 10.0 + 1e-9 for score in forward)
    assert forward == pytest.approx(backward[::-1])


def test_errors() -> None:
    with pytest.raises(ValueError, match="reference 0 has no answers"):
        caption.scores(["a dog"], [[]])
    with pytest.raises(ValueError, match="1 predictions but 0 references"):
        caption.scores(["a dog"], [])


def test_empty_captions_and_an_empty_set() -> None:
    assert caption.scores(["", ""], [[""], ["", ""]]) == [0.0, 0.0]
    assert caption.scores([], []) == []
