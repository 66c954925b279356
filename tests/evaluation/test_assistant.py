"""A model that is asked: the same answers as an evaluation's, as transformers', whatever a photo comes as."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from instructkit.data.dataset import load_examples
from instructkit.data.examples import Example
from instructkit.data.media import load_frames, load_image
from instructkit.errors import UserError
from instructkit.evaluation.assistant import Model, load_model
from instructkit.evaluation.benchmark import load_vocabulary
from instructkit.evaluation.responses import Response, ResponseLog
from instructkit.evaluation.run import benchmark_folder
from instructkit.models.batches import Picture, Texts, decode
from instructkit.prompts.protocols import load_protocol
from instructkit.prompts.templates import Prompt
from instructkit.runs.ranks import Ranks
from tests.evaluation.world import World
from tests.matrix import mostly_full
from tests.sources.clips import write_video
from tests.tiny import tiny_model

QUESTION = "what color is the shape?"


@pytest.fixture(scope="module")
def model(world: World) -> Model:
    return load_model(world.model(), device="cpu")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def greedy(model: Model, texts: Texts, photo: Path, question: str, most: int) -> str:
    """The answer by transformers' own forward, the whole row anew for each token."""
    net = model.model
    encoded = texts.encode([Prompt("", "", question)])
    rows = texts.prefixes(encoded, [1])
    pixels = decode([Picture(photo)], net.config.vision_config.image_size)
    ids = rows["input_ids"]
    new: list[int] = []
    with torch.no_grad():
        while len(new) < most and texts.llm.eos_token_id not in new:
            out = super(type(net), net).forward(
                pixel_values=pixels,
                qformer_input_ids=rows["qformer_input_ids"],
                qformer_attention_mask=rows["qformer_attention_mask"],
                input_ids=torch.cat([ids, torch.tensor([new], dtype=torch.long)], 1) if new else ids,
            )
            new.append(int(out.logits[0, -1].argmax()))
    return str(texts.llm.decode(new, skip_special_tokens=True)).strip()


def test_an_answer_is_the_greedy_one(model: Model, photo: Path) -> None:
    expected = greedy(model, model.tokens, photo, QUESTION, 8)
    assert expected
    assert model.ask(photo, QUESTION, max_new_tokens=8) == expected
    assert model.ask(str(photo), QUESTION, max_new_tokens=8) == expected


def test_a_photo_may_come_as_anything(model: Model, photo: Path, tmp_path: Path) -> None:
    expected = model.rank(photo, QUESTION, ["red", "green", "blue"])
    image = load_image(photo)
    for shown in (image, np.asarray(image), photo.read_bytes(), str(photo)):
        assert model.rank(shown, QUESTION, ["red", "green", "blue"]) == expected
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(turned, exif=exif)
    assert model.rank(Image.open(turned), QUESTION, ["red", "green"]) == model.rank(turned, QUESTION, ["red", "green"])


def test_lists_are_answered_one_by_one(model: Model, photo: Path) -> None:
    other = Image.new("RGB", (9, 9), "red")
    questions = [QUESTION, "is there a triangle?", "Describe the image briefly."]
    alone = [model.ask(photo, question, max_new_tokens=5) for question in questions]
    assert len(set(alone)) > 1
    assert model.ask(photo, questions, max_new_tokens=5, batch_size=2) == alone
    assert model.ask([photo, photo, photo], questions, max_new_tokens=5) == alone
    mixed = model.rank([photo, other, [photo, other]], [QUESTION] * 3, ["red", "blue"])
    for found, shown in zip(mixed, (photo, other, [photo, other]), strict=True):
        assert dict(found) == pytest.approx(dict(model.rank(shown, QUESTION, ["red", "blue"])), abs=1e-5)
    assert len({round(dict(each)["red"], 3) for each in mixed}) == 3


def test_a_film_is_asked_by_four_of_its_frames(model: Model, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    write_video(film)
    frames = decode([Picture(film, number, 4) for number in range(4)], 64)
    assert frames.shape[0] == 4
    assert model.rank(film, QUESTION, ["red", "blue"]) == model.rank(load_frames(film, 4), QUESTION, ["red", "blue"])


@pytest.mark.parametrize("llm", ["llama", "t5"])
def test_ranks_are_log_probabilities(world: World, photo: Path, llm: str) -> None:
    model = load_model(world.model(llm), device="cpu")
    found = model.rank(photo, QUESTION, ["yes", "no", "red circle"])
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    net, texts = model.model, model.tokens
    rows = texts.prefixes(texts.encode([Prompt("", "", QUESTION)]), [1])
    pixels = decode([Picture(photo)], net.config.vision_config.image_size)
    for text, score in found:
        (ids,) = texts.encode_answers([text])
        inputs = {
            "pixel_values": pixels,
            "qformer_input_ids": rows["qformer_input_ids"],
            "qformer_attention_mask": rows["qformer_attention_mask"],
        }
        with torch.no_grad():
            if texts.decoder_only:
                whole = torch.cat([rows["input_ids"], torch.tensor([ids])], 1)
                logits = super(type(net), net).forward(input_ids=whole, **inputs).logits[0, -len(ids) - 1 : -1]
            else:
                ids = [*ids, texts.llm.eos_token_id]
                start = torch.tensor([[0, *ids[:-1]]])
                logits = (
                    super(type(net), net)
                    .forward(input_ids=rows["input_ids"], decoder_input_ids=start, **inputs)
                    .logits[0]
                )
        expected = logits.log_softmax(-1)[range(len(ids)), ids].sum()
        assert score == pytest.approx(float(expected), abs=1e-4)
    mean = dict(model.rank(photo, QUESTION, ["red circle"], score="mean"))["red circle"]
    tokens = len(texts.encode_answers(["red circle"])[0]) + (not texts.decoder_only)
    assert mean == pytest.approx(dict(found)["red circle"] / tokens, abs=1e-4)


def test_all_candidates_come_back(model: Model, photo: Path) -> None:
    candidates = [f"a {word} {number}" for word in ("red", "blue", "green") for number in range(50)]
    assert {text for text, _ in model.rank(photo, QUESTION, candidates)} == set(candidates)


def test_the_stream_is_the_answer(model: Model, photo: Path) -> None:
    pieces: list[str] = []
    answer = model.ask(photo, QUESTION, max_new_tokens=20, stream=pieces.append)
    assert "".join(pieces) == answer == model.ask(photo, QUESTION, max_new_tokens=20)
    assert len(pieces) > 1


def scores_of(ranked: list[tuple[str, float]]) -> list[float]:
    return [score for _, score in ranked]


def benchmarked(world: World, name: str, out: Path) -> list[Response]:
    world.benchmark(name)
    world.evaluate(name, out, limit=12)
    log = ResponseLog(benchmark_folder(out, name), Ranks())
    return log.responses(answer.example for answer in log.answers())


@pytest.mark.parametrize(
    "name",
    mostly_full(
        ["okvqa", "nocaps", "vqav2", "visdial", "hatefulmemes", "vsr", "scienceqa", "msvd_qa"],
        *("okvqa", "nocaps", "visdial", "hatefulmemes", "msvd_qa"),
    ),
)
def test_a_protocol_gives_the_answers_of_an_evaluation(model: Model, world: World, tmp_path: Path, name: str) -> None:
    responses = benchmarked(world, name, tmp_path)
    protocol = load_protocol(name)
    examples = load_examples(world.data / protocol.source / protocol.split)
    by_id = {example.id: example for example in examples}
    root = Path(examples.manifest.media_root)
    candidates = None
    if protocol.vocabulary is not None:
        candidates = load_vocabulary(protocol, world.data)
    assert responses
    for response in responses:
        example = by_id[response.example]
        shown = [root / path for path in ([example.video] if example.video else example.images)]
        read = {*protocol.compiled.fields, "start", "end", *(["choices"] if protocol.candidates == "choices" else [])}
        asked = Example(id="", **{field: getattr(example, field) for field in read})
        assert model.ask(shown, asked, protocol=name, candidates=candidates) == response.text
        if protocol.mode == "rank":
            ranked = model.rank(shown, asked, candidates, protocol=name)[:100]
            assert [text for text, _ in ranked] == [text for text, _ in response.ranked]
            assert scores_of(ranked) == pytest.approx(scores_of(response.ranked), abs=1e-4)


def test_plain_words_go_where_the_protocol_has_its_line(model: Model, world: World, photo: Path) -> None:
    for name, field in (("okvqa", "question"), ("hatefulmemes", "context"), ("vsr", "statement")):
        expected = model.ask(photo, Example(id="", **{field: "a red circle"}), protocol=name)
        assert model.ask(photo, "a red circle", protocol=name) == expected


def test_attention_is_what_transformers_gives(model: Model, photo: Path) -> None:
    net, texts = model.model, model.tokens
    found = model.attention(photo, QUESTION)
    side = net.config.vision_config.image_size // net.config.vision_config.patch_size
    assert found.shape == (net.config.num_query_tokens, side, side)
    rows = texts.qformer_rows(texts.encode([Prompt("", "", QUESTION)]))
    net.qformer.set_attn_implementation("eager")
    with torch.no_grad():
        pixels = decode([Picture(photo)], net.config.vision_config.image_size)
        features = net.vision_model(pixel_values=pixels).last_hidden_state
        queries = net.query_tokens
        mask = torch.cat([torch.ones(1, queries.shape[1], dtype=torch.long), rows["qformer_attention_mask"]], 1)
        out = net.qformer(
            query_embeds=queries,
            input_ids=rows["qformer_input_ids"],
            attention_mask=mask,
            encoder_hidden_states=features,
            output_attentions=True,
        )
    net.qformer.set_attn_implementation("sdpa")
    layers = [layer[0].mean(0) for layer in out.cross_attentions]  # [queries, 1 + patches]
    expected = sum(layers) / len(layers)
    torch.testing.assert_close(found.flatten(1), expected[:, 1:])
    assert (found.sum((1, 2)) < 1).all()
    assert (found - model.attention(photo, "is there a triangle?")).abs().max() > 1e-5


def test_an_attention_leaves_the_model_as_it_was(model: Model, photo: Path) -> None:
    before = model.model.qformer.config._attn_implementation
    model.attention(photo, QUESTION)
    assert model.model.qformer.config._attn_implementation == before


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m, p: m.ask("no/such.jpg", QUESTION), "no/such.jpg: no such picture"),
        (lambda m, p: m.ask(b"none", QUESTION), "the photo of the question: not a picture"),
        (lambda m, p: m.ask(np.zeros((3, 3)), QUESTION), r"an array of float64 \[3, 3\]; a picture is uint8"),
        (lambda m, p: m.ask(7, QUESTION), "a int; a photo is a path"),
        (lambda m, p: m.ask([p, 7], [QUESTION] * 2), "the photo of question 2: a int"),
        (lambda m, p: m.ask([], QUESTION), "no photo is given"),
        (lambda m, p: m.ask([p, p], [QUESTION] * 3), "2 photos for 3 questions"),
        (lambda m, p: m.ask(p, []), "no question is given"),
        (lambda m, p: m.ask(p, " "), "no question is given"),
        (lambda m, p: m.ask(p, "why?", protocol="nocaps"), "asks by itself"),
        (lambda m, p: m.ask(p, protocol="vqav3"), "did you mean vqav2"),
        (lambda m, p: m.ask(p, QUESTION, beams=0), "beams=0"),
        (lambda m, p: m.ask(p, QUESTION, min_new_tokens=9, max_new_tokens=3), "min_new_tokens=9"),
        (lambda m, p: m.ask(p, QUESTION, length_penalty=2.0), "set beams"),
        (lambda m, p: m.ask(p, QUESTION, repetition_penalty=0.0), "is above 0"),
        (lambda m, p: m.ask(p, QUESTION, beams=2, stream=print), "one beam"),
        (
            lambda m, p: m.ask(p, "red?", protocol="hatefulmemes", beams=2),
            "ranks candidates, so beams would change nothing",
        ),
        (lambda m, p: m.ask(p, QUESTION, candidates=["a"]), "use rank"),
        (lambda m, p: m.rank(p, QUESTION), "no candidates"),
        (lambda m, p: m.rank(p, QUESTION, "yes"), "candidates are a list of texts"),
        (lambda m, p: m.rank(p, QUESTION, ["yes", " "]), "none of them blank"),
        (lambda m, p: m.rank(p, QUESTION, ["yes"], score="max"), "'sum' or 'mean'"),
        (lambda m, p: m.rank(p, "red", ["yes"], protocol="vsr"), "has candidates of its own"),
        (lambda m, p: m.attention("film.mp4", QUESTION), "not for a video"),
    ],
)
def test_mistakes_are_told_in_one_line(model: Model, photo: Path, ask, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ask(model, photo)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype='int8': there are float32"),
        ({"device": "tpuu"}, "device='tpuu'"),
        ({"device": "cuda:99"}, "this machine has"),
    ],
)
def test_what_a_model_cannot_be_loaded_as(world: World, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(world.model(), **options)


def test_bf16_by_its_short_name(world: World, photo: Path) -> None:
    model = load_model(world.model(), device="cpu", dtype="bf16")
    assert model.dtype == "bfloat16"
    assert all(math.isfinite(score) for _, score in model.rank(photo, QUESTION, ["yes", "no"]))
    assert model.attention(photo, QUESTION).dtype == torch.float32


def test_a_cut_prompt_is_told(photo: Path) -> None:
    net, texts = tiny_model()
    with pytest.warns(UserWarning, match="the question is longer than the Q-Former reads"):
        Model(net, texts).ask(photo, "is there a triangle? " * 40, max_new_tokens=2)


def test_without_the_instruction_in_the_qformer_all_look_alike(photo: Path) -> None:
    net, texts = tiny_model()
    net.config.instruction_aware = False
    model = Model(net, texts)
    torch.testing.assert_close(model.attention(photo, QUESTION), model.attention(photo, "yes no"))


def test_broken_bytes_are_told_by_their_place(model: Model, photo: Path) -> None:
    file = io.BytesIO()
    load_image(photo).save(file, "JPEG")
    with pytest.raises(UserError, match="photo 2 of the question: broken picture"):
        model.ask([photo, file.getvalue()[:300]], QUESTION)
