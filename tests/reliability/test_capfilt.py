"""The trial of CapFilt in miniature: two ranks and kills leave the bytes of one rank, and what is bad is counted."""

from __future__ import annotations

import json
from pathlib import Path

from tests.reliability.capfilt import TORN, Trial


def test_a_run_killed_twice_leaves_the_same_bytes(tmp_path: Path) -> None:
    trial = Trial(tmp_path, pictures=110, block=10)
    trial.write()
    trial.whole("one", 1)
    assert len(trial.made("one")) == trial.blocks == 11
    assert trial.killed("killed", 2, kills=2, writing=0.3, seed=1) >= 1
    whole = trial.files("one")
    assert trial.files("killed") == whole
    report = json.loads((tmp_path / "one" / "report" / "report.json").read_text())["capfilt"]
    assert (report["pictures"], report["unreadable"]) == (110, 110 // TORN)
    assert report["listed"] - report["pictures"] == report["repeated"] == 3
    pairs = json.loads(whole["capfilt.json"])
    assert len(pairs) == sum(report["kept"].values()) > 0
