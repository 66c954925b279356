"""Any BLIP that people have: transformers' classes, files of BLIP and LAVIS, and what of them is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertTokenizerFast, BlipConfig, BlipModel, BlipProcessor, BlipTextConfig, BlipVisionConfig

from instructkit.cli import app
from instructkit.config.settings import WholeModelConfig
from instructkit.errors import UserError
from instructkit.models.batches import Captions
from instructkit.models.blip import Blip
from instructkit.models.load import blip_tasks as places
from instructkit.models.load.blip import load_blip
from instructkit.models.load.blip_tasks import TASKS, blip_tasks, open_blip
from instructkit.models.load.look import look_for_model
from instructkit.models.save import as_transformers, export, save_blip
from tests.models.checkpoints import write_bert

MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*MARKS, "a", "red", "blue", "circle", "is", "there", "what", "picture", "of", "yes", "no", "?")
TEXTS = ["a red circle", "is there a blue picture of a circle ?", "what"]
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}


def write_tokenizer(folder: Path) -> BertTokenizerFast:
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)})
    tokenizer.save_pretrained(folder)
    return tokenizer


def hub_config(more: int = 2, width: int = 64) -> BlipConfig:
    """As in the published models: two words more than the tokeniser has, the first of them `[DEC]`."""
    size: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 48}
    ids: dict[str, Any] = {"bos_token_id": len(WORDS), "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    if not more:
        ids["bos_token_id"] = 4
    text = BlipTextConfig(hidden_size=64, vocab_size=len(WORDS) + more, max_position_embeddings=40, **size, **ids)
    vision = BlipVisionConfig(hidden_size=width, image_size=32, patch_size=8, layer_norm_eps=1e-6, **size)
    return BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)


def shaken(module: Any, seed: int = 0) -> Any:
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=noise)
    return module.eval()


def write_class(folder: Path, task: str, more: int = 2) -> Any:
    model = shaken(TASKS[task](hub_config(more)))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def pictures(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def check_captioning(model: Blip, captions: Captions, theirs: Any) -> None:
    pixels, rows = pictures(), captions.rows(TEXTS)
    ids, mask = rows["input_ids"], rows["attention_mask"]
    write = torch.cat([torch.full_like(ids[:, :1], model.config.text_config.bos_token_id), ids[:, 1:]], dim=1)
    features = model.encode_images(pixels)
    logits = theirs(pixel_values=pixels, input_ids=write, attention_mask=mask).logits
    told = model.tell(features, torch.arange(3), ids, mask)
    torch.testing.assert_close(told[mask.bool()], logits[mask.bool()], **CLOSE)
    prompt = torch.cat([ids[:, :2], torch.full_like(ids[:, :1], 3)], dim=1)
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 8, "min_new_tokens": 2}
    written = theirs.generate(pixel_values=pixels, input_ids=prompt, **options)
    assert model.generate(features, ids[:, :2], **options).tolist() == written.tolist()


@torch.no_grad()
def check_retrieval(model: Blip, captions: Captions, theirs: Any) -> None:
    pixels, rows = pictures(), captions.rows(TEXTS)
    ids, mask = rows["input_ids"], rows["attention_mask"]
    read = torch.cat([torch.full_like(ids[:, :1], model.config.enc_token_id), ids[:, 1:]], dim=1)
    features = model.encode_images(pixels)
    judged = theirs(pixel_values=pixels, input_ids=read, attention_mask=mask).itm_score
    torch.testing.assert_close(model.judge(features, torch.arange(3), ids, mask), judged, **CLOSE)
    alike = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask, use_itm_head=False).itm_score
    torch.testing.assert_close(model.embed_images(features)[:, 0] @ model.embed_texts(ids, mask).T, alike, **CLOSE)


@torch.no_grad()
def check_vqa(model: Blip, captions: Captions, theirs: Any) -> None:
    for row, text in enumerate(TEXTS):  # alone, since transformers reads the padding of questions
        pixels, ids = pictures()[row : row + 1], captions.rows([text])["input_ids"]
        ones, own = torch.ones_like(ids), torch.tensor([0])
        read = torch.cat([torch.full_like(ids[:, :1], model.config.enc_token_id), ids[:, 1:]], dim=1)
        states = model.read_with(model.encode_images(pixels), own, ids, ones)
        options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 8, "min_new_tokens": 2}
        answered = theirs.generate(input_ids=read, pixel_values=pixels, **options)
        assert model.generate(states, **options).tolist() == answered.tolist()


CHECKS = {"captioning": check_captioning, "retrieval": check_retrieval, "vqa": check_vqa}


@pytest.mark.parametrize("task", TASKS)
def test_a_class_of_transformers_says_the_same(task, tmp_path):
    theirs = write_class(tmp_path, task)
    assert blip_tasks(str(tmp_path)) == (task,)
    look_for_model(WholeModelConfig(name=str(tmp_path)))
    model, captions = open_blip(str(tmp_path))
    assert model.tasks == (task,)
    assert (model.text_encoder is None, model.text_decoder is None) == (task == "captioning", task == "retrieval")
    assert captions.tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [len(WORDS), len(WORDS) + 1]
    assert model.config.enc_token_id == len(WORDS) + 1
    CHECKS[task](model.eval(), captions, theirs)
    if task == "captioning":  # a question's states are read by the same weights as a picture's
        return
    half, _ = open_blip(str(tmp_path), dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("task", TASKS)
def test_without_a_word_for_it_texts_begin_as_transformers_has_them(task, tmp_path):
    theirs = write_class(tmp_path, task, more=0)
    if task == "captioning":
        model, captions = open_blip(str(tmp_path))
    else:
        with pytest.warns(UserWarning, match=r"has no \[ENC\]; texts that are read with a picture begin with \[CLS\]"):
            model, captions = open_blip(str(tmp_path))
    assert model.config.enc_token_id == 2
    CHECKS[task](model.eval(), captions, theirs)


# --- files of BLIP and LAVIS


def lavis_state(model: Blip, *towers: str) -> dict[str, Tensor]:
    """Weights under the names that BLIP's own files have; a tensor that is shared stands there twice, as it does."""
    names = {
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding": "pos_embed",
        "embeddings.patch_embedding.": "patch_embed.proj.",
        "post_layernorm.": "norm.",
        "encoder.layers.": "blocks.",
        ".layer_norm": ".norm",
        ".self_attn.projection.": ".attn.proj.",
        ".self_attn.qkv.": ".attn.qkv.",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("vision_model."):
            name = f"visual_encoder.{name.removeprefix('vision_model.')}"
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            state[name] = tensor
        elif name.startswith(towers):
            state["temp" if name == "temperature" else name] = tensor
    if "temp" in state:
        state["temp"] = state["temp"][0]
        state["text_encoder_m.embeddings.word_embeddings.weight"] = torch.zeros(3)
        state |= {"image_queue": torch.zeros(2), "queue_ptr": torch.zeros(1), "vision_proj_m.bias": torch.zeros(1)}
        state["text_encoder.embeddings.position_ids"] = torch.zeros(1)
    return state


HEADS = ("vision_proj.", "text_proj.", "itm_head.", "temperature")
FILES = {
    "pretrained": (("text_encoder.", "text_decoder.", *HEADS), ("captioning", "retrieval", "vqa")),
    "caption": (("text_decoder.",), ("captioning",)),
    "retrieval": (("text_encoder.", *HEADS), ("retrieval",)),
    "vqa": (("text_encoder.", "text_decoder."), ("vqa",)),
}


@pytest.fixture
def original(tmp_path, monkeypatch) -> Blip:
    """A model of the sizes that files imply, and the tokeniser that they need."""
    write_tokenizer(tmp_path / "bert")
    monkeypatch.setattr(places, "BERT", str(tmp_path / "bert"))
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    config: Any = hub_config()
    config.sharing, config.enc_token_id = "all_but_self_attention", len(WORDS) + 1
    return shaken(Blip(config))


@pytest.mark.parametrize("kind", FILES)
def test_a_file_says_the_same(kind, original, tmp_path):
    parts, tasks = FILES[kind]
    if kind == "vqa":  # finetuned apart from each other
        original.config.sharing = "none"
        original = shaken(Blip(original.config), 5)
    file = tmp_path / "model.pth"
    torch.save({"model": lavis_state(original, *parts), "epoch": 3}, file)
    assert blip_tasks(str(file)) == tasks
    look_for_model(WholeModelConfig(name=str(file)))
    model, captions = open_blip(str(file))
    assert model.tasks == tasks
    assert model.config.vision_config.layer_norm_eps == 1e-6
    assert model.config.sharing == ("all_but_self_attention" if kind == "pretrained" else "none")
    for task in tasks:
        CHECKS[task](model.eval(), captions, as_transformers(original, task))
    own = original.state_dict()
    assert ("temperature" in model.fresh) == ("retrieval" not in tasks)
    for name, tensor in model.state_dict().items():
        assert name in model.fresh or torch.equal(tensor, own[name]), name


def test_a_pretrained_file_becomes_a_folder_to_go_on_from(original, tmp_path):
    file = tmp_path / "model.pth"
    torch.save(lavis_state(original, *FILES["pretrained"][0]), file)
    assert "goes on from" in export(str(file), tmp_path / "whole")
    again, _ = load_blip(str(tmp_path / "whole"))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in original.state_dict().items())
    torch.save(lavis_state(original, "text_decoder."), file)
    with pytest.raises(UserError, match=r"is a BLIP for captioning; export it --as captioning$"):
        export(str(file), tmp_path / "part")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda state: state.update({"text_encoder.encoder.layer.0.crossattention.self0.key.bias": 0}), "NLVR2"),
        (lambda state: state.update({"other.bias": torch.zeros(1)}), "other.bias: not one of a checkpoint of BLIP"),
        (lambda state: state.pop("visual_encoder.patch_embed.proj.weight"), "no whole checkpoint of BLIP"),
        (lambda state: state.pop("visual_encoder.norm.bias"), "lacks vision_model.post_layernorm.bias"),
        (lambda state: state.pop("itm_head.weight"), "a text encoder alone"),
    ],
)
def test_a_file_that_is_none_is_said_in_a_line(harm, said, original, tmp_path):
    state = lavis_state(original, *FILES["retrieval"][0])
    harm(state)
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(UserError, match=said) as told:
        open_blip(str(tmp_path / "model.pth"))
    assert "\n" not in str(told.value)


def test_a_file_of_other_words_is_said(original, tmp_path, monkeypatch):
    torch.save(lavis_state(original, *FILES["retrieval"][0]), tmp_path / "model.pth")
    monkeypatch.setattr(places, "BERT", str(write_bert(tmp_path / "other")))
    with pytest.raises(UserError, match=rf"has {len(WORDS) + 2} words, the tokenizer of .* with its two marks"):
        open_blip(str(tmp_path / "model.pth"))


def test_what_is_no_blip_or_another_class_is_said(tmp_path):
    assert blip_tasks(str(write_bert(tmp_path / "bert"))) == ()
    with pytest.raises(UserError, match="a bert, no BLIP"):
        open_blip(str(tmp_path / "bert"))
    with pytest.raises(UserError, match="is no BLIP, so there are no parts"):
        export(str(tmp_path / "bert"), tmp_path / "out", task="vqa")
    BlipModel(hub_config()).save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="a BLIP of the class BlipModel; there are BlipForConditionalGeneration, "):
        open_blip(str(tmp_path / "plain"))
    torch.save({"Qformer.bert.x": torch.zeros(1), "text_encoder.x": torch.zeros(1)}, tmp_path / "model.pth")
    assert blip_tasks(str(tmp_path / "model.pth")) == ()


# --- export


@pytest.mark.parametrize("task", TASKS)
def test_the_command_exports_a_part_of_a_mixture(task, original, tmp_path, capsys):
    _, captions = open_blip_of(original, tmp_path)
    with pytest.raises(SystemExit) as ended:
        app(["export", str(tmp_path / "mixture"), str(tmp_path / task), "--as", task])
    assert not ended.value.code
    assert TASKS[task].__name__ in capsys.readouterr().out
    theirs = TASKS[task].from_pretrained(tmp_path / task).eval()
    CHECKS[task](original, captions, theirs)
    model, again = open_blip(str(tmp_path / task))
    CHECKS[task](model.eval(), again, theirs)
    assert BlipProcessor.from_pretrained(tmp_path / task).image_processor.size["height"] == 32
    with pytest.raises(UserError, match="is a BLIP for captioning and retrieval and vqa; export it --as captioning or"):
        export(str(tmp_path / "mixture"), tmp_path / "none")
    other = next(each for each in TASKS if each != task)
    with pytest.raises(UserError, match=f"is a BLIP for {task}; export it --as {task}"):
        export(str(tmp_path / task), tmp_path / "other", task=other)


def open_blip_of(model: Blip, folder: Path) -> tuple[Blip, Captions]:
    from instructkit.models.load.blip import add_marks

    tokenizer = write_tokenizer(folder / "words")
    add_marks(tokenizer)
    save_blip(model, Captions(tokenizer), folder / "mixture")
    return open_blip(str(folder / "mixture"))
