"""A run's own prompt in place of the templates, and captions that are cut in two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

import instructkit
from instructkit.config.read import find_config, load_config
from instructkit.data.dataset import load_examples
from instructkit.data.examples import TASKS, Example, Turn
from instructkit.errors import UserError
from instructkit.prompts.own_prompt import OwnPrompt, asked_barely, wordings_of
from instructkit.prompts.protocols import benchmarks, load_protocol
from instructkit.prompts.templates import train_templates
from instructkit.training import before_after, watch
from tests.evaluation.world import World
from tests.tiny import tiny_model

CAPTION = "a red  circle lies on a light background"
EXAMPLE = Example(id="coco_caption/train/1", images=["1.jpg"], references=[CAPTION])
QUESTION = Example(id="vqav2/train/1", images=["1.jpg"], question="How many?", answers=["two", "two", "three"])


def test_captions_without_an_instruction() -> None:
    prompt = OwnPrompt("", "captioning").render(EXAMPLE)
    assert (prompt.instruction, prompt.target, prompt.images) == ("", CAPTION, ["1.jpg"])
    assert OwnPrompt("a photo of", "captioning").render(EXAMPLE).instruction == "a photo of"
    asked = OwnPrompt("Question: {{ question }} Answer:", "vqa")
    assert asked.render(QUESTION).instruction == "Question: How many? Answer:"
    # Targets are drawn as the templates draw them.
    for epoch in range(8):
        assert asked.render(QUESTION, 3, epoch).target == train_templates("vqa").render(QUESTION, 3, epoch).target


def test_a_caption_is_cut_once_anywhere_and_the_same_way_again() -> None:
    cut, words = OwnPrompt("", "captioning", prefix=True), CAPTION.split()
    found = set()
    for epoch in range(200):
        prompt = cut.render(EXAMPLE, 5, epoch)
        assert prompt == cut.render(EXAMPLE, 5, epoch)
        before = prompt.instruction.split()
        assert [*before, *(prompt.target or "").split()] == words
        assert prompt.target
        found.add(len(before))
    assert found == set(range(len(words)))
    assert {cut.render(EXAMPLE, seed).instruction for seed in range(20)} > {cut.render(EXAMPLE, 0).instruction}
    one = Example(id="x/y/2", images=["1.jpg"], references=["dog"])
    assert (cut.render(one).instruction, cut.render(one).target) == ("", "dog")
    behind = OwnPrompt("a photo of", "captioning", prefix=True)
    assert {behind.render(EXAMPLE, 0, epoch).instruction[:10] for epoch in range(9)} == {"a photo of"}


@pytest.mark.parametrize("llm", ["opt", "t5"])
def test_a_model_reads_rows_without_an_instruction(llm: str) -> None:
    _, texts = tiny_model(llm)
    (row,) = texts.encode([OwnPrompt("", "captioning").render(EXAMPLE)])
    assert row.instruction == texts.before + texts.behind
    assert texts.llm.decode(row.answer[:-1]).split() == CAPTION.split()
    rows = texts.rows([row], [1])
    queries = rows["input_ids"][0, : texts.queries].tolist()
    assert queries == [texts.image_token] * texts.queries


def test_a_prompt_that_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.prompt: choices is no field of the task captioning"):
        wordings_of("captioning", prompt="{{ choices }}")
    assert wordings_of("captioning") is train_templates("captioning")
    (tmp_path / "run.yaml").write_text("{}")
    with pytest.raises(UserError, match=r"data\.prefix cuts targets behind a prompt"):
        load_config(tmp_path / "run.yaml", ["data.prefix=true"])
    assert load_config(tmp_path / "run.yaml", ["data.prefix=true", "data.prompt=none"]).data.prompt == "none"
    assert wordings_of("captioning", prompt="none").render(EXAMPLE).instruction == ""


ASKED = Example(id="x/y/1", images=["1.jpg"], question="How many?", answers=["two", "two", "three"])
CHOSEN = Example(id="x/y/1", images=["1.jpg"], question="How many?", choices=["one", "two"], choice=1, answers=["two"])
BARE: dict[str, list[tuple[Example, str]]] = {
    "captioning": [(EXAMPLE, "")],
    "reading_captioning": [
        (EXAMPLE, ""),
        (replace(EXAMPLE, ocr_tokens=["STOP", "5"]), "OCR tokens: STOP, 5. "),
    ],
    "vqa": [(ASKED, "How many?")],
    "video_qa": [(ASKED, "How many?")],
    "reading_vqa": [(ASKED, "How many?"), (replace(ASKED, ocr_tokens=["STOP"]), "OCR tokens: STOP. How many?")],
    "knowledge_vqa": [
        (ASKED, "How many?"),
        (CHOSEN, "How many? (a) one (b) two"),
        (replace(CHOSEN, context="A sum."), "Context: A sum. How many? (a) one (b) two"),
    ],
    "question_generation": [(ASKED, "two")],
    "visual_dialog": [(ASKED, "How many?")],
    "visual_reasoning": [
        (CHOSEN, "How many? (a) one (b) two"),
        (Example(id="x/y/1", images=["1.jpg"], statement="It is so.", choice=1), "It is so."),
    ],
    "classification": [(Example(id="x/y/1", images=["1.jpg"], context="Ha ha", choice=0), "Ha ha")],
    "llava": [
        (ASKED, "How many?"),
        (replace(ASKED, history=[Turn(question="Why?", answer="So.")]), "Why? So. How many?"),
    ],
}


@pytest.mark.parametrize("task", TASKS)
def test_without_instructions_a_model_reads_the_bare_input_alone(task: str) -> None:
    none, named = (wordings_of(task, "some_set", instructions=kind) for kind in ("none", "name"))
    for example, bare in BARE[task]:
        for epoch in range(4):
            found = none.render(example, 1, epoch)
            assert found.instruction == bare
            assert found.target == train_templates(task).render(example, 1, epoch).target
            name = f"[{task.replace('_', ' ')}:some_set]"
            assert named.render(example, 1, epoch).instruction == (f"{name} {bare}" if bare else name)


def test_bare_inputs_and_a_prompt_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("{}")
    assert load_config(tmp_path / "run.yaml", ["instructions=name"]).data.instructions == "name"
    with pytest.raises(UserError, match="give one of the two"):
        load_config(tmp_path / "run.yaml", ["data.instructions=none", "data.prompt=none"])


@pytest.mark.parametrize("benchmark", benchmarks())
def test_every_benchmark_can_be_asked_by_its_bare_input(benchmark: str) -> None:
    """What a run without instructions trains on, and what it is asked by, are the same text."""
    protocol = load_protocol(benchmark)
    assert asked_barely(protocol, "full") is protocol
    if protocol.mode == "retrieve":
        assert asked_barely(protocol, "none") is protocol
        return
    example = replace(
        QUESTION,
        statement="It is so.",
        context="They say so.",
        references=[CAPTION],
        choices=["two", "three"],
        choice=0,
        ocr_tokens=["stop"],
        history=[Turn(question="why", answer="so")],
    )
    bare = asked_barely(protocol, "none").prompt(example).instruction
    assert bare == OwnPrompt.plain(protocol.task).render(example).instruction
    names = protocol.task.replace("_", " ") + (f":{protocol.source}" if protocol.role == "held-in" else "")
    named = asked_barely(protocol, "name").prompt(example).instruction
    assert named == OwnPrompt.plain(protocol.task, f"[{names}]").render(example).instruction
    assert (bare == "") == (protocol.task == "captioning")


def test_the_report_says_that_questions_were_asked_by_their_bare_input(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    world.benchmark("gqa")
    world.benchmark("nocaps")
    lines: list[str] = []
    model, data, out = str(world.model()), str(world.data), tmp_path / "run"
    found = instructkit.evaluate(model, "gqa,nocaps", data, out, limit=4, prompts="none", say=lines.append)
    found.report(out)
    assert "asked     by the bare input (prompts=none)" in lines
    entries = json.loads((out / "report" / "report.json").read_text())["benchmarks"]
    prompts = {name: entry["prompt"] for name, entry in entries.items()}
    example = next(iter(load_examples(world.data / "gqa" / load_protocol("gqa").split)))
    assert prompts == {"gqa": example.question, "nocaps": ""}
    assert "Each question was asked by its bare input" in (out / "report" / "report.md").read_text()


def test_training_asks_by_the_bare_input_where_its_evaluation_does(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    world.benchmark("gqa")
    words = [f"data.root={world.data}", "prompts=none", "watch=[gqa]", "benchmarks=[gqa]"]
    config = load_config(find_config("world"), words)
    chosen = before_after._chosen(config)
    assert (
        [asked.question.prompt(asked.example).instruction for asked in chosen]
        == [asked.example.question for asked in chosen]
        != []
    )
    (watched,) = watch._watched(config)
    assert watched.protocol.prompt(QUESTION).instruction == QUESTION.question
