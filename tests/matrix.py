"""Matrices of cases of which the quick suite runs a few, and `pytest -m full` the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_full(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """Parameters of `pytest.mark.parametrize`: all cases, of which those that are not `quick` are marked full.

    A case of several values is a tuple; one that has marks of its own, as `pytest.param` makes it, keeps them.
    """
    cases = list(cases)
    assert all(case in cases for case in quick), "no such case"
    parameters = []
    for case in cases:
        values = case.values if hasattr(case, "marks") else case if isinstance(case, tuple) else (case,)
        marks = [*getattr(case, "marks", ()), *([] if case in quick else [pytest.mark.full])]
        parameters.append(pytest.param(*values, marks=marks))
    return parameters
