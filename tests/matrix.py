"""Matrices of cases of which the quick suite runs a few, and `pytest -m full` the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_full(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """Parameters of `pytest.mark.parametrize`: all cases, of which those that are not `quick` are marked full.

    A case of several values is a tuple.
    """
    cases = list(cases)
    assert all(case in cases for case in quick), "no such case"
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if case in quick else pytest.mark.full)
        for case in cases
    ]
