import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructkit.evaluation.metrics import anls, load

from . import golden

AOKVQA = golden.load("aokvqa")
IVQA = golden.load("ivqa")
ANLS = golden.load("anls")
AOKVQA_DIRECT, TOP1, EXACT = load("aokvqa_direct_answer"), load("top1"), load("exact_match")


def test_aokvqa_direct_answers() -> None:
    # The official script counts a missing prediction as wrong; a caller gives "", which must not match an empty answer.
    cases = [case for case in AOKVQA["cases"] if case["direct_prediction"] is not None]
    references = [[] if case["difficult_direct_answer"] else case["direct_answers"] for case in cases]
    for score, case in zip(
        AOKVQA_DIRECT.scores([case["direct_prediction"] for case in cases], references), cases, strict=True
    ):
        if case["direct_accuracy"] is None:
            assert math.isnan(score)
        else:
            assert 100 * score == pytest.approx(case["direct_accuracy"], abs=1e-9)


def test_aokvqa_overall_leaves_difficult_questions_out() -> None:
    missing = "no prediction was made"
    got = AOKVQA_DIRECT.compute(
        predictions=[missing if c["direct_prediction"] is None else c["direct_prediction"] for c in AOKVQA["cases"]],
        references=[[] if c["difficult_direct_answer"] else c["direct_answers"] for c in AOKVQA["cases"]],
    )
    assert got["aokvqa_direct_answer"] == pytest.approx(AOKVQA["direct_answer"], abs=1e-9)


def test_aokvqa_multiple_choice_is_top1() -> None:
    missing = "no prediction was made"
    cases = AOKVQA["cases"]
    predictions = [missing if case["choice_prediction"] is None else case["choice_prediction"] for case in cases]
    references = [[case["choices"][case["correct_choice_idx"]]] for case in cases]
    assert [100 * score for score in TOP1.scores(predictions, references)] == [c["choice_accuracy"] for c in cases]
    got = TOP1.compute(predictions=predictions, references=references)
    assert got["top1"] == pytest.approx(AOKVQA["multiple_choice"], abs=1e-9)


def test_ivqa_where_the_vocabulary_of_the_official_code_holds_the_answer() -> None:
    cases = IVQA["cases"]
    got = load("ivqa_accuracy").scores([case["prediction"] for case in cases], [case["answers"] for case in cases])
    assert got == pytest.approx([case["accuracy"] for case in cases], abs=1e-9)
    assert sum(got) / len(got) == pytest.approx(IVQA["overall"], abs=1e-9)


def test_open_ended_video_questions_are_top1() -> None:
    cases = IVQA["open_ended"]["cases"]
    vocabulary = set(IVQA["vocabulary"])
    got = TOP1.scores([case["prediction"] for case in cases], [[case["answer"]] for case in cases])
    assert all(case["prediction"] in vocabulary for case in cases)
    assert got == [case["accuracy"] for case in cases]


def test_anls_of_every_case() -> None:
    cases = ANLS["cases"]
    predictions, references = [case["prediction"] for case in cases], [case["answers"] for case in cases]
    assert load("anls").scores(predictions, references) == pytest.approx([c["rrc_script"] for c in cases], abs=1e-9)
    got = load("anls").compute(predictions=predictions, references=references)
    assert got["anls"] == pytest.approx(100 * ANLS["overall_rrc_script"], abs=1e-9)


def test_levenshtein_of_every_pair() -> None:
    pairs = ANLS["levenshtein"]
    assert [anls.levenshtein(pair["a"], pair["b"]) for pair in pairs] == [pair["distance"] for pair in pairs]


_TEXT = st.text(alphabet="abc", max_size=6)


@given(_TEXT, _TEXT, _TEXT)
def test_levenshtein_is_a_metric(first: str, second: str, third: str) -> None:
    distance = anls.levenshtein(first, second)
    assert distance == anls.levenshtein(second, first)
    assert (distance == 0) == (first == second)
    assert distance <= anls.levenshtein(first, third) + anls.levenshtein(third, second)


def test_anls_keeps_a_similarity_of_exactly_one_half() -> None:
    assert load("anls").scores(["abxx", "axxx"], [["abcd"], ["abcd"]]) == [0.5, 0.0]


def test_exact_match_ignores_case_space_and_final_period() -> None:
    references = [["yes", "true"]] * 4
    assert EXACT.scores([" Yes.", "TRUE", "yes it is", "no"], references) == [1.0, 1.0, 0.0, 0.0]
    assert EXACT.scores(["new  york", "the cat"], [["New York"], ["cat"]]) == [1.0, 0.0]


def test_top1_compares_strings_as_they_are() -> None:
    assert TOP1.scores(["Yes", "yes"], [["yes"], ["yes"]]) == [0.0, 1.0]
