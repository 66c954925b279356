"""Runs of the recipe that trains a language model on text: ranks, ZeRO, bf16, going on, and what lies in the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from instructkit.config.read import load_config
from instructkit.config.settings import ModelConfig, ThroughputConfig
from instructkit.errors import UserError
from instructkit.models.causal import CausalText
from instructkit.models.load.join import join
from instructkit.models.load.new_tokenizers import train_qformer_tokenizer
from instructkit.models.save import load_model, save_model
from instructkit.training.data import Batch
from instructkit.training.recipe import launch_command
from instructkit.training.text import TextData, TextDocument, TextObjective, read_documents
from tests.models.checkpoints import write_llm
from tests.tiny import SENTENCES
from tests.training.conftest import with_resumed
from tests.training.mini import ROOT, Runs, log, losses, repeatable, write_releases

CONFIGS = ROOT / "recipes" / "configs"
DOCUMENTS = [f"{first} {second}" for first in SENTENCES for second in (*SENTENCES[:2], "no.", "a b c " * 9)]
READ = [TextDocument(text) for text in DOCUMENTS]
full = pytest.mark.full
STAGES = ["zero0", pytest.param("zero1", marks=full), pytest.param("zero2", marks=full)]


def write_text(path: Path, documents: list[str] = DOCUMENTS) -> Path:
    """Every second document is of a later stage, and told from its first space on."""
    lines = [{"text": text, "form": "open"} for text in documents]
    later = [{**line, "stage": 1, "told": [[line["text"].index(" "), len(line["text"])]]} for line in lines[1::2]]
    lines[1::2] = later
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Rows of up to 24 tokens, so that some documents are read in pieces."""
    return [
        "recipe=pretrain_text",
        f"data.text={write_text(tmp_path_factory.mktemp('text') / 'text.jsonl')}",
        "data.text_tokens=24",
        "data.train=[easy_vqa]",
        "towers.vision=frozen",
        "vocabulary=320",
        "batch_size=4",
        "max_steps=4",
        "log_every=1",
        "checkpoint_every=2",
    ]


@pytest.fixture(scope="module")
def plans(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    runs: dict[str, list[str]] = {}
    for stage in (0, 1, 2):
        runs |= with_resumed(f"zero{stage}", [*words, f"zero_stage={stage}"])
        runs |= with_resumed(f"zero{stage}-bf16", [*words, f"zero_stage={stage}", "precision=bf16"])
    opt = write_llm(tmp_path_factory.mktemp("opt") / "llm", "opt")
    hard = [*words, f"model.llm={opt}", "workers=1", "zero_stage=2"]
    runs |= {
        "hard": hard,
        "hard-resumed": [*hard, "after=hard:2", "workers=0"],
        "other": [*words, f"data.text={write_text(opt.parent / 'other.jsonl', DOCUMENTS[1:])}", "after=zero0:2"],
        "split": [*words, "accumulation=2"],
        "recomputed": [*words, "activation_checkpointing=true"],
        "padded": [*words, "throughput.packing=false"],
        "muon": [*words, "optimizer=muon"],
        "epochs": [*(word for word in words if "max_steps" not in word), "epochs=0.6"],
    }
    return runs


@pytest.fixture(scope="module")
def one(plans: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("one"), {name: (1, settings) for name, settings in plans.items()})


@pytest.fixture(scope="module")
def two(plans: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("two"), {name: (2, settings) for name, settings in plans.items()})


@pytest.mark.parametrize("stage", STAGES)
def test_zero_stages_and_ranks_agree_with_plain_training(one, two, stage):
    plain = log(one / "zero0")
    assert len(plain) == 4
    for run in (one / stage, two / stage):
        assert losses(run) == pytest.approx(losses(one / "zero0"), abs=1e-5)
        for name, tolerance in (("gradient_norm", 1e-4), ("tokens", 0)):
            assert [line[name] for line in log(run)] == pytest.approx([line[name] for line in plain], rel=tolerance)
    assert losses(one / "zero0")[-1] < losses(one / "zero0")[0]


@pytest.mark.parametrize("name", ["split", "recomputed", "padded"])
@full
def test_how_a_step_is_computed_changes_no_loss(one, name):
    assert losses(one / name) == pytest.approx(losses(one / "zero0"), abs=1e-5)


@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero2"])
@full
def test_bf16_follows_fp32_within_its_precision(one, stage):
    half, whole = losses(one / f"{stage}-bf16"), losses(one / "zero0")
    assert half[0] == pytest.approx(whole[0], abs=0.01)
    assert half == pytest.approx(whole, abs=0.2), "the loss halves within these steps; ZeRO 0 strays furthest from it"
    assert half != whole


RESUMED = ["zero1", "zero2", "zero0-bf16", "zero1-bf16", "zero2-bf16", "hard"]


@pytest.mark.parametrize("name", ["zero0", *(pytest.param(name, marks=full) for name in RESUMED)])
def test_a_resumed_run_repeats_the_log_bit_for_bit(one, name):
    assert [line["step"] for line in log(one / f"{name}-resumed")] == [1, 2, 3, 4]
    assert repeatable(one / f"{name}-resumed") == repeatable(one / name)
    whole, resumed = (load_file(one / run / "model" / "model.safetensors") for run in (name, f"{name}-resumed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("name", ["zero0", "zero2", "zero2-bf16", "hard"])
@full
def test_a_resumed_run_on_two_ranks_repeats_the_log_bit_for_bit(two, name):
    assert repeatable(two / f"{name}-resumed") == repeatable(two / name)


def test_an_epoch_is_a_pass_over_the_documents(one):
    assert len(log(one / "epochs")) == 0.6 * len(DOCUMENTS) / 4


def test_the_log_and_the_report_say_what_was_trained(one):
    said = (one / "zero0" / "run.log").read_text()
    assert f"{len(DOCUMENTS)} documents" in said
    assert "documents are read in pieces of 24" in said
    report = json.loads((one / "zero0" / "report" / "report.json").read_text())
    assert report["training"]["step"] == 4
    assert list(report["identity"]["data"]) == ["text"]


def test_the_same_settings_do_not_train_twice_and_no_run_goes_on_with_another_text(one):
    before = (one / "zero0" / "model" / "model.safetensors").stat().st_mtime_ns
    del one.said["zero0"]
    assert "it is not trained again" in (one / "zero0" / "run.log").read_text()
    assert (one.folder / "zero0" / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert "text" in (one / "other" / "error-0.txt").read_text(), "a checkpoint of another text is refused"


# --- the loss, and the rows that it is computed of


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("packing", [True, False])
def test_the_loss_is_transformers_own_document_by_document(tmp_path, family, packing):
    folder = write_llm(tmp_path / "llm", family)
    llm, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    data = TextData(READ, tokenizer, 100, groups=5)
    batch = data[0]
    found = TextObjective()(CausalText(llm, ThroughputConfig(packing=packing)), batch)["nll"]
    found.total.backward()
    gradients = {name: weight.grad.clone() for name, weight in llm.named_parameters() if weight.grad is not None}
    llm.zero_grad()
    expected = []
    for example in batch.examples:
        ids = tokenizer(DOCUMENTS[int(example.partition("/")[2]) - 1], return_tensors="pt")["input_ids"]
        ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], dim=1)
        loss = llm(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1)
        loss.backward()
        expected.append(loss.item())
    assert found.rows.tolist() == pytest.approx(expected, rel=1e-4)
    assert found.total.item() == pytest.approx(sum(expected), rel=1e-5)
    assert found.count == int(TextObjective().counts(batch)["nll"].sum())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, llm.get_parameter(name).grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tokens", [2, 7, 24, 1000])
def test_every_token_but_the_first_is_told_once_whatever_the_longest_row(tmp_path, tokens):
    tokenizer = AutoTokenizer.from_pretrained(write_llm(tmp_path / "llm"))
    data = TextData(READ, tokenizer, tokens, groups=2)
    for number, text in enumerate(DOCUMENTS):
        pieces = [ids for ids, _ in data.pieces(number)]
        assert all(labels[1:] == ids[1:] for ids, labels in data.pieces(number))
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert [token for piece in pieces for token in piece[1:]] == ids[1:]
        assert [piece[0] for piece in pieces] == [ids[0], *(piece[-1] for piece in pieces[:-1])]
        assert all(2 <= len(piece) <= tokens for piece in pieces)


TOLD = TextDocument("What is it? a red circle. And this? a blue box.", [(11, 25), (35, 47)])


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("packing", [True, False])
def test_of_a_text_that_says_what_is_told_the_loss_counts_that_alone(tmp_path, family, packing):
    """Answers are read as those of training are: their tokens are those behind an instruction of their own."""
    folder = write_llm(tmp_path / "llm", family)
    llm, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    data = TextData([READ[0], TOLD, READ[1]], tokenizer, 100, groups=3)
    assert TOLD.parts == [("What is it?", False), ("a red circle.", True), ("And this?", False), ("a blue box.", True)]
    batch = data[0]
    found = TextObjective()(CausalText(llm, ThroughputConfig(packing=packing)), batch)["nll"]
    (row,) = (number for number, name in enumerate(batch.examples) if name == "text/2")
    ids, labels = list(tokenizer("What is it?")["input_ids"]), []
    labels += [-100] * len(ids)
    for text, told in TOLD.parts[1:]:
        part = tokenizer(text if packed_space(tokenizer) else f" {text}", add_special_tokens=False)["input_ids"]
        ids += part
        labels += part if told else [-100] * len(part)
    ids, labels = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
    loss = llm(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
    counted = sum(label != -100 for label in labels)
    assert TextObjective().counts(batch)["nll"][row] == counted
    assert found.rows[row].item() == pytest.approx(loss.item() * counted, rel=1e-4)
    assert found.count == int(TextObjective().counts(batch)["nll"].sum())


def packed_space(tokenizer: Any) -> bool:
    """Whether a tokeniser sets a space in front of a text itself."""
    one, two = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a b", "b"))
    return one[-len(two) :] == two


def test_a_told_token_of_a_long_text_is_told_once(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(write_llm(tmp_path / "llm"))
    whole, cut = (TextData([TOLD], tokenizer, tokens, groups=1) for tokens in (100, 7))
    (labels,) = cut[0].inputs["labels"][:, 1:].flatten()[None]
    assert [label for label in labels.tolist() if label != -100] == [
        label for label in whole[0].inputs["labels"][0].tolist() if label != -100
    ]


def test_a_lower_stage_is_read_first_in_every_epoch(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(write_llm(tmp_path / "llm"))
    stages = [number % 3 for number in range(len(DOCUMENTS))]
    documents = [TextDocument(text, stage=stage) for text, stage in zip(DOCUMENTS, stages, strict=True)]
    data, plain = (TextData(some, tokenizer, 100, groups=1) for some in (documents, READ))
    orders = []
    for epoch in range(2):
        batches = [data[epoch * len(DOCUMENTS) + index] for index in range(len(DOCUMENTS))]
        read = [int(batch.examples[0].partition("/")[2]) - 1 for batch in batches]
        assert [stages[number] for number in read] == sorted(stages)
        assert sorted(read) == list(range(len(DOCUMENTS)))
        orders.append(read)
    assert orders[0] != orders[1]
    drawn = [int(plain[index].examples[0].partition("/")[2]) - 1 for index in range(len(DOCUMENTS))]
    assert [number for stage in range(3) for number in drawn if stages[number] == stage] == orders[0]


@pytest.mark.parametrize("staged", [False, True])
def test_the_documents_of_a_step_are_those_of_one_rank_whoever_reads_them(tmp_path, staged):
    tokenizer = AutoTokenizer.from_pretrained(write_llm(tmp_path / "llm"))
    documents = [
        TextDocument(text, [(text.index(" "), len(text))] if staged else None, number % 2 if staged else 0)
        for number, text in enumerate(DOCUMENTS)
    ]
    alone = TextData(documents, tokenizer, 24, groups=6)
    ranks = [TextData(documents, tokenizer, 24, groups=2, rank=rank, world=3) for rank in range(3)]
    seen = set()
    for index in range(len(DOCUMENTS) // 6):
        together: list[Batch] = [rank[index] for rank in ranks]
        assert sorted(name for batch in together for name in batch.examples) == sorted(alone[index].examples)
        seen |= {name for batch in together for name in batch.examples}
    assert len(seen) == len(DOCUMENTS) // 6 * 6, "no document comes twice in an epoch"


# --- what lies in the folder


def text_logits(llm: Any, tokenizer: Any) -> torch.Tensor:
    with torch.no_grad():
        return llm.eval()(**tokenizer(DOCUMENTS[0], return_tensors="pt")).logits


@pytest.mark.parametrize("config", ["world", "stage2_world"])
def test_the_llm_says_the_same_on_its_own_and_inside_an_instructblip(one, tmp_path, config):
    folder = one / "zero0" / "model"
    llm, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    said = text_logits(llm, tokenizer)

    parts = ["model.vision=null", "model.qformer=null", f"model.llm={folder}", "towers.llm=frozen"]
    settings: ModelConfig = load_config(CONFIGS / f"{config}.yaml", parts).model
    small = train_qformer_tokenizer(SENTENCES, 110)
    model, texts = join(settings, torch.float32, lambda: (tokenizer, small))
    torch.testing.assert_close(text_logits(model.language_model, texts.llm), said)
    save_model(model, texts, tmp_path / "whole")
    again, texts = load_model(str(tmp_path / "whole"))
    assert texts.end == tokenizer.eos_token_id
    torch.testing.assert_close(text_logits(again.language_model, texts.llm), said)


@full
def test_a_run_puts_the_llm_behind_a_qformer_and_leaves_it_as_it_is(one, tmp_path):
    words = [*write_releases(tmp_path / "easy"), "max_steps=2", f"model.llm={one / 'zero0' / 'model'}"]
    runs = Runs(tmp_path / "runs", {"tuned": (1, [*words, "towers.llm=frozen", "vocabulary=120"])})
    (tmp_path / "runs").mkdir()
    model, texts = load_model(str(runs / "tuned" / "model"))
    llm = AutoModelForCausalLM.from_pretrained(one / "zero0" / "model")
    torch.testing.assert_close(text_logits(model.language_model, texts.llm), text_logits(llm, texts.llm))


@pytest.mark.parametrize("name", ["muon", pytest.param("hard", marks=full)])
def test_all_weights_are_trained_and_saved(one, name):
    _ = one / name
    assert losses(one / name)[-1] < losses(one / name)[0]
    assert "0 frozen" in next(
        line for line in (one / name / "run.log").read_text().splitlines() if "trained" in line and "frozen" in line
    )
    model = AutoModelForCausalLM.from_pretrained(one / name / "model")
    assert model.config.model_type == ("smollm3" if name == "muon" else "opt")


# --- what is refused

REFUSED = {
    "towers.llm=frozen": "towers.llm=frozen: a language model is trained whole; set towers.llm=full",
    "model.qformer=bert": "model.qformer=bert: a language model is trained on data.text alone",
    "data.train=[vqav2]": "data.train=['vqav2']: a language model is trained on data.text alone",
    "benchmarks=[easy_vqa]": "evaluation.benchmarks=['easy_vqa']: a language model is trained on data.text alone",
    "rates={llm: 0.1}": "training.rates={'llm': 0.1}: a language model is trained on data.text alone",
    "zero_stage=3": "training.zero_stage=3: a language model is trained under ZeRO 0 to 2",
    "data.text=null": "python -m instructkit.world.text --out FILE writes the mini-world's text",
    "data.text=nowhere/text.jsonl": "data.text=nowhere/text.jsonl: no such file; python -m instructkit.world.text "
    "--out nowhere/text.jsonl writes the mini-world's text",
    "model.llm=T5": "model.llm=T5: a t5 has an encoder; name a causal LLM",
    "model.llm=OPT": "data.text_tokens=24: the LLM has 16 positions; set no more",
}


def test_settings_that_cannot_be_honoured_are_named(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llms")
    llms = {"T5": write_llm(folder / "t5", "t5"), "OPT": write_llm(folder / "opt", "opt", max_position_embeddings=16)}
    runs = {}
    for number, word in enumerate(REFUSED):
        name, _, value = word.partition("=")
        runs[f"refused-{number}"] = [*words, f"{name}={llms.get(value, value)}"]
    folder = tmp_path_factory.mktemp("refused")
    started = Runs(folder, {name: (1, settings) for name, settings in runs.items()})
    for number, message in enumerate(REFUSED.values()):
        for name, place in llms.items():
            message = message.replace(f"model.llm={name}", f"model.llm={place}")
        assert message in (started / f"refused-{number}" / "error-0.txt").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b'{"text": "a"}\nno json\n', r"text\.jsonl, line 2: no document"),
        (b'{"text": "a"}\n\n{"text": "b"}\n', r"text\.jsonl, line 2: no document"),
        (b'{"words": "a"}\n', r"line 1: no document, .*`text`"),
        (b'{"text": 7}\n', "line 1: no document"),
        (b'{"text": "a"}\n{"text": " "}\n', "line 2: its text is empty"),
        (b'{"text": "\xff"}\n', "line 1: no document"),
        (b'{"text": "a b", "told": [1]}\n', "line 1: no document"),
        (b'{"text": "a b", "told": [[1, 4]]}\n', r"line 1: told=\[\(1, 4\)\] are no ranges of its 3 characters"),
        (b'{"text": "a b c", "told": [[3, 5], [1, 3]]}\n', "line 1: told=.* one behind the other"),
        (b'{"text": "a b c", "told": [[2, 1]]}\n', "line 1: told=.* are no ranges"),
    ],
)
def test_a_line_that_is_no_document_is_named(tmp_path, content, message):
    path = tmp_path / "text.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_documents(path)


def test_no_other_recipe_reads_a_text():
    with pytest.raises(UserError, match=r"data\.text=a is for recipes/pretrain_text\.py alone"):
        load_config(CONFIGS / "world.yaml", ["data.text=a"])
    words: list[Any] = launch_command(["text_world"])
    assert Path(words[words.index("--config") - 1]).name == "pretrain_text.py"
