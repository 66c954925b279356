import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructkit.evaluation.metrics import load, vqa

from . import golden

OFFICIAL = golden.load("vqa_official")
EVALAI = golden.load("vqa_evalai")
ACCURACY, ACCURACY_EVALAI = load("vqa_accuracy"), load("vqa_accuracy_evalai")


def test_official_accuracy_of_every_case() -> None:
    cases = OFFICIAL["cases"] + OFFICIAL["other_annotator_counts"]
    got = ACCURACY.scores([case["prediction"] for case in cases], [case["answers"] for case in cases])
    assert got == pytest.approx([case["accuracy"] for case in cases], abs=1e-9)


def test_official_overall_is_the_mean() -> None:
    metric = ACCURACY
    got = metric.compute(
        predictions=[case["prediction"] for case in OFFICIAL["cases"]],
        references=[case["answers"] for case in OFFICIAL["cases"]],
    )
    assert round(got["vqa_accuracy"], 2) == OFFICIAL["overall"]


def test_official_normalisation_of_every_string() -> None:
    wrong = [
        case["text"]
        for case in OFFICIAL["normalise"]
        if vqa.strip_punctuation(vqa.clean(case["text"])) != case["after_punctuation"]
        or vqa.normalise(case["text"]) != case["normalised"]
    ]
    assert wrong == []


def test_official_compared_answers() -> None:
    for case in OFFICIAL["cases"]:
        if case["processed"]:
            assert [vqa.normalise(answer) for answer in case["answers"]] == case["compared_answers"]


def test_evalai_accuracy_of_every_case() -> None:
    cases = EVALAI["cases"]
    got = ACCURACY_EVALAI.scores([case["prediction"] for case in cases], [case["answers"] for case in cases])
    assert got == pytest.approx([case["accuracy"] for case in cases], abs=1e-9)
    assert sum(got) / len(got) == pytest.approx(EVALAI["overall"], abs=1e-9)


def test_evalai_normalisation_of_every_string() -> None:
    wrong = [case["text"] for case in EVALAI["normalise"] if vqa.normalise_evalai(case["text"]) != case["normalised"]]
    assert wrong == []


def test_leave_one_out_by_hand() -> None:
    # Four of ten said "cat": each of the four has three others who agree, each of the six has four.
    assert ACCURACY.score_one("cat", ["cat"] * 4 + ["dog"] * 6) == 1.0
    # Three of ten: the three see two others, 2/3; the seven see three, 1.
    assert ACCURACY.score_one("cat", ["cat"] * 3 + ["dog"] * 7) == pytest.approx((3 * 2 / 3 + 7) / 10)


def test_unanimous_answers_are_compared_raw() -> None:
    assert ACCURACY.scores(["two dogs"], [["Two Dogs."] * 10]) == [0.0]
    assert ACCURACY.scores(["two dogs"], [["Two Dogs."] * 9 + ["cat"]]) == [1.0]
    assert ACCURACY_EVALAI.scores(["two dogs"], [["Two Dogs."] * 10]) == [1.0]


@given(st.text(alphabet="ab1,. ?'/-\n", max_size=20), st.lists(st.text(alphabet="ab1,. ", max_size=6), min_size=1))
def test_order_of_annotators_is_irrelevant(prediction: str, answers: list[str]) -> None:
    for metric in (ACCURACY, ACCURACY_EVALAI):
        [score] = metric.scores([prediction], [answers])
        assert 0.0 <= score <= 1.0
        assert metric.scores([prediction], [answers[::-1]]) == [score]


def test_errors_name_the_example() -> None:
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        ACCURACY.scores(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="reference 1 has no answers"):
        ACCURACY.scores(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="reference 0 is the string 'yes'"):
        ACCURACY.scores(["a"], ["yes"])
