import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from instructkit.evaluation.metrics import auc, visdial

from . import golden

AUC = golden.load("auc")
VISDIAL = golden.load("visdial")


@pytest.mark.parametrize("case", [c for c in AUC["cases"] if "undefined" not in c], ids=lambda case: case["name"])
def test_auc_of_every_case(case: dict) -> None:
    got = auc.RocAucMetric().compute(predictions=case["scores"], references=case["labels"])
    assert got["roc_auc"] == pytest.approx(100 * case["roc_auc"], abs=1e-9)


@pytest.mark.parametrize("case", [c for c in AUC["cases"] if "undefined" in c], ids=lambda case: case["name"])
def test_one_class_is_an_error(case: dict) -> None:
    with pytest.raises(ValueError, match=r"needs examples of both classes, but all 3 labels are [01]"):
        auc.RocAucMetric().compute(predictions=case["scores"], references=case["labels"])


def test_logit_difference_ranks_like_the_exact_softmax() -> None:
    for case in AUC["two_logits"]:
        differences = [yes - no for no, yes in case["logits_no_yes"]]
        got = auc.RocAucMetric().aggregate(differences, case["labels"])
        # Equal differences of rounded logits tie or not by their last bit.
        assert got["roc_auc"] == pytest.approx(100 * case["roc_auc_of_logit_difference"], abs=0.2)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2).filter(lambda x: len({b for _, b in x}) == 2))
def test_mean_of_the_single_auc_scores_is_the_auc(examples: list[tuple[int, bool]]) -> None:
    values, labels = [float(value) for value, _ in examples], [int(label) for _, label in examples]
    assert np.mean(auc.scores(values, labels)) == pytest.approx(roc_auc_score(labels, values))


def test_auc_errors() -> None:
    with pytest.raises(ValueError, match="labels must be 0 or 1"):
        auc.scores([0.1, 0.2], [1, 2])
    with pytest.raises(ValueError, match="prediction 1 holds nan"):
        auc.scores([0.1, math.nan], [1, 0])


def _references(rounds: list[dict]) -> list[visdial.Round]:
    return [{"gold_index": each["gold_index"], "relevance": each["relevance"]} for each in rounds]


def test_visdial_rounds() -> None:
    rounds = VISDIAL["rounds"]
    places = visdial.ranks([each["scores"] for each in rounds], _references(rounds))
    assert places == [each["rank"] for each in rounds]
    for each in rounds:
        assert visdial.ndcg(each["scores"], each["relevance"]) == pytest.approx(each["ndcg"], abs=1e-5)


def test_visdial_overall() -> None:
    rounds, overall = VISDIAL["rounds"], VISDIAL["overall"]
    got = visdial.VisDialMetric().compute(
        predictions=[each["scores"] for each in rounds], references=_references(rounds)
    )
    assert got["visdial_mrr"] == pytest.approx(100 * overall["mrr"], abs=1e-3)
    for depth in (1, 5, 10):
        assert got[f"visdial_r{depth}"] == pytest.approx(100 * overall[f"r{depth}"], abs=1e-3)
    assert got["visdial_mean_rank"] == pytest.approx(overall["mean_rank"], abs=1e-5)
    assert got["visdial_ndcg"] == pytest.approx(100 * overall["ndcg_all_rounds"], abs=1e-3)


def test_visdial_ndcg_over_the_densely_annotated_rounds() -> None:
    rounds = [dict(each) for each in VISDIAL["rounds"]]
    for each in rounds:
        if each["round_id"] != VISDIAL["dense_rounds"][each["dialog"]]:
            each["relevance"] = []
    got = visdial.VisDialMetric().aggregate([each["scores"] for each in rounds], _references(rounds))
    assert got["visdial_ndcg"] == pytest.approx(100 * VISDIAL["overall"]["ndcg_dense_rounds"], abs=1e-3)


@pytest.mark.parametrize("case", VISDIAL["edge_cases"], ids=lambda case: case["name"])
def test_visdial_edge_cases(case: dict) -> None:
    place = visdial.rank(case["scores"], case["gold_index"])
    assert case["best_possible_rank"] <= place <= case["worst_possible_rank"]
    gain = visdial.ndcg(case["scores"], case["relevance"])
    if case["ndcg"] is None:
        assert math.isnan(gain)
    elif "tie" not in case["name"]:
        assert gain == pytest.approx(case["ndcg"], abs=1e-5)


def test_ties_count_against_the_model() -> None:
    assert visdial.rank([1.0, 1.0, 1.0, 0.0], 0) == 3
    assert visdial.ndcg([0.0, 0.0, 0.0], [1.0, 0.0, 0.0]) == 0.0


def test_ndcg_and_mrr_by_hand() -> None:
    # Ranked: relevance 0.5, 0, 1, 0. K is 2, so the gain is 0.5/log2(2); the best is 1/log2(2) + 0.5/log2(3).
    assert visdial.ndcg([4.0, 3.0, 2.0, 1.0], [0.5, 0.0, 1.0, 0.0]) == pytest.approx(0.5 / (1 + 0.5 / math.log2(3)))
    references: list[visdial.Round] = [{"gold_index": 0, "relevance": []}, {"gold_index": 3, "relevance": []}]
    got = visdial.VisDialMetric().aggregate([[4.0, 3.0, 2.0, 1.0]] * 2, references)
    assert got == {
        "visdial_mrr": pytest.approx(100 * (1 + 1 / 4) / 2),
        "visdial_r1": 50.0,
        "visdial_r5": 100.0,
        "visdial_r10": 100.0,
        "visdial_mean_rank": 2.5,
    }


@given(st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 0.5, 1.0])), min_size=1))
def test_ndcg_is_1_for_the_ideal_order(options: list[tuple[int, float]]) -> None:
    relevance = [value for _, value in options]
    gain = visdial.ndcg([float(score) for score, _ in options], relevance)
    assert math.isnan(gain) if not any(relevance) else 0.0 <= gain <= 1.0 + 1e-12
    if any(relevance):
        assert visdial.ndcg(relevance, relevance) == pytest.approx(1.0)


def test_visdial_errors() -> None:
    with pytest.raises(ValueError, match="reference 0 has gold_index 2, but its prediction scores 2 candidates"):
        visdial.scores([[0.1, 0.2]], [{"gold_index": 2, "relevance": []}])
    with pytest.raises(ValueError, match="reference 0 has 1 relevances for 2 candidates"):
        visdial.scores([[0.1, 0.2]], [{"gold_index": 1, "relevance": [1.0]}])
    with pytest.raises(ValueError, match="prediction 0 holds nan"):
        visdial.scores([[0.1, math.nan]], [{"gold_index": 1, "relevance": []}])
