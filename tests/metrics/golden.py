"""Where the numbers of the official scorers lie (tests/golden/metrics; cider.json is too large to be kept here)."""

import json
from pathlib import Path
from typing import Any

import pytest

_TESTS = Path(__file__).parents[1]
_SHARED = _TESTS.parents[1] / "shared" / "golden"


def load(name: str) -> Any:
    return json.loads((_TESTS / "golden" / "metrics" / f"{name}.json").read_text(encoding="utf-8"))


def load_shared(name: str) -> Any:
    path = _SHARED / "metrics" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path} is not there: its captions are not part of the repository")
    return json.loads(path.read_text(encoding="utf-8"))
