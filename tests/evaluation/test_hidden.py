"""A split whose answers the authors keep is scored where the converted data have them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from sklearn.metrics import roc_auc_score

from instructkit.conversion.convert import convert
from instructkit.data.dataset import load_examples as real
from instructkit.evaluation.select import wanted_benchmarks
from instructkit.prompts.protocols import load_protocol
from tests.evaluation.world import World
from tests.miniatures import write_release
from tests.sources import write_lines, write_picture


def memes(folder: Path, labels: list[int | None]) -> Path:
    """A release whose test_seen has these labels."""
    write_release("hatefulmemes", folder)
    lines: list[dict[str, Any]] = []
    for number, label in enumerate(labels):
        line = {"id": f"{number:05}", "img": f"img/{number:05}.png", "text": f"text {number}"}
        lines.append(line if label is None else {**line, "label": label})
        write_picture(folder / line["img"], number)
    write_lines(folder / "test_seen.jsonl", lines)
    return folder


def test_labels_in_a_hidden_split_give_a_score(world: World, tmp_path: Path) -> None:
    labels = [0, 1, 1, 0, 1]
    convert("hatefulmemes", memes(tmp_path / "raw", list(labels)), tmp_path / "data", split="test_seen")
    found = world.evaluate("hatefulmemes/test_seen", tmp_path / "run", data=str(tmp_path / "data"))
    assert found.not_evaluated == []
    (result,) = found.results
    lines = [
        msgspec.json.decode(line)
        for line in (tmp_path / "run/evaluation/hatefulmemes/test_seen/responses.jsonl").read_bytes().splitlines()
    ]
    assert [line["reference"] for line in lines] == labels
    expected = 100 * roc_auc_score(labels, [line["prediction"] for line in lines])
    assert (result.n, result.value) == (5, pytest.approx(expected))


@pytest.mark.parametrize("labels", [[None, None], [0, None, 1], [None, 0, 1], [0, 1, None]])
def test_one_label_that_is_missing_keeps_the_split_hidden(
    world: World, tmp_path: Path, labels: list[int | None]
) -> None:
    convert("hatefulmemes", memes(tmp_path / "raw", labels), tmp_path / "data", split="test_seen")
    found = world.evaluate("hatefulmemes/test_seen", tmp_path / "run", data=str(tmp_path / "data"))
    assert found.results == []
    assert [each.hidden for each in found.not_evaluated] == [True]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("aokvqa/test", {"answers": ["cat"], "meta": {"difficult_direct_answer": "false"}}),
        ("aokvqa_mc/test", {"choice": 0}),
        ("vqav2/test-dev", {"answers": ["cat"] * 10}),
        ("nocaps/test", {"references": ["a cat"]}),
    ],
)
def test_the_rule_holds_for_every_kind_of_reply(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: dict[str, Any]
) -> None:
    base, _, split = name.partition("/")
    protocol = load_protocol(base)
    world.split(protocol.source, split)
    assert wanted_benchmarks([name])[0].hidden
    assert wanted_benchmarks([name], tmp_path)[0].hidden, "what is not converted has no answers"
    assert wanted_benchmarks([name], world.data)[0].hidden
    monkeypatch.setattr(
        "instructkit.evaluation.select.load_examples",
        lambda folder: [msgspec.structs.replace(e, **change) for e in real(folder)],
    )
    (wanted,) = wanted_benchmarks([name], world.data)
    assert not wanted.hidden
    assert (wanted.protocol.needs, wanted.protocol.only) == (protocol.needs, protocol.only)
    assert wanted.protocol.published == []
