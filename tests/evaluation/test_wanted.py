"""What the names of benchmarks, settings and wordings mean, and what responses depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest

from instructkit.config.read import evaluation_words, find_config, load_config
from instructkit.config.settings import GROUPS, EvaluationRun, RunConfig, evaluation_of
from instructkit.data.dataset import load_examples
from instructkit.errors import UserError
from instructkit.evaluation.identity import model_identity, responses_identity
from instructkit.evaluation.questions import Question, make_plan
from instructkit.evaluation.select import wanted_benchmarks
from instructkit.evaluation.spread import wordings
from instructkit.models.batches import Limits
from instructkit.prompts.protocols import benchmarks, load_protocol
from instructkit.prompts.templates import train_templates
from tests.evaluation.world import World

HELD_OUT = {
    "flickr30k",
    "gqa",
    "hatefulmemes",
    "iconqa",
    "ivqa",
    "msrvtt_qa",
    "msvd_qa",
    "nocaps",
    "scienceqa",
    "textvqa",
    "visdial",
    "vizwiz",
    "vsr",
}
REQUIRED = ["model.name=m", "data.root=d", "output=o"]


def test_groups_and_names() -> None:
    assert {each.protocol.benchmark for each in wanted_benchmarks(["held-out"])} == HELD_OUT
    both = wanted_benchmarks(["gqa", "held-out"])
    assert [each.protocol.benchmark for each in both].count("gqa") == 1
    assert [each.protocol.benchmark for each in both if each.named] == ["gqa"]


def test_another_split_has_no_published_rows_and_asks_all_its_questions() -> None:
    (wanted,) = wanted_benchmarks(["aokvqa/test"])
    assert wanted.hidden
    protocol = wanted.protocol
    assert (protocol.benchmark, protocol.split, protocol.needs, protocol.only) == ("aokvqa/test", "test", [], {})
    (wanted,) = wanted_benchmarks(["scienceqa/val"])
    assert not wanted.hidden
    assert (wanted.protocol.needs, wanted.protocol.published) == (["images"], [])
    assert wanted_benchmarks(["nocaps/val"])[0].protocol == load_protocol("nocaps")


@pytest.mark.parametrize(
    ("name", "message"),
    [("gqqa", "did you mean gqa"), ("gqa/tset", "gqa has no split 'tset'; it has"), ("", "no benchmark is called ''")],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        wanted_benchmarks([name])


def test_settings_of_the_recipe() -> None:
    run = evaluation_words([*REQUIRED, "benchmarks=gqa, vsr", "limit=5", "evaluation.dtype=bfloat16"])
    asked = run.evaluation
    assert (asked.benchmarks, asked.limit, asked.dtype, asked.spread) == (["gqa", "vsr"], 5, "bfloat16", 0)
    assert (run.output, run.model.name, run.data.root) == ("o", "m", "d")
    short = evaluation_words(["model=m", "benchmarks=[gqa]", "output=o"])
    assert (short.model.name, short.data.root) == ("m", "data")
    assert (short.evaluation.benchmarks, short.evaluation.dtype) == (["gqa"], "float32")


def test_what_an_evaluation_is_asked_has_the_names_of_a_training_run() -> None:
    for group, kind in get_type_hints(EvaluationRun).items():
        if group in GROUPS:
            # A run is trained on pictures, so that only an evaluation does without them.
            assert set(kind.__struct_fields__) - {"words", "exchanged"} <= set(GROUPS[group].__struct_fields__)
        else:
            assert group in RunConfig.__struct_fields__
    config = load_config(find_config("vicuna_7b"), ["benchmarks=[gqa]", "limit=5", "spread=2", "data.root=d"])
    run = evaluation_of(config)
    assert (run.output, run.model.name, run.data.root) == ("runs/vicuna_7b", "runs/vicuna_7b/model", "d")
    assert (run.evaluation.benchmarks, run.evaluation.limit, run.evaluation.spread) == (["gqa"], 5, 2)
    assert (run.evaluation.eval_batch_size, run.evaluation.dtype) == (16, "bfloat16")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["benchmarks=gqa", "limt=5"], "unknown key limt; did you mean limit"),
        (["out=o"], "out='o': output=... is its name now"),
        (["data=d"], "data='d': the folder of converted datasets is data.root=..."),
        (["batch_size=4"], "batch_size=4: eval_batch_size=... is its name now"),
        (["training.max_steps=4"], "unknown key training.max_steps; there are output"),
        (["model.llm=x"], "unknown key model.llm; there are name, allow_packages"),
        (["benchmarks=gqa", "limit=.inf"], "evaluation.limit = inf: Expected a finite number"),
        (["benchmarks=gqa", "limit={a: 1, a: 2}"], "the key 'a' stands twice"),
        (["benchmarks=gqa", "output=''"], "output = '': Expected `str` that is not blank"),
        (["benchmarks=gqa", "limit=0"], "limit"),
        (["benchmarks=gqa", "dtype=int8"], "dtype"),
        (["benchmarks=gqa", "quick"], "given as key=value"),
        ([], "evaluation needs benchmarks="),
        (["benchmarks="], "evaluation needs benchmarks="),
    ],
)
def test_settings_that_do_not_fit(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluation_words([*REQUIRED, *words])


# ---- plans ----


def test_longest_prompts_first_and_questions_of_one_picture_together(world: World) -> None:
    world.benchmark("easy_vqa")
    protocol = load_protocol("easy_vqa")
    examples = load_examples(world.data / "easy_vqa" / "test")
    plan = make_plan(Question(protocol), examples, 60, 8)
    assert plan.available == len(examples)
    assert plan.order == [example.id for example in list(examples)[:60]]
    placed = [examples[index] for batch in plan.batches for index in batch]
    assert [example.id for example in placed] == [name for batch in plan.names for name in batch]
    assert sorted(example.id for example in placed) == sorted(plan.order)
    assert [len(batch) for batch in plan.batches] == [8] * 7 + [4]
    pictures = [example.images[0] for example in placed]
    firsts = list(dict.fromkeys(pictures))
    assert pictures == [picture for picture in firsts for _ in range(pictures.count(picture))]
    longest = [
        max(len(example.question or "") for example in placed if example.images[0] == picture) for picture in firsts
    ]
    assert longest == sorted(longest, reverse=True)


# ---- wordings ----


@pytest.mark.parametrize("name", benchmarks())
def test_wordings_suit_every_example(name: str, world: World) -> None:
    world.benchmark(name)
    protocol = load_protocol(name)
    examples = load_examples(world.data / protocol.source / protocol.split)
    chosen = wordings(protocol, examples, 20, 3)
    assert len({wording.name for wording in chosen}) == min(3, len(train_templates(protocol.task)))
    for wording in chosen:
        for example in filter(protocol.keeps, list(examples)[:20]):
            text = Question(protocol, wording).prompt(example).instruction
            shown = bool(example.choices) and all(choice in text for choice in example.choices)
            if "choices" in protocol.instruction:
                assert shown, text
            elif example.question:
                assert example.question in text


def test_more_wordings_than_there_are(world: World) -> None:
    world.benchmark("vsr")
    examples = load_examples(world.data / "vsr" / "test")
    assert 3 <= len(wordings(load_protocol("vsr"), examples, None, 99)) < 99


def test_the_spread_is_the_score_under_each_wording(world: World, tmp_path: Path) -> None:
    world.benchmark("iconqa")
    (result,) = world.evaluate("iconqa", tmp_path, spread=2).results
    assert [each.wording for each in result.spread] == ["think_first", "reason_about"]
    for each in result.spread:
        path = tmp_path / "evaluation" / "iconqa" / "wordings" / each.wording / "responses.jsonl"
        lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
        right = [line["text"] in line["reference"] for line in lines]
        assert each.value == pytest.approx(100 * sum(right) / len(right))
        assert lines[0]["prompt"].startswith(each.instruction.split("{{")[0])


# ---- identity ----


def test_responses_depend_on_model_protocol_data_and_settings(world: World, tmp_path: Path) -> None:
    world.benchmark("msvd_qa")
    protocol = load_protocol("msvd_qa")
    settings: dict[str, Any] = {"limit": None, "batch_size": 8, "dtype": "float32"}

    def identity(changed: dict[str, Any], **options: Any) -> dict[str, Any]:
        question = Question(msgspec.structs.replace(protocol, **changed))
        return responses_identity(question, world.data, "m", **({"limits": Limits()} | settings | options))

    plain = identity({})
    assert set(plain["data"]) == {"msvd_qa/test", "msvd_qa/train", "msvd_qa/val"}
    assert identity({"notes": "other", "published": []}) == plain
    changes: list[dict[str, Any]] = [
        {"instruction": "{{ question }}"},
        {"score": "mean"},
        {"version": protocol.version + 1},
        {"end_token": True},
    ]
    for changed in changes:
        assert identity(changed) != plain
    assert identity({}, limit=5) != plain
    assert identity({}, dtype="bfloat16") != plain


def test_a_model_is_its_files(world: World, tmp_path: Path) -> None:
    first, second = world.model("llama"), world.model("t5")
    assert model_identity(str(first)).startswith("sha256:")
    assert model_identity(str(first)) != model_identity(str(second))
    copy = tmp_path / "copy"
    copy.symlink_to(first)
    assert model_identity(str(copy)) == model_identity(str(first))
