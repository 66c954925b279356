"""Metrics: pure functions, and `evaluate.Metric` classes over them that need no network.

Every class has `scores(predictions, references) -> list[float]`, one score per example, and `compute`, which returns
`{name: value}`. Text metrics take a string as prediction and a list of strings as reference.
"""

from __future__ import annotations

from importlib import import_module

from .base import ScoredMetric

_METRICS = {
    "vqa_accuracy": "vqa.VqaAccuracyMetric",
    "vqa_accuracy_evalai": "vqa.VqaAccuracyEvalAIMetric",
    "aokvqa_direct_answer": "short_answers.AokvqaDirectAnswerMetric",
    "ivqa_accuracy": "short_answers.IvqaAccuracyMetric",
    "exact_match": "short_answers.ExactMatchMetric",
    "top1": "short_answers.Top1Metric",
    "anls": "anls.AnlsMetric",
    "cider": "caption.CiderMetric",
    "roc_auc": "auc.RocAucMetric",
    "visdial": "visdial.VisDialMetric",
    "retrieval": "retrieval.RetrievalMetric",
}

NAMES = tuple(_METRICS)


def load(name: str) -> ScoredMetric:
    """Make the metric of that name.

    Args:
        name: One of `NAMES`.

    Returns:
        A metric for `compute`, `add_batch` and `evaluate.combine`; its `scores` gives the scores of single examples.

    Raises:
        ValueError: There is no metric of that name; the message lists those there are.
    """
    if name not in _METRICS:
        raise ValueError(f"no metric is called {name!r}; there are {', '.join(NAMES)}")
    module, _, class_name = _METRICS[name].partition(".")
    metric: ScoredMetric = getattr(import_module(f"{__name__}.{module}"), class_name)()
    return metric
