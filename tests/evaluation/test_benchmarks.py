"""Every protocol end to end on the miniature release of its source; nothing to edit here when one is added."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructkit.config.read import evaluation_settings
from instructkit.data.dataset import load_examples
from instructkit.evaluation import metrics
from instructkit.evaluation.run import evaluate
from instructkit.prompts.protocols import benchmarks, load_protocol
from instructkit.reports.report import write_evaluation_report
from instructkit.runs.ranks import Ranks
from tests.evaluation.world import World
from tests.matrix import mostly_full
from tests.tiny import LLMS


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", benchmarks())
def test_a_benchmark_end_to_end(name: str, world: World, tmp_path: Path) -> None:
    world.benchmark(name)
    protocol = load_protocol(name)
    examples = list(load_examples(world.data / protocol.source / protocol.split))
    kept = [example for example in examples if protocol.keeps(example)][:30]

    found = world.evaluate(name, tmp_path, limit=30)
    assert [each.reason for each in found.not_evaluated] == []
    (result,) = found.results
    assert result.errors == {}
    assert result.n == len(kept)
    assert result.available == sum(map(protocol.keeps, examples))

    lines = lines_of(tmp_path / "evaluation" / name / "responses.jsonl")
    assert [line["example"] for line in lines] == [example.id for example in kept]
    assert [line["prompt"] for line in lines] == [protocol.prompt(example).instruction for example in kept]
    # The score as `evaluate` itself computes it, from nothing but the file.
    metric = metrics.load(protocol.metric)
    again = metric.compute(
        predictions=[line["prediction"] for line in lines], references=[line["reference"] for line in lines]
    )
    assert result.value == pytest.approx(again[metric.key])
    if protocol.mode == "rank":
        for line, example in zip(lines, kept, strict=True):
            scores = [score for _, score in line["ranked"]]
            assert scores == sorted(scores, reverse=True)
            assert line["text"] == line["ranked"][0][0]
            if protocol.candidates == "choices":
                assert sorted(text for text, _ in line["ranked"]) == sorted(example.choices)

    write_evaluation_report(evaluation_settings(world.settings(name, tmp_path, limit=30)))
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    entry = report["benchmarks"][name]
    assert (entry["metric"], entry["n"], entry["protocol_version"]) == (protocol.metric, len(kept), protocol.version)
    assert entry["value"] == pytest.approx(result.value)
    assert entry["prompt"] == lines[0]["prompt"]
    assert f"{protocol.source}/{protocol.split}" in report["data"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(entry["cases"]) > 0


@pytest.mark.parametrize("llm", mostly_full(["t5", "opt"], "t5"))
@pytest.mark.parametrize("name", ["msvd_qa", "vqav2", "visdial"])
def test_the_batch_size_changes_no_answer(name: str, llm: str, world: World, tmp_path: Path) -> None:
    world.benchmark(name)
    answers = []
    for size in (1, 7):
        out = tmp_path / str(size)
        world.evaluate(name, out, limit=8, batch_size=size, model=str(world.model(llm)))
        answers.append(lines_of(out / "evaluation" / name / "responses.jsonl"))
    for one, many in zip(*answers, strict=True):
        assert one["text"] == many["text"]
        scores = [dict(row["ranked"]) for row in (one, many)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_several_verbalisers_and_their_log_odds(world: World, tmp_path: Path) -> None:
    """HatefulMemes: the prediction is the difference of the two labels' merged scores."""
    world.benchmark("hatefulmemes")
    world.evaluate("hatefulmemes", tmp_path)
    for line in lines_of(tmp_path / "evaluation" / "hatefulmemes" / "responses.jsonl"):
        scores = dict(line["ranked"])
        assert set(scores) == {"no", "yes"}
        assert line["prediction"] == pytest.approx(scores["yes"] - scores["no"])
        best = max(scores.values())
        assert line["confidence"] == pytest.approx(1 / (1 + 2.718281828459045 ** (min(scores.values()) - best)))


def test_what_cannot_be_evaluated_is_told_and_the_rest_goes_on(world: World, tmp_path: Path) -> None:
    world.benchmark("okvqa")
    elsewhere = tmp_path / "data"
    elsewhere.mkdir()
    (elsewhere / "okvqa").symlink_to(world.data / "okvqa")
    found = world.evaluate("gqa,okvqa,msvd_qa", tmp_path / "run", data=str(elsewhere))
    assert [result.benchmark for result in found.results] == ["okvqa"]
    reasons = {each.benchmark: each.reason for each in found.not_evaluated}
    assert reasons["gqa"].startswith("gqa/testdev is not converted")
    assert "instructkit convert gqa --split testdev" in reasons["gqa"]
    assert reasons["msvd_qa"].startswith("msvd_qa/test is not converted")


def test_a_score_that_is_not_defined_is_told(world: World, tmp_path: Path) -> None:
    world.benchmark("hatefulmemes")
    (missing,) = world.evaluate("hatefulmemes", tmp_path, limit=1).not_evaluated
    assert "both classes" in missing.reason


@pytest.mark.parametrize(
    ("llm", "told"),
    [
        ("llama", []),
        (
            "bloom",
            [
                "ranking   one row a candidate, which is slower: "
                "bloom is none of the classes that were compared packed and unpacked"
            ],
        ),
    ],
)
def test_it_is_told_once_where_candidates_share_no_passes(
    llm: str, told: list[str], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LLMS, "bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4})
    world.benchmark("hatefulmemes")
    lines: list[str] = []
    settings = world.settings("hatefulmemes", tmp_path, limit=2, model=str(world.model(llm)))
    evaluate(evaluation_settings(settings), Ranks(), lines.append)
    assert [line for line in lines if line.startswith("ranking")] == told
