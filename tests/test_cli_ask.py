"""`instructkit ask`, `chat`, `export` and the lists, as a user starts them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import InstructBlipForConditionalGeneration, InstructBlipProcessor
from typer.testing import CliRunner

from instructkit.cli import app
from instructkit.config.read import config_names, find_config
from instructkit.config.settings import ModelConfig, TowersConfig
from instructkit.data.dataset import load_examples
from instructkit.data.examples import Example, Turn
from instructkit.errors import UserError
from instructkit.evaluation.assistant import Model, load_model
from instructkit.models.load.join import join
from instructkit.models.load.new_tokenizers import train_llm_tokenizer, train_qformer_tokenizer
from instructkit.models.load.trained import save_trained
from instructkit.models.save import load_model as load_parts
from instructkit.models.save import save_model
from instructkit.models.towers import prepare_towers
from instructkit.prompts.protocols import benchmarks, load_protocol
from instructkit.prompts.templates import train_templates
from tests.evaluation.world import World
from tests.models.checkpoints import write_vision
from tests.tiny import SENTENCES

QUESTION = "what color is the shape?"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def model(world: World) -> Model:
    return load_model(world.model(), device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "more/c.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.fixture
def run(world: World) -> Run:
    """A command in this process: exit code, console, standard error; a mistake is its line."""

    def run(*words: object, typed: str | None = None) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, [*map(str, words)], input=typed)
        if isinstance(done.exception, UserError):
            return 2, done.stdout, str(done.exception)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stdout, done.stderr

    return run


def test_one_question(run: Run, world: World, model: Model, photos: Path) -> None:
    asked = ["ask", photos / "a.png", QUESTION, "--model", world.model(), "--max-new-tokens", 8]
    answer = model.ask(photos / "a.png", QUESTION, max_new_tokens=8)
    assert run(*asked)[:2] == (0, answer + "\n")
    code, out, _ = run(*asked, "--json")
    assert (code, json.loads(out)) == (0, {"id": "the question", "prompt": QUESTION, "answer": answer})
    beams = model.ask(photos / "a.png", QUESTION, max_new_tokens=8, beams=3)
    assert run(*asked, "--beams", 3)[1] == beams + "\n"
    both = model.ask([photos / "a.png", photos / "b.jpg"], QUESTION, max_new_tokens=8)
    assert run("ask", photos / "a.png", photos / "b.jpg", *asked[2:])[1] == both + "\n"


def test_candidates_are_ranked(run: Run, world: World, model: Model, photos: Path) -> None:
    asked = ["ask", photos / "a.png", QUESTION, "--model", world.model(), "--candidates", "red, blue,green"]
    ranked = model.rank(photos / "a.png", QUESTION, ["red", "blue", "green"])
    code, out, _ = run(*asked)
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [[f"{score:.4f}", text] for text, score in ranked]
    found = json.loads(run(*asked, "--json")[1])
    assert found["answer"] == ranked[0][0]
    assert [tuple(each) for each in found["ranked"]] == ranked


def test_a_folder_gives_csv_a_line_a_photo(run: Run, world: World, model: Model, photos: Path, tmp_path: Path) -> None:
    (photos / "notes.txt").write_text("no photo")
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:300])
    out = tmp_path / "answers.csv"
    code, _, told = run("ask", photos, QUESTION, "--model", world.model(), "--max-new-tokens", 4, "--out", out)
    rows = list(csv.DictReader(out.open(newline="")))
    names = ["a.png", "b.jpg", "broken.png", "more/c.png"]
    assert [row["id"] for row in rows] == names
    for row in rows:
        if row["id"] != "broken.png":
            assert row["answer"] == model.ask(photos / row["id"], QUESTION, max_new_tokens=4)
            assert (row["prompt"], row["error"]) == (QUESTION, "")
    assert "broken.png: broken picture" in rows[2]["error"]
    assert code == 1
    assert "1 files that are no photos are left out" in told
    assert "1 of 4 have no answer, the first: " in told


def test_lines_give_json_lines(run: Run, world: World, model: Model, photos: Path, tmp_path: Path) -> None:
    lines = [
        {"image": "a.png", "instruction": QUESTION, "id": 7},
        {"images": ["a.png", "b.jpg"], "question": "is there a triangle?", "camera": "old", "answer": "no"},
        {"image": "b.jpg"},
    ]
    file = photos / "asked.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    words = ["ask", file, "Describe.", "--model", world.model(), "--max-new-tokens", 4, "--json"]
    code, out, told = run(*words)
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [each["id"] for each in found] == ["7", "line 2", "line 3"]
    assert [each["answer"] for each in found] == [
        model.ask(photos / "a.png", QUESTION, max_new_tokens=4),
        model.ask([photos / "a.png", photos / "b.jpg"], "is there a triangle?", max_new_tokens=4),
        model.ask(photos / "b.jpg", "Describe.", max_new_tokens=4),
    ]
    assert "keys that are not read: answer (1 lines), camera (1 lines)" in told
    assert run("ask", file, *words[3:])[2].startswith(f"{file}, line 3: ")


@pytest.mark.parametrize("name", ["okvqa", "visdial", "hatefulmemes", "msvd_qa", "nocaps"])
def test_a_protocol_gives_the_answers_of_an_evaluation(run: Run, world: World, tmp_path: Path, name: str) -> None:
    """What `evaluate` writes of a split, and what `ask` says about lines of its fields without the replies."""
    world.benchmark(name)
    world.evaluate(name, tmp_path / "run", limit=6)
    lines = (tmp_path / "run" / "evaluation" / name / "responses.jsonl").read_text().splitlines()
    responses = [json.loads(line) for line in lines]
    protocol = load_protocol(name)
    examples = load_examples(world.data / protocol.source / protocol.split)
    root = Path(examples.manifest.media_root)
    by_id = {example.id: example for example in examples}
    read = {*protocol.compiled.fields, *(["choices"] if protocol.candidates == "choices" else [])}
    rows = []
    for response in responses:
        example = by_id[response["example"]]
        row = {field: getattr(example, field) for field in read if getattr(example, field)}
        if "history" in row:
            row["history"] = [{"question": turn.question, "answer": turn.answer} for turn in example.history]
        media = (
            {"video": str(root / example.video)}
            if example.video
            else {"images": [str(root / i) for i in example.images]}
        )
        rows.append({"id": example.id, **media, **row})
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, told = run("ask", file, "--model", world.model(), "--protocol", name, "--data", world.data, "--json")
    assert code == 0, told
    found = [json.loads(line) for line in out.splitlines()]
    assert [each["prompt"] for each in found] == [each["prompt"] for each in responses]
    assert [each["answer"] for each in found] == [each["text"] for each in responses]
    for mine, theirs in zip(found, responses, strict=True):
        ranked = mine.get("ranked", [])[:100]
        assert [text for text, _ in ranked] == [text for text, _ in theirs.get("ranked", [])]
        assert [score for _, score in ranked] == pytest.approx([s for _, s in theirs.get("ranked", [])], abs=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.png"], "a question is missing"),
        (["a.png", "b.jpg"], "b.jpg: a question is missing; it comes last"),
        (["none.png", QUESTION], "none.png: no such file or folder"),
        (["a.png", "more", QUESTION], "more: a folder or a .jsonl file is asked about alone"),
        (["a.png", QUESTION, "--protocol", "vqav3"], "did you mean vqav2"),
        (["a.png", QUESTION, "--protocol", "msvd_qa"], "give --data"),
        (["a.png", QUESTION, "--candidates", "yes,,no"], "none of them blank"),
        (
            ["a.png", QUESTION, "--candidates", "yes,no", "--beams", "2"],
            "ranks candidates, so beams would change nothing",
        ),
        (["a.png", QUESTION, "--dtype", "int8"], "dtype='int8'"),
        (["a.png", QUESTION, "--model", "no/model"], "no/model"),
        (["more", QUESTION, "--protocol", "scienceqa"], "c.png: no candidates are given"),
        (["empty", QUESTION], "no picture or video in this folder or below"),
        (["bad.jsonl"], "bad.jsonl, line 2: "),
        (["unasked.jsonl"], "unasked.jsonl, line 1: .*no question is given"),
        (["twice.jsonl"], "2 lines have the id '1'"),
        (["blind.jsonl"], "blind.jsonl, line 1: .*no photo is given"),
    ],
)
def test_mistakes_are_told_in_one_line(
    run: Run, world: World, photos: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(photos)
    (photos / "empty").mkdir()
    asked = json.dumps({"image": "a.png", "question": "why?", "id": 1})
    (photos / "bad.jsonl").write_text(f"{asked}\n{{\n")
    (photos / "unasked.jsonl").write_text('{"image": "a.png"}\n')
    (photos / "twice.jsonl").write_text(f"{asked}\n{asked}\n")
    (photos / "blind.jsonl").write_text('{"question": "why?"}\n')
    model = [] if "--model" in words else ["--model", world.model()]
    code, _, told = run("ask", *words, *model)
    assert code != 0
    assert message.partition(".*")[0] in told
    assert message.rpartition(".*")[2] in told
    assert len(told.strip().splitlines()) == 1


def test_a_chat_puts_its_history_in_front(run: Run, world: World, model: Model, photos: Path) -> None:
    code, out, told = run("chat", photos / "a.png", "--model", world.model(), typed=f"{QUESTION}\n\nand why?\n")
    wording = train_templates("llava").templates[0]
    first = model.ask(photos / "a.png", QUESTION)
    asks = Example(id="", question=f"{QUESTION} {first} and why?")
    second = model.ask(photos / "a.png", asks)
    assert code == 0
    assert out.strip("\n").splitlines() == [line for text in (first, second) for line in text.splitlines() or [""]]
    assert wording.instruction in told
    assert "as_it_is of templates/train/llava.yaml" in told
    again = Example(id="x", question="and why?", history=[Turn(QUESTION, first)])
    rendered = train_templates("llava").wordings[0].instruction.render(again)
    assert rendered == asks.question


@pytest.mark.parametrize("llm", ["llama", "t5"])
def test_an_export_opens_in_transformers(run: Run, world: World, photos: Path, tmp_path: Path, llm: str) -> None:
    """A LoRA that a run trained, merged: plain transformers says what the trained part on its base says."""
    base = world.model(llm)
    net, tokens = load_parts(str(base))
    towers = TowersConfig(vision="frozen", qformer="full", llm="lora", lora_rank=2)
    prepare_towers(net, towers, 0)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if ".lora_" in name:
                weight.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    state = {name: weight.detach().clone() for name, weight in net.named_parameters() if weight.requires_grad}
    save_trained(tmp_path / "trained", net, state, ModelConfig(name=str(base)), towers, tokens)
    code, out, told = run("export", tmp_path / "trained", tmp_path / "whole")
    assert code == 0, told
    assert "InstructBlipForConditionalGeneration" in out
    trained = load_model(tmp_path / "trained", device="cpu")
    plain = InstructBlipForConditionalGeneration.from_pretrained(tmp_path / "whole").eval()
    processor = InstructBlipProcessor.from_pretrained(tmp_path / "whole")
    inputs = processor(images=Image.open(photos / "a.png"), text=QUESTION, return_tensors="pt")
    answer = trained.ask(photos / "a.png", QUESTION, max_new_tokens=6)
    assert answer != load_model(base, device="cpu").ask(photos / "a.png", QUESTION, max_new_tokens=6)
    made = plain.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=6)
    text = processor.batch_decode(made, skip_special_tokens=True)[0].strip()
    assert text.removeprefix(QUESTION).strip() == answer
    assert run("export", tmp_path / "trained", tmp_path / "whole")[0] == 2


def test_an_export_with_another_familys_encoder_says_who_opens_it(run: Run, tmp_path: Path) -> None:
    write_vision(tmp_path / "clip", "clip")
    settings = ModelConfig(vision=str(tmp_path / "clip"))
    net, tokens = join(
        settings, torch.float32, lambda: (train_llm_tokenizer(SENTENCES, 400), train_qformer_tokenizer(SENTENCES, 120))
    )
    save_model(net, tokens, tmp_path / "joined")
    code, out, told = run("export", tmp_path / "joined", tmp_path / "whole", "--dtype", "bfloat16")
    assert code == 0, told
    assert "instructkit alone opens it (ik.load_model)" in out
    model = load_model(tmp_path / "whole", device="cpu")
    photo = Image.new("RGB", (9, 9), "red")
    assert model.rank(photo, QUESTION, ["red", "blue"])
    assert model.attention(photo, QUESTION).shape[1:] == (2, 2)  # pictures of 16 pixels in patches of 8
    assert run("export", tmp_path / "joined", tmp_path / "more", "--dtype", "int8")[0] == 2


def test_configs_and_benchmarks_are_listed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = run("configs")[1].splitlines()[2:]
    assert [line.split()[0] for line in listed] == list(config_names())
    assert any("on two CPU cores" in line for line in listed)
    listed = run("benchmarks")[1].splitlines()[2:]
    assert [line.split()[0] for line in listed] == benchmarks()
    (tmp_path / "recipes" / "configs").mkdir(parents=True)
    (tmp_path / "recipes" / "configs" / "mine.yaml").write_text("# Mine alone. Not yours.\nseed: 1\n")
    monkeypatch.chdir(tmp_path)
    assert "Mine alone  " in run("configs")[1]
    assert find_config("mine") == Path("recipes/configs/mine.yaml")
    assert find_config("easy_vqa").is_file()
    with pytest.raises(UserError, match="did you mean easy_vqa"):
        find_config("easy_vqq")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script(run: Run, shell: str) -> None:
    code, out, _ = run("completion", shell)
    assert code == 0
    assert "_INSTRUCTKIT_COMPLETE" in out
    assert "instructkit" in out
    assert run("completion", "tcsh")[0] == 2


def test_bash_completes_commands_and_benchmarks(run: Run, tmp_path: Path) -> None:
    """The script in a real bash: what it offers behind `instructkit as` and behind `--protocol ok`."""
    command = tmp_path / "instructkit"
    command.write_text(f"#!{sys.executable}\nfrom instructkit.cli import main\nmain()\n")
    command.chmod(0o755)
    (tmp_path / "script").write_text(run("completion", "bash")[1])
    ask = """
        source "$1"; COMP_WORDS=($2); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _instructkit_completion instructkit
        echo "${COMPREPLY[@]}"
    """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for line, offered in (("instructkit as", "ask"), ("instructkit ask --protocol hat", "hatefulmemes")):
        done = subprocess.run(
            ["bash", "-c", ask, "bash", tmp_path / "script", line], capture_output=True, text=True, env=environment
        )
        assert done.stdout.split() == [offered], done.stderr
