"""Models whose Q-Former reads no instruction, on disk: transformers' BLIP-2, and the Q-Former's text beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Model,
    Blip2Processor,
    PreTrainedTokenizerFast,
)

import instructkit as ik
from instructkit.config.settings import ModelConfig, TowersConfig
from instructkit.errors import UserError
from instructkit.models.batches import Texts
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.join import join
from instructkit.models.load.llm import load_llm
from instructkit.models.load.new_tokenizers import train_llm_tokenizer, train_qformer_tokenizer
from instructkit.models.load.qformer_text import TEXT, is_text
from instructkit.models.load.trained import save_trained
from instructkit.models.save import export, load_model, save_model
from instructkit.models.towers import merge_lora, prepare_towers, without_lora
from tests.matrix import mostly_full
from tests.models.checkpoints import write_blip2, write_instructblip, write_llm
from tests.models.test_blip2_generators import QUESTIONS, line_break, photo
from tests.tiny import SENTENCES, tiny_model

LLMS = ["llama", "opt", "t5", "gemma", "qwen2"]


def blind(llm: str, seed: int = 5) -> tuple[InstructBlip, Texts]:
    """A model that was trained without instruction awareness: every weight is its own."""
    model, texts = tiny_model(llm, seed)
    model.config.instruction_aware = False
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval(), texts


@torch.no_grad()
def is_read_by_transformers(folder: Path, model: InstructBlip, texts: Texts, picture: Path) -> None:
    plain, info = Blip2ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    _, others = Blip2Model.from_pretrained(folder, output_loading_info=True)
    assert not any(others.values()), others
    processor = Blip2Processor.from_pretrained(folder)
    for question in QUESTIONS:
        inputs = processor(images=Image.open(picture), text=question, return_tensors="pt")
        more = {} if texts.decoder_only else {"decoder_input_ids": torch.tensor([[0, 9]])}
        theirs = plain.eval()(**inputs, **more).logits
        row = torch.tensor([0])
        soft = model.query_images(model.encode_images(inputs["pixel_values"]), row, row, None, None)
        places = inputs["input_ids"] == plain.config.image_token_index
        embeds = model.get_input_embeddings()(inputs["input_ids"].masked_fill(places, 0))
        embeds = embeds.masked_scatter(places.unsqueeze(-1), soft)
        ours = model.language_model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], **more).logits
        torch.testing.assert_close(theirs[..., : ours.shape[-1]], ours, atol=1e-5, rtol=1e-5)
        ids = plain.generate(**inputs, max_new_tokens=6, num_beams=3, do_sample=False)[0]
        ids = ids[inputs["input_ids"].shape[1] :] if texts.decoder_only else ids
        said = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert ik.Model(model, texts).ask(picture, question, beams=3, max_new_tokens=6) == said


@pytest.mark.parametrize("llm", mostly_full(LLMS, "opt", "t5"))
def test_saved_without_instructions_it_is_a_blip2_and_loses_nothing(llm: str, tmp_path: Path) -> None:
    model, texts = blind(llm)
    save_model(model, texts, tmp_path / "saved")
    is_read_by_transformers(tmp_path / "saved", model, texts, photo(tmp_path / "a.png"))
    again, read = load_model(str(tmp_path / "saved"))
    assert not again.instruction_aware
    own, there = model.state_dict(), again.state_dict()
    assert own.keys() == there.keys()
    assert all(torch.equal(own[name], there[name]) for name in own)
    assert set(load_file(tmp_path / "saved" / TEXT)) == {name for name in own if is_text(name)}
    assert read.qformer("a red circle")["input_ids"] == texts.qformer("a red circle")["input_ids"]
    save_model(again.eval(), read, tmp_path / "again")
    is_read_by_transformers(tmp_path / "again", again, read, tmp_path / "a.png")
    # Told to read instructions, it is the InstructBLIP that it was.
    again.config.instruction_aware = True
    save_model(again, read, tmp_path / "aware")
    aware, _ = load_model(str(tmp_path / "aware"))
    assert aware.instruction_aware
    assert all(torch.equal(own[name], tensor) for name, tensor in aware.state_dict().items())


def test_a_blip2_without_words_is_saved_without_and_keeps_its_end_of_answers(tmp_path: Path) -> None:
    source = write_blip2(tmp_path / "blip2", end=line_break())
    said = export(str(source), tmp_path / "whole")
    assert said.endswith("Blip2ForConditionalGeneration and Blip2Processor of transformers open it")
    model, texts = load_model(str(tmp_path / "whole"))
    is_read_by_transformers(tmp_path / "whole", model.eval(), texts, photo(tmp_path / "a.png"))
    assert not (tmp_path / "whole" / TEXT).exists()
    assert texts.qformer is None
    assert texts.end == line_break() == load_llm(str(tmp_path / "whole"), torch.float32).end


def run_of(tmp_path: Path, settings: ModelConfig, towers: TowersConfig) -> tuple[InstructBlip, Texts, Path]:
    """A model whose trained weights have moved, and the folder of what was trained alone."""
    if settings.joined:
        model, texts = join(settings, torch.float32, tokenizers)
        model.config.instruction_aware = settings.instruction_aware
    else:
        model, texts = load_model(settings.name)
    prepare_towers(model, towers)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    own = dict(model.named_parameters())
    fresh = {name for name in own if name.replace(".base_layer.", ".") in model.fresh}
    state = {name: own[name].detach().clone() for name in own if own[name].requires_grad or name in fresh}
    save_trained(tmp_path / "run", model.eval(), state, settings, towers, texts)
    merge_lora(model)
    return model, texts, tmp_path / "run"


def tokenizers() -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    return train_llm_tokenizer(SENTENCES, 300), train_qformer_tokenizer(SENTENCES, 110)


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("base", mostly_full(["blip2", "blip2-retrieval", "instructblip", "nano"], "blip2-retrieval"))
@pytest.mark.parametrize("towers", [{"qformer": "full"}, {"vision": "lora", "qformer": "lora", "llm": "lora"}])
def test_parts_come_from_a_folder_that_holds_only_what_was_trained(
    base: str, aware: bool, towers: dict[str, Any], tmp_path: Path
) -> None:
    """Every part is the run's; the Q-Former keeps its text, which a run without instructions does not touch."""
    source = tmp_path / "base"
    settings = {
        "blip2": lambda: ModelConfig(str(write_blip2(source)), instruction_aware=False),
        "blip2-retrieval": lambda: ModelConfig(
            vision=str(write_instructblip(tmp_path / "vision")),
            qformer=str(write_blip2(source, retrieval=True)),
            llm=str(write_llm(tmp_path / "llm")),
            instruction_aware=aware,
        ),
        "instructblip": lambda: ModelConfig(str(write_instructblip(source)), instruction_aware=aware),
        "nano": lambda: ModelConfig(llm=str(write_llm(tmp_path / "llm")), instruction_aware=aware),
    }[base]()
    model, texts, run = run_of(tmp_path, settings, TowersConfig(**towers))
    again, read = join(ModelConfig(vision=str(run), qformer=str(run), llm=str(run)), torch.float32, tokenizers)
    own = without_lora(model.state_dict())
    unread = {name for name in own if is_text(name)} if base == "blip2" else set()
    for name, tensor in again.state_dict().items():
        if name not in unread:
            torch.testing.assert_close(tensor, own[name], atol=1e-6, rtol=1e-6, msg=name)
    assert again.fresh == {name for name in unread if "embeddings" in name}
    if base != "blip2":
        assert read.qformer("a red circle")["input_ids"] == texts.qformer("a red circle")["input_ids"]
    if "lora" in towers.values() and model.config.vision_config.hidden_size != 128:
        with pytest.raises(UserError, match=r"its LoRA belongs to an image encoder of width 24, this one's is 128"):
            join(ModelConfig(qformer=str(run)), torch.float32, tokenizers)
        return
    # Another LLM and encoder make anew what depends on them, and nothing else.
    other, _ = join(ModelConfig(qformer=str(run)), torch.float32, tokenizers)
    anew = {name for name in other.fresh if name.startswith("qformer.")} - unread
    assert all(".crossattention.attention." in name for name in anew)
    kept = {name for name, _ in other.named_parameters() if name.startswith("qformer.")} - anew - unread
    assert all(torch.equal(other.get_parameter(name), again.get_parameter(name)) for name in kept)
    assert torch.equal(other.query_tokens, again.query_tokens)


def test_stages_follow_each_other(tmp_path: Path) -> None:
    """First stage, second stage without instructions, instruction tuning: the last has the text of the first."""
    first = write_blip2(tmp_path / "first", retrieval=True)
    text = Blip2ForImageTextRetrieval.from_pretrained(first).state_dict()
    settings = ModelConfig(
        vision=str(first), qformer=str(first), llm=str(write_llm(tmp_path / "llm")), instruction_aware=False
    )
    model, _, second = run_of(tmp_path, settings, TowersConfig())
    export(str(second), tmp_path / "whole")
    for stage in (second, tmp_path / "whole"):
        tuned, texts = load_model(str(stage))
        assert not tuned.instruction_aware
        assert texts.qformer is not None
        joined, _ = join(ModelConfig(qformer=str(stage)), torch.float32, tokenizers)
        for found in (tuned, joined):
            words = found.qformer.embeddings.word_embeddings.weight
            assert torch.equal(words, text["embeddings.word_embeddings.weight"])
            dense = found.qformer.encoder.layer[1].output.dense.weight
            assert torch.equal(dense, text["qformer.encoder.layer.1.output.dense.weight"])
            assert torch.equal(found.query_tokens, model.query_tokens)
    is_read_by_transformers(tmp_path / "whole", model, texts, photo(tmp_path / "a.png"))


def test_what_a_run_cannot_give_is_said(tmp_path: Path) -> None:
    _, _, run = run_of(tmp_path, ModelConfig(str(write_instructblip(tmp_path / "base"))), TowersConfig())
    with pytest.raises(UserError, match=r"model\.vision_layer=1: the encoder of .*run was trained on with layer None"):
        join(ModelConfig(vision=str(run), vision_layer=1), torch.float32, tokenizers)
    with pytest.raises(
        UserError, match=r"model\.name=.*run: that folder holds only what a run trained; name its parts"
    ):
        join(ModelConfig(str(run), llm=str(write_llm(tmp_path / "llm"))), torch.float32, tokenizers)
    (run / "trained.safetensors").unlink()
    with pytest.raises(UserError, match=r"trained\.safetensors: cannot be read"):
        join(ModelConfig(qformer=str(run)), torch.float32, tokenizers)
