"""BLIPs in evaluations and in a program's hands: what they answer and find against plain calls and transformers."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipForConditionalGeneration

import instructkit as ik
from instructkit.data.dataset import load_examples
from instructkit.data.examples import Example
from instructkit.errors import UserError
from instructkit.evaluation.benchmark import load_vocabulary
from instructkit.models.batches import Captions, Picture, decode
from instructkit.models.blip import Blip
from instructkit.models.load.blip_tasks import TASKS, open_blip
from instructkit.models.save import export, save_blip
from instructkit.prompts.protocols import load_protocol
from tests.evaluation.test_capfilt_blip import nano
from tests.evaluation.world import World, evaluate_on_two_ranks

PROMPT = "a picture of"


@pytest.fixture(scope="module")
def blip() -> tuple[Blip, Captions]:
    return nano(3)


@pytest.fixture(scope="module")
def places(blip: tuple[Blip, Captions], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A mixture's folder, and of each task that of transformers' class."""
    root = tmp_path_factory.mktemp("blips")
    save_blip(*blip, root / "mixture")
    for task in TASKS:
        export(str(root / "mixture"), root / task, task=task)
    return {name: str(root / name) for name in ("mixture", *TASKS)}


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(path)
    return paths


def answers(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evaluation" / name / "responses.jsonl").read_text().splitlines()]


def pixels_of(model: Blip, paths: Sequence[Path]) -> torch.Tensor:
    return decode([Picture(path) for path in paths], model.config.vision_config.image_size)


def split(world: World, name: str) -> tuple[list[Example], Path]:
    protocol = load_protocol(name)
    folder = world.data / protocol.source / protocol.split
    return list(load_examples(folder)), Path(json.loads((folder / "manifest.json").read_text())["media_root"])


@torch.no_grad()
@pytest.mark.parametrize("name", ["nocaps_blip", "coco_caption_blip"])
def test_captions_are_what_transformers_writes(
    name: str, world: World, blip: tuple[Blip, Captions], places: dict[str, str], tmp_path: Path
) -> None:
    world.benchmark(name)
    world.evaluate(name, tmp_path / "part", model=places["captioning"])
    world.evaluate(name, tmp_path / "whole", model=places["mixture"])
    examples, media = split(world, name)
    theirs = BlipForConditionalGeneration.from_pretrained(places["captioning"]).eval()
    model, captions = blip
    prompt = captions.encode([PROMPT])[0]
    lines = answers(tmp_path / "part", name)
    assert [line["text"] for line in answers(tmp_path / "whole", name)] == [line["text"] for line in lines]
    assert lines
    for line in lines:
        example = next(each for each in examples if each.id == line["example"])
        written = theirs.generate(
            pixel_values=pixels_of(model, [media / example.images[0]]),
            input_ids=torch.tensor(prompt),
            num_beams=3,
            min_new_tokens=5,
            max_new_tokens=20,
        )
        whole = captions.tokenizer.decode(written[0], skip_special_tokens=True)
        assert whole.startswith(PROMPT)
        assert line["text"] == whole.removeprefix(PROMPT).strip()
        assert line["prompt"] == PROMPT


def test_our_folder_is_opened_without_a_warning_of_transformers(
    places: dict[str, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    open_blip(places["mixture"])
    assert "model of type" not in caplog.text


def test_two_ranks_answer_and_find_what_one_does(world: World, places: dict[str, str], tmp_path: Path) -> None:
    names = ("nocaps_blip", "vqav2_blip", "coco_retrieval_blip")
    for name in names:
        world.benchmark(name)
    options = {"model": places["mixture"], "limit": 5, "batch_size": 1}
    evaluate_on_two_ranks(world.settings(",".join(names), tmp_path / "two", **options))
    found = world.evaluate(",".join(names), tmp_path / "one", **options)
    assert [result.benchmark for result in found.results] == list(names)
    results = json.loads((tmp_path / "two" / "evaluation" / "results.json").read_text())["results"]
    assert [result["value"] for result in results] == [result.value for result in found.results]
    for name in names[:2]:
        lines = [{line["example"]: line for line in answers(tmp_path / run, name)} for run in ("one", "two")]
        assert lines[0] == lines[1]


def slow(blip: tuple[Blip, Captions], photo: Path, question: str, answer: str) -> float:
    """Log-likelihood of an answer, alone, without sharing anything."""
    model, captions = blip
    read = captions.rows([question])
    states = model.read_with(model.encode_images(pixels_of(model, [photo])), torch.tensor([0]), **read)
    rows = captions.rows([answer])
    return float(model.score(states, torch.tensor([0]), **rows))


@torch.no_grad()
def test_answers_are_ranked_by_their_likelihood(
    world: World, blip: tuple[Blip, Captions], places: dict[str, str], tmp_path: Path
) -> None:
    name = "vqav2_blip"
    world.benchmark(name)
    protocol = load_protocol(name)
    candidates = load_vocabulary(protocol, world.data)
    assert candidates is not None
    assert len(candidates) > 3
    examples, media = split(world, name)
    world.evaluate(name, tmp_path / "part", model=places["vqa"])
    world.evaluate(name, tmp_path / "whole", model=places["mixture"], batch_size=1)
    one, other = (answers(tmp_path / run, name) for run in ("part", "whole"))
    assert len(one) == len(other) == len(examples) > 2
    for line, again in zip(one, other, strict=True):
        example = next(each for each in examples if each.id == line["example"])
        assert line["prompt"] == protocol.prompt(example).instruction
        scores = [slow(blip, media / example.images[0], line["prompt"], answer) for answer in candidates]
        best = sorted(range(len(scores)), key=lambda number: -scores[number])[:5]
        assert [text for text, _ in line["ranked"][:5]] == [candidates[number] for number in best]
        assert [score for _, score in line["ranked"][:5]] == pytest.approx([scores[n] for n in best], abs=1e-4)
        assert line["text"] == again["text"] == candidates[best[0]]


@torch.no_grad()
def test_answers_are_written_about_the_question(
    world: World, blip: tuple[Blip, Captions], places: dict[str, str], tmp_path: Path
) -> None:
    name = "vqav2_blip_generate"
    world.benchmark(name)
    world.evaluate(name, tmp_path, model=places["vqa"])
    model, captions = blip
    examples, media = split(world, name)
    for line in answers(tmp_path, name):
        example = next(each for each in examples if each.id == line["example"])
        read = captions.rows([line["prompt"]])
        features = model.encode_images(pixels_of(model, [media / example.images[0]]))
        states = model.read_with(features, torch.tensor([0]), **read)
        written = model.generate(states, num_beams=3, max_new_tokens=10)
        assert line["text"] == captions.tokenizer.decode(written[0], skip_special_tokens=True).strip()


@torch.no_grad()
@pytest.mark.parametrize("name", ["coco_retrieval_blip", "flickr30k_retrieval"])
def test_retrieval_scores_pairs_by_logit_and_similarity(
    name: str, world: World, blip: tuple[Blip, Captions], places: dict[str, str], tmp_path: Path
) -> None:
    world.benchmark(name)
    found = world.evaluate(name, tmp_path, model=places["retrieval"])
    assert {"tr_r1", "ir_r1"} <= found.results[0].details.keys()
    model, captions = blip
    captions = Captions(captions.tokenizer, 35)
    examples, media = split(world, name)
    texts = [load_protocol(name).captions(example) for example in examples]
    every = [text for each in texts for text in each]
    owner = torch.tensor([number for number, each in enumerate(texts) for _ in each])
    score = torch.empty(len(examples), len(every))
    for row, example in enumerate(examples):
        features = model.encode_images(pixels_of(model, [media / example.images[0]]))
        for column, text in enumerate(every):
            ids = captions.rows([text])
            likely = model.judge(features, torch.tensor([0]), **ids)[0, 1]
            score[row, column] = likely + (model.embed_images(features)[0, 0] @ model.embed_texts(**ids)[0])
    for row, line in enumerate(answers(tmp_path, name)):
        best = score[row, owner == row].max()
        assert line["prediction"]["text"] == 1 + int((score[row, owner != row] >= best).sum())
        values = score[row].sort(descending=True).values[:10]
        assert [value for _, value in line["ranked"]] == pytest.approx(values.tolist(), abs=1e-4)


# --- what it cannot do


@pytest.mark.parametrize(
    ("task", "benchmark", "said"),
    [
        ("captioning", "vqav2_blip", "a BLIP for captioning, which answers no questions .*: coco_caption_blip, nocaps"),
        ("captioning", "coco_retrieval_blip", "for captioning, which does not compare pictures with texts"),
        ("retrieval", "nocaps_blip", "for retrieval, which writes no captions .*: coco_retrieval, coco_retrieval_blip"),
        ("vqa", "nocaps_blip", "for vqa, which writes no captions .*: vqav2_blip, vqav2_blip_generate$"),
    ],
)
def test_a_benchmark_beyond_a_part_is_one_line(
    task: str, benchmark: str, said: str, world: World, places: dict[str, str], tmp_path: Path
) -> None:
    world.benchmark(benchmark)
    with pytest.raises(UserError, match=rf"^{benchmark}: the model is .*{said}") as told:
        world.evaluate(benchmark, tmp_path, model=places[task])
    assert "\n" not in str(told.value)


def test_of_several_benchmarks_a_part_does_what_it_can(world: World, places: dict[str, str], tmp_path: Path) -> None:
    for name in ("nocaps_blip", "coco_retrieval_blip"):
        world.benchmark(name)
    found = world.evaluate("nocaps_blip,coco_retrieval_blip", tmp_path, model=places["retrieval"])
    assert [each.benchmark for each in found.results] == ["coco_retrieval_blip"]
    assert "writes no captions" in found.not_evaluated[0].reason


# --- in a program's hands


@torch.no_grad()
def test_it_answers_continues_ranks_and_embeds(
    blip: tuple[Blip, Captions], places: dict[str, str], photos: list[Path]
) -> None:
    whole, captioner = (ik.load_model(places[name], device="cpu") for name in ("mixture", "captioning"))
    model, captions = blip
    features = model.encode_images(pixels_of(model, photos[:1]))
    read = captions.rows(["is there a triangle?"])
    written = model.generate(model.read_with(features, torch.tensor([0]), **read), max_new_tokens=8)
    said = captions.tokenizer.decode(written[0], skip_special_tokens=True).strip()
    assert whole.ask(photos[0], "is there a triangle?", max_new_tokens=8) == said
    pieces: list[str] = []
    assert whole.ask(photos[0], "is there a triangle?", max_new_tokens=8, stream=pieces.append) == said
    assert "".join(pieces) == said
    given = torch.tensor(captions.encode([PROMPT])[0])[:, :-1]
    written = model.generate(features, given, max_new_tokens=8)
    goes_on = captions.tokenizer.decode(written[0, given.shape[1] :], skip_special_tokens=True).strip()
    assert captioner.ask(photos[0], PROMPT, max_new_tokens=8) == goes_on
    caption = captioner.ask(photos[0], protocol="nocaps_blip")
    assert caption == whole.ask(photos[0], protocol="nocaps_blip")
    asked = ["is there a triangle?", "what?"]
    alone = [whole.ask(photos[1], each, beams=3, max_new_tokens=6) for each in asked]
    assert whole.ask(photos[1], asked, beams=3, max_new_tokens=6) == alone
    words = ["yes", "no", "a red circle"]
    ranked = whole.rank(photos[0], "is there a triangle?", words)
    scores = {word: slow(blip, photos[0], "is there a triangle?", word) for word in words}
    assert dict(ranked) == pytest.approx(scores, abs=1e-4)
    assert [word for word, _ in ranked] == sorted(words, key=lambda word: -scores[word])
    for score in ("sum", "mean"):
        for word, value in captioner.rank(photos[0], PROMPT, words, score=score):
            rows = captions.rows([f"{PROMPT} {word}"])
            likely = float(model.score(features, torch.tensor([0]), **rows, prompt=given.shape[1]))
            tokens = rows["input_ids"].shape[1] - given.shape[1]
            assert value == pytest.approx(likely / (tokens if score == "mean" else 1), abs=1e-4)
    found = ik.load_model(places["retrieval"], device="cpu").embed(images=photos, texts=words)
    plain = (
        model.embed_images(model.encode_images(pixels_of(model, photos)))[:, 0]
        @ model.embed_texts(**captions.rows(words)).T
    )
    torch.testing.assert_close(found.similarity, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole.embed(images=photos, texts=words).similarity, plain, rtol=0, atol=1e-5)


def test_what_does_not_fit_is_one_line(places: dict[str, str], photos: list[Path]) -> None:
    models = {name: ik.load_model(place, device="cpu") for name, place in places.items()}
    calls: list[tuple[Any, str]] = [
        (
            lambda: models["retrieval"].ask(photos[0], "what?"),
            "for retrieval, which has no decoder and answers nothing",
        ),
        (lambda: models["captioning"].embed(texts="a"), "for captioning, which embeds nothing"),
        (lambda: models["captioning"].ask(photos[0], "what?", protocol="vqav2_blip_generate"), "answers no questions"),
        (lambda: models["vqa"].ask(photos[0], protocol="nocaps_blip"), "for vqa, which writes no captions"),
        (lambda: models["mixture"].attention(photos[0], "what?"), "has no queries"),
        (lambda: models["mixture"].ask([photos], ["what?"]), "has 3 pictures or frames, and a BLIP looks at one"),
        (lambda: models["mixture"].ask(photos[0], "red " * 600), "that the BLIP reads"),
    ]
    for call, said in calls:
        with pytest.raises(UserError, match=said) as told:
            call()
        assert "\n" not in str(told.value)


def test_a_model_in_memory_is_evaluated(world: World, places: dict[str, str], tmp_path: Path) -> None:
    for name in ("nocaps_blip", "coco_retrieval_blip"):
        world.benchmark(name)
    model = ik.load_model(places["mixture"], device="cpu")
    found = ik.evaluate(
        model, ["nocaps_blip", "coco_retrieval_blip"], data=world.data, out=tmp_path, say=lambda _: None
    )
    assert found.scores.keys() == {"nocaps_blip", "coco_retrieval_blip"}
    found.report(tmp_path)
    assert "BLIP ViT-B 14M, finetuned" in (tmp_path / "report" / "report.md").read_text()
