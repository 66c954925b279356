"""BLIP-2 asked and ranked here: what transformers' own class and processor say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessorPil
from typer.testing import CliRunner

import instructkit as ik
from instructkit.cli import app
from instructkit.config.settings import ModelConfig, RunConfig
from instructkit.data.media import CLIP_MEAN, CLIP_STD
from instructkit.errors import UserError
from instructkit.models.load import lavis
from instructkit.models.load.new_tokenizers import train_llm_tokenizer
from instructkit.models.resolution import set_image_size
from instructkit.models.save import load_model
from instructkit.prompts.templates import Prompt
from instructkit.training.model import prepare_model
from tests.evaluation.world import World
from tests.models.checkpoints import write_blip2
from tests.tiny import SENTENCES

QUESTIONS = ["Question: is there a triangle? Answer:", "a photo of", "what color is the shape?"]
WORDS = ["yes", "a red circle", "blue"]
LLMS = ["opt", "t5", "llama"]


def line_break() -> int:
    (token,) = train_llm_tokenizer(SENTENCES, 400)("\n", add_special_tokens=False)["input_ids"][-1:]
    return int(token)


def photo(path: Path, seed: int = 0) -> Path:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(path)
    return path


def processor_of(folder: Path) -> Blip2Processor:
    images = BlipImageProcessorPil(
        size={"height": 16, "width": 16}, image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD)
    )
    return Blip2Processor(images, train_llm_tokenizer(SENTENCES, 400), num_query_tokens=4)


@pytest.mark.parametrize("llm", LLMS)
@torch.no_grad()
def test_answers_of_transformers(llm: str, tmp_path: Path) -> None:
    folder = write_blip2(tmp_path / "blip2", llm=llm)
    plain, processor = Blip2ForConditionalGeneration.from_pretrained(folder).eval(), processor_of(folder)
    model = ik.load_model(folder)
    assert not model.model.instruction_aware
    answers = set()
    for seed, question in enumerate(QUESTIONS):
        picture = photo(tmp_path / f"{seed}.png", seed)
        inputs = processor(images=Image.open(picture), text=question, return_tensors="pt")
        for beams in (1, 3):
            settings = {"num_beams": beams, "max_new_tokens": 8, "do_sample": False}
            ids = plain.generate(**inputs, **settings, length_penalty=-1.0 if beams > 1 else None)[0]
            if llm != "t5":
                ids = ids[inputs["input_ids"].shape[1] :]
            said = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
            penalty = {"length_penalty": -1.0} if beams > 1 else {}
            assert model.ask(picture, question, beams=beams, max_new_tokens=8, **penalty) == said
            answers.add(said)
    assert len(answers) > 2


@pytest.mark.parametrize("llm", LLMS)
@torch.no_grad()
def test_ranks_by_the_log_probabilities_of_transformers(llm: str, tmp_path: Path) -> None:
    folder = write_blip2(tmp_path / "blip2", llm=llm)
    plain, processor = Blip2ForConditionalGeneration.from_pretrained(folder).eval(), processor_of(folder)
    picture = photo(tmp_path / "photo.png")
    scores = {}
    for word in WORDS:
        inputs = processor(images=Image.open(picture), text=QUESTIONS[0], return_tensors="pt")
        target = processor.tokenizer(" " + word, add_special_tokens=False, return_tensors="pt")["input_ids"]
        if llm == "t5":
            target = torch.cat([target, torch.tensor([[2]])], dim=1)
            start = torch.cat([torch.tensor([[0]]), target[:, :-1]], dim=1)
            logits = plain(**inputs, decoder_input_ids=start).logits[0]
        else:
            ids = torch.cat([inputs["input_ids"], target], dim=1)
            whole = plain(pixel_values=inputs["pixel_values"], input_ids=ids).logits[0]
            logits = whole[-target.shape[1] - 1 : -1]
        scores[word] = logits.log_softmax(-1).gather(1, target[0, :, None]).sum().item()
    found = dict(ik.load_model(folder).rank(picture, QUESTIONS[0], WORDS))
    assert found == pytest.approx(scores, abs=1e-4)
    assert len({round(score, 2) for score in scores.values()}) == len(WORDS)


@torch.no_grad()
def test_logits_are_those_of_transformers(tmp_path: Path) -> None:
    for llm in LLMS:
        folder = write_blip2(tmp_path / llm, llm=llm)
        plain = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
        model, texts = load_model(str(folder))
        inputs = dict(processor_of(folder)(Image.open(photo(tmp_path / "a.png")), QUESTIONS[0], return_tensors="pt"))
        more = {"decoder_input_ids": torch.tensor([[0, 9, 8]])} if llm == "t5" else {}
        expected = plain(**inputs, **more).logits
        soft = model.query_images(
            model.encode_images(inputs["pixel_values"]), torch.tensor([0]), torch.tensor([0]), None, None
        )
        embeds = model.embed(inputs["input_ids"], soft)
        ours = model.eval().language_model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], **more).logits
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
        assert texts.qformer is None
        assert texts.image_token == plain.config.image_token_index


def test_an_answer_ends_where_the_llms_configuration_says(tmp_path: Path) -> None:
    """BLIP-2's OPT ends answers with a line break; the tokeniser's own end token is another."""
    folder = write_blip2(tmp_path / "blip2", end=line_break())
    model, texts = load_model(str(folder))
    assert texts.end == line_break() != texts.llm.eos_token_id
    with torch.no_grad():  # whatever it reads, the line break is all it writes
        model.language_model.get_output_embeddings().weight.zero_()
        model.language_model.get_output_embeddings().weight[line_break()] = 1
        model.language_model.get_decoder().final_layer_norm.weight.zero_()
        model.language_model.get_decoder().final_layer_norm.bias.fill_(1)
    assert ik.Model(model, texts).ask(photo(tmp_path / "a.png"), QUESTIONS[0], max_new_tokens=4) == ""
    assert texts.encode([Prompt("a/b/0", "t", "what?", "blue", ["0"])])[0].answer[-1] == line_break()
    _, plain = load_model(str(write_blip2(tmp_path / "plain")))
    assert plain.end == plain.llm.eos_token_id


def lavis_encoder(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """BLIP's ViT under the names that LAVIS's has."""
    found = {}
    for name, tensor in state.items():
        if name.startswith("post_layernorm."):
            continue
        name = re.sub(r"^encoder\.layers\.(\d+)\.", r"blocks.\1.", name).replace("layer_norm", "norm")
        name = name.replace("self_attn.projection", "attn.proj").replace("self_attn.", "attn.")
        name = name.replace("embeddings.patch_embedding", "patch_embed.proj")
        name = name.replace("embeddings.class_embedding", "cls_token").replace(
            "embeddings.position_embedding", "pos_embed"
        )
        if name.endswith("attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            stem = f"visual_encoder.{name.removesuffix('qkv.bias')}"
            found |= {f"{stem}q_bias": query.clone(), f"{stem}v_bias": value.clone()}
        else:
            found[f"visual_encoder.{name}"] = tensor
    return found


@pytest.mark.parametrize("size", [None, 16, 24])
def test_a_checkpoint_of_lavis_is_put_onto_the_blip2_of_its_size(tmp_path: Path, monkeypatch, size: int | None) -> None:
    """One whose image encoder was trained as well holds it, for the size of pictures that it was finetuned on."""
    base = write_blip2(tmp_path / "base")
    trained = Blip2ForConditionalGeneration.from_pretrained(base)
    if size is not None:
        set_image_size(trained.vision_model, trained.config.vision_config, size)
    torch.manual_seed(1)
    frozen = ("language_model.",) if size else ("language_model.", "vision_model.embeddings.", "vision_model.encoder.")
    for name, parameter in trained.named_parameters():
        if not name.startswith(frozen):
            torch.nn.init.normal_(parameter, std=0.3)
    names = {
        "qformer.layernorm.": "Qformer.bert.embeddings.LayerNorm.",
        "qformer.": "Qformer.bert.",
        "vision_model.post_layernorm.": "ln_vision.",
        "language_projection.": "opt_proj.",
        "query_tokens": "query_tokens",
    }
    state = {}
    for name, tensor in trained.state_dict().items():
        for theirs, lavis_name in names.items():
            if name.startswith(theirs):
                name = lavis_name + name.removeprefix(theirs)
                name = name.replace(".attention.attention.", ".attention.self.")
                state[name.replace(".crossattention.attention.", ".crossattention.self.")] = tensor
                break
    if size is not None:
        for layer in trained.vision_model.encoder.layers:
            layer.self_attn.qkv.bias.data[24:48] = 0  # LAVIS has no bias of keys
        state |= lavis_encoder(trained.vision_model.state_dict())
    torch.save({"model": state}, tmp_path / "blip2_pretrained_opt.pth")
    monkeypatch.setattr(lavis, "BLIP2_BASES", {("opt_proj", 32): str(base)})
    model, texts = load_model(str(tmp_path / "blip2_pretrained_opt.pth"))
    trained.vision_model.post_layernorm.eps = lavis.LN_VISION_EPSILON
    assert model.config.vision_config.image_size == (size or 16)
    with torch.no_grad():
        pixels = torch.randn(1, 3, size or 16, size or 16)
        expected = trained.eval().vision_model(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(model.eval().encode_images(pixels), expected, atol=1e-4, rtol=1e-4)
    if size == 24:
        return
    picture = photo(tmp_path / "a.png")
    inputs = processor_of(base)(images=Image.open(picture), text=QUESTIONS[1], return_tensors="pt")
    ids = trained.eval().generate(**inputs, num_beams=3, max_new_tokens=8, do_sample=False)
    said = texts.llm.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert ik.Model(model, texts).ask(picture, QUESTIONS[1], beams=3, max_new_tokens=8) == said


def test_a_qformer_without_words_is_not_trained_to_read(tmp_path: Path) -> None:
    name = str(write_blip2(tmp_path / "blip2"))
    with pytest.raises(UserError, match=r"whose Q-Former reads no text; set model\.instruction_aware=false"):
        prepare_model(RunConfig(model=ModelConfig(name=name)), [], tmp_path, lambda line: None)
    config = RunConfig(model=ModelConfig(name=name, instruction_aware=False))
    model, texts = prepare_model(config, [], tmp_path, lambda line: None)
    assert not model.instruction_aware
    assert texts.qformer is None


def test_evaluate_asks_a_blip2_and_shows_its_published_figures(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    world.benchmark("vqav2_blip2_opt")
    words = ["--model", write_blip2(tmp_path / "blip2"), "--data", world.data, "--out", tmp_path / "run"]
    words += ["--benchmarks", "vqav2_blip2_opt", "--limit", "3"]
    done = CliRunner().invoke(app, ["evaluate", *map(str, words)])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert report["benchmarks"]["vqav2_blip2_opt"]["n"] == 3
    folder = tmp_path / "run" / "evaluation" / "vqav2_blip2_opt"
    asked = [json.loads(line)["prompt"] for line in (folder / "responses.jsonl").read_text().splitlines()]
    assert all(prompt.startswith("Question: ") and prompt.endswith("? Answer:") for prompt in asked)
    page = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "BLIP-2 OPT-2.7B, zero-shot" in page
    assert "BLIP-2 OPT-6.7B, finetuned" in page
