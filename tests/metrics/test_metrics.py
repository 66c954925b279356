import socket
from pathlib import Path
from typing import Any

import evaluate
import pytest

from instructkit.evaluation import metrics


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, and an empty folder for the files that metrics write."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a metric opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    return tmp_path


def test_text_metrics_combine_and_write_nothing(offline: Path) -> None:
    names = [name for name in metrics.NAMES if name not in ("roc_auc", "visdial", "retrieval")]
    combined = evaluate.combine([metrics.load(name) for name in names])
    predictions, references = ["yes", "a red bus"], [["yes"] * 10, ["a red bus", "a red bus", "bus"]]
    got = combined.compute(predictions=predictions, references=references)
    assert set(got) == set(names)
    assert got["exact_match"] == 100.0
    for prediction, reference in zip(predictions, references, strict=True):
        combined.add_batch(predictions=[prediction], references=[reference])
    assert combined.compute() == got
    assert list(offline.iterdir()) == []


def test_ranking_metrics_take_batches(offline: Path) -> None:
    auc = metrics.load("roc_auc")
    auc.add_batch(predictions=[0.1, 0.2], references=[0, 0])
    auc.add_batch(predictions=[0.3, 0.15], references=[1, 1])
    assert auc.compute() == {"roc_auc": 75.0}
    visdial = metrics.load("visdial")
    for gold in (0, 1):
        visdial.add_batch(
            predictions=[[0.9, 0.1]], references=[{"gold_index": gold, "relevance": [1.0, 0.0] if gold else []}]
        )
    assert visdial.compute()["visdial_mrr"] == 75.0
    assert list(offline.iterdir()) == []


@pytest.mark.parametrize("name", metrics.NAMES)
def test_every_name_loads_and_its_result_has_the_key(name: str) -> None:
    metric = metrics.load(name)
    assert metric.key == {"visdial": "visdial_mrr", "retrieval": "tr_r1"}.get(name, name)
    assert callable(metric.scores)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no metric is called 'bleu'; there are vqa_accuracy, .*visdial"):
        metrics.load("bleu")


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of the 0 examples has a score"):
        metrics.load("exact_match").aggregate([], [])
