"""Exactly the bad records that are planted are rejected, each for its reason."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from instructkit.conversion.convert import convert
from instructkit.world.build import WRITERS
from instructkit.world.flaws import FLAWS, Flaw
from instructkit.world.release import PLANTED, Release, Size

ENOUGH = (Size(1, 200, 4), Size(25, 500, 4))
"""Sizes, the first of which that is enough for every flaw of a source is taken."""


def test_every_release_has_its_flaws() -> None:
    assert set(FLAWS) == set(WRITERS)


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_planted_is_rejected_and_nothing_else(name: str, tmp_path: Path) -> None:
    for size in ENOUGH:
        release = Release(tmp_path / str(size.factor), name, 0, size)
        WRITERS[name](release)
        if len(release.planted) >= len(FLAWS[name]):
            break
    release.finish(pictures=False)
    planted = defaultdict(list[Flaw])
    for split, flaw in release.planted:
        planted[split].append(flaw)
    assert {flaw.reason for flaws in planted.values() for flaw in flaws} == {flaw.reason for flaw in FLAWS[name]}
    told = json.loads((release.root / PLANTED).read_text())
    assert [(line["split"], line["reason"]) for line in told] == [
        (split, flaw.reason) for split, flaw in release.planted
    ]
    for split, flaws in planted.items():
        expected = [flaw.reason for flaw in flaws if flaw.picture is None]  # pictures are not drawn here
        outcome = convert(name, release.root, tmp_path / "data", split=split)
        reasons = [json.loads(line)["reason"] for line in (outcome.folder / "rejected.jsonl").open()]
        assert sorted(next(part for part in expected if part in reason) for reason in reasons) == sorted(expected)
        assert outcome.manifest.examples > 0
        assert not outcome.too_many_rejects
