"""Long prompts: the LLM reads all that its positions hold, and whatever is cut is counted and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from instructkit.config.read import evaluation_settings
from instructkit.conversion.convert import convert
from instructkit.data.dataset import load_examples
from instructkit.evaluation.answer import Evaluator
from instructkit.evaluation.questions import Question
from instructkit.evaluation.run import evaluate
from instructkit.models.save import save_model
from instructkit.prompts.protocols import load_protocol
from instructkit.reports.report import write_evaluation_report
from instructkit.runs.ranks import Ranks
from tests.tiny import LLMS, tiny_model

TAIL = " the shape is a circle in the picture" * 40 + " what color is it?"
POSITIONS = 130


def questions() -> list[str]:
    return ["The card of kiosk A is red." + TAIL, "The card of kiosk A is blue." + TAIL, "is there a triangle?"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    Image.new("RGB", (16, 16), (30, 200, 90)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "instruction": text, "answer": "red"} for text in questions()]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    convert("jsonl", tmp_path, tmp_path / "data", split="val")
    return tmp_path / "data"


@pytest.fixture
def with_gpt2(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}
    monkeypatch.setitem(LLMS, "gpt2", shape)


def evaluated(llm: str, data: Path, lines: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    run, model = data.parent / "run", data.parent / "model"
    save_model(*tiny_model(llm), model)
    settings = evaluation_settings(
        {"model.name": str(model), "data.root": str(data), "benchmarks": "jsonl", "output": str(run)}
    )
    evaluate(settings, Ranks(), lines.append)
    write_evaluation_report(settings)
    report = json.loads((run / "report" / "report.json").read_text())
    responses = (run / "evaluation" / "jsonl" / "responses.jsonl").read_text().splitlines()
    return report["benchmarks"]["jsonl"], [json.loads(line) for line in responses], run / "report"


@pytest.mark.parametrize(
    ("llm", "readers", "told"),
    [
        ("llama", ["qformer"], "2 for the Q-Former"),
        ("t5", ["qformer"], "2 for the Q-Former"),
        ("gpt2", ["qformer", "instruction"], "2 for the LLM, 2 for the Q-Former"),
    ],
)
def test_what_is_cut_is_marked_counted_and_told(
    llm: str, readers: list[str], told: str, data: Path, with_gpt2: None
) -> None:
    lines: list[str] = []
    entry, responses, report = evaluated(llm, data, lines)
    assert [response.get("cut", []) for response in responses] == [readers, readers, []]
    assert entry["cut"] == dict.fromkeys(readers, 2)
    assert f"cut       jsonl: prompts longer than the limit, their end kept: {told}" in lines
    assert f"Prompts longer than the limit, their end kept: {told}." in (report / "report.md").read_text()
    assert f"their end kept: {told}." in (report / "report.html").read_text()
    cards = " and ".join({"qformer": "the Q-Former", "instruction": "the LLM"}[reader] for reader in readers)
    assert (report / "report.html").read_text().count(f"(cut for {cards})") == 2
    assert (report / "report.md").read_text().count(f"(cut for {cards})") == 2


@pytest.mark.parametrize("llm", ["llama", "t5", "gpt2"])
def test_the_llm_reads_all_that_its_positions_hold(llm: str, data: Path, with_gpt2: None) -> None:
    model, texts = tiny_model(llm)
    evaluator = Evaluator(model, texts)
    question = Question(load_protocol("jsonl"))
    examples = load_examples(data / "jsonl" / "val")
    batch = evaluator.prepare(question, list(examples), Path(examples.manifest.media_root))
    encoded = texts.encode([row.prompt for row in batch.rows], [row.room for row in batch.rows])
    whole = [texts.llm(text)["input_ids"] for text in questions()]
    if llm == "gpt2":
        # Four soft prompts in front, 64 tokens of an answer behind.
        room = POSITIONS - 4 - 64
        assert [row.instruction for row in encoded] == [[1, *ids[1 - room :]] for ids in whole[:2]] + [whole[2]]
    else:
        behind = [] if llm == "llama" else texts.behind
        assert [row.instruction for row in encoded] == [[*ids, *behind] for ids in whole]
    longest = max(len(row.qformer) for row in encoded)
    assert longest == 64  # positions of the tiny Q-Former
    answers = evaluator.answer(question, batch)
    assert not [answer.error for answer in answers if answer.error]


def test_an_example_without_room_for_its_prompt_is_an_error_with_its_id(data: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(LLMS, "gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 68})
    lines: list[str] = []
    model = data.parent / "model"
    save_model(*tiny_model("gpt2"), model)
    settings = evaluation_settings(
        {"model.name": str(model), "data.root": str(data), "benchmarks": "jsonl", "output": str(data.parent / "run")}
    )
    evaluate(settings, Ranks(), lines.append)
    errors = [line for line in lines if line.startswith("error")]
    assert errors[0] == (
        "error     jsonl jsonl/val/1: jsonl: example jsonl/val/1: 4 soft prompts of 1 pictures and 64 tokens of an "
        "answer leave no room for a prompt in the LLM's 68 positions"
    )
    assert len(errors) == 3
