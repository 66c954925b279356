"""Held-out benchmarks for an LLM that is told in words what is in the pictures, against transformers itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)
from typer.testing import CliRunner

import instructkit
from instructkit import sources
from instructkit.cli import app
from instructkit.config.read import evaluation_settings
from instructkit.conversion.convert import convert
from instructkit.data.dataset import load_examples
from instructkit.data.examples import Example
from instructkit.errors import UserError
from instructkit.evaluation.benchmark import load_vocabulary
from instructkit.evaluation.run import evaluate, read_evaluation
from instructkit.models.load.new_tokenizers import train_llm_tokenizer
from instructkit.models.load.presets import nano_llm
from instructkit.prompts.described import DESCRIPTIONS, read_descriptions
from instructkit.prompts.protocols import Protocol, benchmarks, load_protocol
from instructkit.runs.ranks import Ranks
from instructkit.world.build import build
from instructkit.world.facts import HELD_OUT
from instructkit.world.text import documents, tell
from tests.evaluation.world import evaluate_on_two_ranks

HERE = [
    protocol
    for protocol in map(load_protocol, benchmarks())
    if protocol.role == "held-out" and protocol.source in HELD_OUT
]
NAMES = [protocol.benchmark for protocol in HERE]
LIMIT = 4


class Told(NamedTuple):
    """What an evaluation of a random LLM left, and what it is compared with."""

    run: Path
    data: Path
    said: str
    llm: Any
    tokenizer: Any
    examples: dict[str, dict[str, Example]]
    descriptions: dict[str, str]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny world in which no picture lies: none is opened."""
    root = tmp_path_factory.mktemp("world") / "raw"
    for release in build(root, pictures=False):
        for path in map(release.root.joinpath, (*release.pictures, *release.films)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


@pytest.fixture(scope="module")
def told(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    torch.set_num_threads(1)
    folder, data = tmp_path_factory.mktemp("told"), raw.parent / "data"
    examples: dict[str, dict[str, Example]] = {}
    for protocol in HERE:
        for split in {protocol.split, *(protocol.vocabulary.splits if protocol.vocabulary else [])}:
            convert(protocol.source, raw / protocol.source, data, split=split)
        rows = load_examples(data / protocol.source / protocol.split)
        examples[protocol.benchmark] = {example.id: example for example in rows}
    tokenizer = train_llm_tokenizer([document.text for document in documents(0, 300)], 600)
    config = nano_llm(len(tokenizer))
    config.num_hidden_layers, config.layer_types, config.no_rope_layers = 2, config.layer_types[:2], [1, 1]
    config.hidden_size, config.intermediate_size, config.num_attention_heads = 32, 48, 4
    config.num_key_value_heads, config.head_dim, config.initializer_range = 4, 8, 0.3
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(config).eval()
    llm.save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    words = ["--words", str(raw / DESCRIPTIONS), "--limit", str(LIMIT), "--batch-size", "3"]
    place = ["--model", str(folder / "llm"), "--data", str(data), "--output", str(folder / "run")]
    found = CliRunner().invoke(app, ["evaluate", *place, "--benchmarks", ",".join(NAMES), *words])
    assert found.exit_code == 0, (found.output, found.exc_info)
    lines = map(json.loads, (raw / DESCRIPTIONS).read_text().splitlines())
    return Told(
        folder / "run",
        data,
        found.output,
        AutoModelForCausalLM.from_pretrained(folder / "llm").eval(),
        AutoTokenizer.from_pretrained(folder / "llm"),
        examples,
        {line["media"]: line["text"] for line in lines},
    )


def responses(told: Told, protocol: Protocol) -> list[dict[str, Any]]:
    path = told.run / "evaluation" / protocol.benchmark / "responses.jsonl"
    found = list(map(json.loads, path.read_text().splitlines()))
    assert len(found) >= LIMIT - 1
    return found


def expected_prompt(told: Told, protocol: Protocol, example: Example) -> str:
    """Put together by hand: the one description whose path ends as the example's, a space, the protocol's prompt."""
    named = [example.video] if example.video is not None else example.images
    texts = []
    for name in named:
        (text,) = {
            text
            for media, text in told.descriptions.items()
            if media.startswith(f"{protocol.source}/") and media.endswith(f"/{name}")
        }
        texts.append(text)
    return " ".join([*texts, protocol.prompt(example).instruction])


def ids_of(told: Told, text: str, bare: bool = False) -> torch.Tensor:
    found: torch.Tensor = told.tokenizer(text, return_tensors="pt", add_special_tokens=not bare)["input_ids"]
    return found


@pytest.mark.parametrize("protocol", HERE, ids=NAMES)
def test_the_prompt_is_the_description_and_the_protocols_own_prompt(told: Told, protocol: Protocol) -> None:
    for response in responses(told, protocol):
        example = told.examples[protocol.benchmark][response["example"]]
        assert response["prompt"] == expected_prompt(told, protocol, example)
        start = "The film begins." if example.video is not None else ("The picture ", "In the left picture: ")
        assert response["prompt"].startswith(start)
        assert not response.get("error")
        assert not response.get("cut")


@pytest.mark.parametrize("protocol", [each for each in HERE if each.mode == "rank"], ids=lambda each: each.benchmark)
@torch.no_grad()
def test_candidates_are_scored_as_by_transformers(told: Told, protocol: Protocol) -> None:
    vocabulary = load_vocabulary(protocol, told.data)
    for response in responses(told, protocol):
        example = told.examples[protocol.benchmark][response["example"]]
        words = {texts[0]: texts for texts in protocol.options(example, vocabulary)}
        for candidate, score in response["ranked"][:5]:
            expected = [log_likelihood(told, response["prompt"], text, protocol.score) for text in words[candidate]]
            assert score == pytest.approx(torch.logsumexp(torch.tensor(expected), 0).item(), abs=2e-4)


def log_likelihood(told: Told, prompt: str, answer: str, rule: str) -> float:
    read, said = ids_of(told, prompt), ids_of(told, answer, bare=True)
    logits = told.llm(input_ids=torch.cat([read, said], dim=1)).logits[0, read.shape[1] - 1 : -1]
    each = logits.log_softmax(-1).gather(1, said[0][:, None])
    return float(each.sum() if rule == "sum" else each.mean())


@pytest.mark.parametrize(
    "protocol", [each for each in HERE if each.mode == "generate"], ids=lambda each: each.benchmark
)
def test_answers_are_generated_as_by_transformers(told: Told, protocol: Protocol) -> None:
    decoding = protocol.decoding
    for response in responses(told, protocol)[:2]:
        prompt = ids_of(told, response["prompt"])
        penalty = decoding.repetition_penalty  # of new tokens alone, as embeddings keep those of the prompt from it
        ids = told.llm.generate(
            inputs_embeds=told.llm.get_input_embeddings()(prompt),
            attention_mask=torch.ones_like(prompt),
            logits_processor=LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)] if penalty != 1 else []),
            do_sample=False,
            num_beams=decoding.num_beams,
            length_penalty=decoding.length_penalty,
            min_new_tokens=decoding.min_new_tokens,
            max_new_tokens=decoding.most_new_tokens(decoder_only=True),
            pad_token_id=0,
        )[0]
        assert response["text"] == told.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_log_and_report_say_that_the_pictures_were_given_in_words(told: Told, raw: Path) -> None:
    assert f"words     the LLM sees no picture; it is told what is in each by {raw / DESCRIPTIONS}" in told.said
    for name in ("report.md", "report.html"):
        assert "The pictures were given in words: the LLM saw none of them" in (told.run / "report" / name).read_text()
    assert {result.benchmark for result in read_evaluation(told.run).results} == set(NAMES)


def test_two_ranks_that_are_told_answer_as_one(told: Told, raw: Path, tmp_path: Path) -> None:
    asked = [next(each.benchmark for each in HERE if each.mode == mode) for mode in ("rank", "generate")]
    settings = {
        "model.name": str(told.run.parent / "llm"),
        "model.words": str(raw / DESCRIPTIONS),
        "data.root": str(told.data),
        "benchmarks": ",".join(asked),
        "limit": LIMIT,
        "eval_batch_size": 1,
    }
    evaluate_on_two_ranks({**settings, "output": str(tmp_path / "two")})
    evaluate(evaluation_settings({**settings, "output": str(tmp_path / "one")}), Ranks(), lambda line: None)
    for name in asked:
        found = []
        for run in ("one", "two"):
            lines = (tmp_path / run / "evaluation" / name / "responses.jsonl").read_text().splitlines()
            found.append({line["example"]: line for line in map(json.loads, lines)})
        assert len(found[0]) >= LIMIT - 1
        assert found[0] == found[1]


def test_other_words_are_other_answers(told: Told, raw: Path, tmp_path: Path) -> None:
    other = raw / "other.jsonl"
    other.write_text((raw / DESCRIPTIONS).read_text().replace("red", "blue"))
    words = ["evaluate", "--model", str(told.run.parent / "llm"), "--data", str(raw.parent / "data")]
    words += ["--benchmarks", "vsr", "--limit", str(LIMIT), "--batch-size", "3", "--output", str(told.run)]
    found = CliRunner().invoke(app, [*words, "--words", str(other)])
    assert isinstance(found.exception, UserError)
    assert "words" in str(found.exception)


def test_every_picture_and_film_that_can_be_used_is_described(raw: Path) -> None:
    found = read_descriptions(raw / DESCRIPTIONS)
    wanted: dict[Path, str] = {}
    for release in build(raw.parent / "again", pictures=False):
        shown = {path: tell(scene, "open") for path, scene in release.pictures.items() if path not in release.spoilt}
        shown |= {path: tell(film, "film") for path, film in release.films.items()}
        wanted |= {(raw / release.name / path).resolve(): text for path, text in shown.items()}
    assert found == wanted
    assert {path.relative_to(raw.resolve()).parts[0] for path in found} == {
        source.name for source in sources.sources() if source.role != "extra" and source.examples_of is None
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"words=.*nowhere\.jsonl: cannot be read .*instructkit world writes"),
        ('{"media": "a.jpg", "text": "x"}\n{"media": 7}\n', "line 2: no description"),
        ('{"media": "a.jpg", "text": " "}\n', "line 1: its text is empty"),
    ],
)
def test_a_file_that_holds_no_descriptions_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "nowhere.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_descriptions(path)


def told_in_python(told: Told, raw: Path, say: Callable[[str], None], **options: Any) -> dict[str, Any]:
    """Responses of VSR by example, of an evaluation from Python."""
    llm = str(told.run.parent / "llm")
    options |= {"words": raw / DESCRIPTIONS, "limit": LIMIT, "batch_size": 3, "say": say}
    found = instructkit.evaluate(llm, "vsr", told.data, **options)
    (written,) = (found.folder / "evaluation").glob("vsr*/responses.jsonl")
    return {line["example"]: line for line in map(json.loads, written.read_text().splitlines())}


def test_python_is_told_as_the_command_is(told: Told, raw: Path) -> None:
    assert told_in_python(told, raw, lambda line: None) == {
        line["example"]: line for line in responses(told, load_protocol("vsr"))
    }


def test_exchanged_pictures_are_told_in_the_words_of_the_others(told: Told, raw: Path) -> None:
    """Each prompt stands behind the description of another example's picture."""
    lines: list[str] = []
    protocol, read = load_protocol("vsr"), set()
    prompts = {name: line["prompt"] for name, line in told_in_python(told, raw, lines.append, exchanged=True).items()}
    own = {line["example"]: line["prompt"] for line in responses(told, protocol)}
    assert set(prompts) == set(own)
    for name, prompt in prompts.items():
        asked = f" {protocol.prompt(told.examples['vsr'][name]).instruction}"
        assert prompt.endswith(asked)
        assert prompt != own[name]
        read.add(prompt.removesuffix(asked))
    assert read <= set(told.descriptions.values())
    assert [line.split()[0] for line in lines[:3]] == ["evaluate", "words", "pictures"]
