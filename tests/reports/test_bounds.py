"""Between blind and words: worked out by hand from answers that are made up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from instructkit.config.read import evaluation_settings
from instructkit.conversion.convert import convert
from instructkit.data.dataset import load_examples
from instructkit.data.examples import Example
from instructkit.errors import UserError
from instructkit.evaluation.responses import RESPONSES, Response
from instructkit.evaluation.run import EVALUATION, RESULTS, Evaluation, benchmark_folder
from instructkit.evaluation.score import Result
from instructkit.prompts.protocols import load_protocol
from instructkit.reports import markdown
from instructkit.reports.bounds import ROWS, RUNS, bounds_of, contents, left_out, most_frequent, share_phrase, summary
from instructkit.world.build import WRITERS
from instructkit.world.release import Release, Size
from tests.evaluation.world import recipe_module

BENCHMARKS = ("gqa", "visdial", "hatefulmemes")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bounds")
    for name in BENCHMARKS:
        source = load_protocol(name).source
        release = Release(root / "raw" / source, source, 0, Size(0, 60, 0))
        WRITERS[source](release)
        release.finish(pictures=False)
        convert(source, release.root, root / "data", split=load_protocol(name).split)
    return root / "data"


def examples_of(data: Path, name: str) -> list[Example]:
    protocol = load_protocol(name)
    return [each for each in load_examples(data / protocol.source / protocol.split) if protocol.keeps(each)]


def write_run(
    folder: Path, data: Path, values: dict[str, float], answer: Callable[[Example], Any], names: tuple[str, ...]
) -> Path:
    """An evaluation whose scores are made up, and whose answers to GQA are."""
    settings = evaluation_settings(
        {"model": "nobody", "data.root": str(data), "benchmarks": ",".join(names), "output": str(folder)}
    )
    results = []
    for name in names:
        protocol = load_protocol(name)
        place = benchmark_folder(folder, name)
        place.mkdir(parents=True)
        responses = [
            Response(
                example=example.id,
                prediction=answer(example) if name == "gqa" else [1.0, 0.0],
                reference=example.answers if name == "gqa" else {"gold_index": 0, "relevance": []},
            )
            for example in examples_of(data, name)
        ]
        if name == "hatefulmemes":
            responses = [Response(example=each.example, prediction=0.5, reference=1) for each in responses]
        (place / RESPONSES).write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in responses))
        results.append(
            Result(
                benchmark=name,
                title=protocol.title,
                role=protocol.role,
                metric=protocol.metric,
                value=values[name],
                interval=(values[name] - 1, values[name] + 1),
                n=len(responses),
                available=len(responses),
                protocol_version=1,
                details={},
            )
        )
    found = Evaluation(settings=settings, model="", results=results, not_evaluated=[])
    (folder / EVALUATION / RESULTS).write_bytes(msgspec.json.encode(found))
    return folder


SCORES = {
    "tuned": {"gqa": 80.0, "visdial": 60.0, "hatefulmemes": 70.0},
    "before": {"gqa": 30.0, "visdial": 70.0, "hatefulmemes": 40.0},
    "exchanged": {"gqa": 5.0, "visdial": 20.0, "hatefulmemes": 40.0},
    "words": {"gqa": 95.0, "visdial": 90.0, "hatefulmemes": 100.0},
}


@pytest.fixture
def runs(data: Path, tmp_path: Path) -> dict[str, Path]:
    def told(example: Example) -> str:
        return example.answers[0] if example.meta["told"] == "told" else "nonsense"

    answer = {"tuned": told, "words": lambda example: example.answers[0]}
    return {
        row: write_run(tmp_path / row, data, SCORES[row], answer.get(row, lambda example: "nonsense"), BENCHMARKS)
        for row in RUNS
    }


def test_blind_is_the_higher_of_the_most_frequent_answer_and_other_pictures(runs: dict[str, Path], data: Path) -> None:
    found = bounds_of(runs)
    assert tuple(found) == BENCHMARKS
    examples = examples_of(data, "gqa")
    right = 0
    for fact in {example.meta["fact"] for example in examples}:
        counts = Counter(example.answers[0] for example in examples if example.meta["fact"] == fact)
        right += counts.most_common(1)[0][1]
    frequent = 100 * right / len(examples)
    assert frequent > SCORES["exchanged"]["gqa"]
    assert found["gqa"].frequent == pytest.approx(frequent)
    assert found["gqa"].values == pytest.approx({"blind": frequent, "before": 30, "tuned": 80, "words": 95})
    assert found["gqa"].intervals["blind"] is None  # it is no evaluation
    assert found["visdial"].frequent is None  # candidates of its own for each question
    assert found["visdial"].values["blind"] == 20
    assert found["visdial"].intervals["blind"] == (19, 21)
    assert found["hatefulmemes"].values["blind"] == 50  # an area under a curve


def test_means_and_what_lies_between_them(runs: dict[str, Path]) -> None:
    found = bounds_of(runs)
    blind = (found["gqa"].values["blind"] + 20 + 50) / 3
    totals = summary(found)
    assert totals is not None
    assert totals.means == pytest.approx({"blind": blind, "before": 140 / 3, "tuned": 70, "words": 95})
    assert totals.over_before == pytest.approx(70 - 140 / 3)
    assert totals.over_blind == pytest.approx(70 - blind)
    assert totals.share == pytest.approx((70 - blind) / (95 - blind))
    assert (totals.above_both, totals.benchmarks) == (2, 3)  # VisDial is below what it began with
    assert summary(found, "held-in") is None
    deaf = {name: each._replace(values={**each.values, "words": 0.0}) for name, each in found.items()}
    low = summary(deaf)
    assert low is not None
    assert low.share is None
    assert share_phrase(None) == ""


def test_told_and_untold_facts_are_split(runs: dict[str, Path]) -> None:
    told = bounds_of(runs)["gqa"].told
    assert told["told"] == {"exchanged": 0, "before": 0, "tuned": 100, "words": 100}
    assert told["untold"] == {"exchanged": 0, "before": 0, "tuned": 0, "words": 100}
    assert not bounds_of(runs)["hatefulmemes"].told  # single memes have no area under a curve


def test_annotators_share_an_answer_by_the_metrics_own_rule() -> None:
    """VQA accuracy of an answer that three of ten annotators give is 0.9 or 1, of one that none gives 0."""
    protocol = load_protocol("vizwiz")
    references = [["red"] * 10, ["blue"] * 10, ["red"] * 3 + ["no"] * 7]
    answers = [Response(example=str(n), prediction="", reference=each) for n, each in enumerate(references)]
    assert most_frequent(protocol, answers, {str(n): {} for n in range(3)}) == pytest.approx(100 * (1 + 0.9) / 3)


def test_the_page_has_a_column_a_row_and_says_what_they_are(runs: dict[str, Path]) -> None:
    blocks = contents(bounds_of(runs), [], None)
    tables = [block for block in blocks if hasattr(block, "head")]
    assert tables[0].head == ["benchmark", *ROWS, "metric"]
    assert tables[0].rows[1] == [
        "Visual Dialog",
        "20.0 (19.0 to 21.0)",
        *(f"{value:.1f} ({value - 1:.1f} to {value + 1:.1f})" for value in (70, 60, 90)),
        "visdial",
    ]


def test_runs_without_a_common_benchmark_are_refused(runs: dict[str, Path], data: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", data, SCORES["words"], lambda example: "", ("visdial",))
    both = {**runs, "words": other}
    assert tuple(bounds_of(both)) == ("visdial",)
    assert left_out(runs) == []
    missing = left_out(both)
    assert missing == ["GQA has no score of words.", "HatefulMemes has no score of words."]
    assert "Left out:" in markdown.text(contents(bounds_of(both), missing, None))
    alone = write_run(tmp_path / "alone", data, SCORES["words"], lambda example: "", ("gqa",))
    with pytest.raises(UserError, match="no benchmark has a score in all of them"):
        bounds_of({**both, "before": alone})


def test_the_recipe_asks_for_a_model_where_training_began_with_none() -> None:
    module = recipe_module("bounds")
    from instructkit.config.read import find_config, load_config

    config = load_config(find_config("world"))
    with pytest.raises(UserError, match=r"runs/world: began with nano, which is no model that answers"):
        module.evaluations(Path("runs/world"), config, None, None)
    found = module.evaluations(Path("runs/world"), config, "base", None)
    assert found["before"] == {"model.name": "base"}
    assert found["exchanged"] == {"model.name": Path("runs/world/model"), "model.exchanged": True}
    assert found["words"]["model.words"] == Path("data/world/raw/descriptions.jsonl")
