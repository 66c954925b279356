"""Checkpoints of LAVIS: numbers that its own code made on tiny random weights."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    InstructBlipConfig,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    PreTrainedTokenizerFast,
)

from instructkit.config.settings import ModelConfig, TowersConfig
from instructkit.errors import UserError
from instructkit.evaluation.identity import model_identity
from instructkit.models.batches import Limits, Texts
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load import lavis as checkpoints
from instructkit.models.load.join import join
from instructkit.models.load.lavis import load_lavis, load_lavis_state, parameter_name
from instructkit.models.load.presets import build
from instructkit.models.load.trained import save_trained
from instructkit.models.save import load_model, save_model
from instructkit.models.towers import prepare_towers
from instructkit.prompts.templates import Prompt
from instructkit.training.plan.shapes import shape_of
from tests.tiny import tiny_model

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "lavis"
golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="golden numbers of LAVIS are not beside the checkout")
IMAGE_TOKEN = 3


def read(name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def config_of(family: str) -> InstructBlipConfig:
    sizes = json.loads((GOLDEN / "config.json").read_text())
    qformer, llm, t5 = sizes["qformer"], sizes["llm"], sizes["t5"]
    if family == "vicuna":
        special = json.loads((GOLDEN / "vicuna_forward.json").read_text())["special"]
        text = AutoConfig.for_model(
            "llama",
            vocab_size=special["embed_rows"],
            hidden_size=llm["hidden"],
            intermediate_size=llm["inter"],
            num_hidden_layers=llm["layers"],
            num_attention_heads=llm["heads"],
            rms_norm_eps=1e-6,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            pad_token_id=special["pad"],
        )
    else:
        text = AutoConfig.for_model(
            "t5",
            vocab_size=t5["vocab"],
            d_model=t5["d_model"],
            d_kv=t5["d_kv"],
            d_ff=t5["d_ff"],
            num_layers=t5["layers"],
            num_heads=t5["heads"],
            feed_forward_proj="gated-gelu",
            dense_act_fn="gelu",
            relative_attention_num_buckets=8,
            relative_attention_max_distance=20,
            decoder_start_token_id=0,
            tie_word_embeddings=False,
            dropout_rate=0.0,
        )
        text.dense_act_fn = "gelu"
    return InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(
            hidden_size=qformer["encoder_width"],
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
        ),
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=qformer["vocab_size"],
            hidden_size=qformer["hidden_size"],
            num_hidden_layers=qformer["num_hidden_layers"],
            num_attention_heads=qformer["num_attention_heads"],
            intermediate_size=qformer["intermediate_size"],
            max_position_embeddings=qformer["max_position_embeddings"],
            cross_attention_frequency=qformer["cross_attention_freq"],
            layer_norm_eps=qformer["layer_norm_eps"],
        ),
        text_config=text,
        num_query_tokens=qformer["query_length"],
        image_token_index=IMAGE_TOKEN,
    )


def trimmed(family: str) -> dict[str, torch.Tensor]:
    """What a trimmed checkpoint holds: no LLM, no image encoder."""
    projection = {
        key: value for key, value in read(f"{family}_weights").items() if key.startswith(("llm_proj.", "t5_proj."))
    }
    return {**read("qformer_weights"), **projection}


def model_of(family: str) -> InstructBlip:
    model = build(config_of(family))
    load_lavis_state(model, {**read("qformer_weights"), **read(f"{family}_weights")}, family)
    # The golden images are what the image encoder gives before its last layer norm.
    model.encode_images = lambda pixels: model.vision_model.post_layernorm(pixels)
    return model.eval()


def inputs_of(family: str, fixture: str) -> dict[str, torch.Tensor]:
    want = read(fixture)
    rows = len(want["image"])
    prompt = want["llm_input_ids"] if family == "vicuna" else want["prompt_ids"]
    assert not (prompt == IMAGE_TOKEN).any()
    shared = read(fixture.removesuffix("_notext"))
    return {
        "pixel_values": want["image"],
        "image_index": torch.arange(rows),
        "image_rows": torch.arange(rows),
        "qformer_input_ids": shared["qformer_input_ids"],
        "qformer_attention_mask": shared["qformer_attention_mask"],
        "input_ids": torch.cat([torch.full((rows, 4), IMAGE_TOKEN), prompt], dim=1),
        "attention_mask": want["attention_mask"],
        "labels": want["labels"],
    }


@golden
@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("family", ["vicuna", "t5"])
def test_losses_soft_prompts_and_gradients_are_those_of_lavis(family, text):
    fixture = f"{family}_forward" + ("" if text else "_notext")
    want, model = read(fixture), model_of(family)
    model.config.instruction_aware = text
    inputs = inputs_of(family, fixture)
    names = ("pixel_values", "image_index", "image_rows", "qformer_input_ids", "qformer_attention_mask", "input_ids")
    embeds = model.prefix(**{name: inputs[name] for name in names})
    torch.testing.assert_close(model.encode_images(inputs["pixel_values"]), want["image_embeds"], atol=1e-6, rtol=0)
    torch.testing.assert_close(embeds, want["inputs_embeds"], atol=1e-5, rtol=1e-5)
    answer = model(**inputs)
    loss = answer.total / answer.tokens
    torch.testing.assert_close(loss, want["loss"], atol=1e-5, rtol=0)
    loss.backward()
    projection = "llm_proj" if family == "vicuna" else "t5_proj"
    for name, mine in {
        "query_tokens": model.query_tokens,
        f"{projection}.weight": model.language_projection.weight,
        f"{projection}.bias": model.language_projection.bias,
    }.items():
        torch.testing.assert_close(mine.grad, want[f"grad.{name}"], atol=2e-5, rtol=1e-4, msg=name)


@golden
@pytest.mark.parametrize("family", ["vicuna", "t5"])
def test_logits_are_those_of_lavis(family):
    want, model = read(f"{family}_forward"), model_of(family)
    inputs = inputs_of(family, f"{family}_forward")
    embeds = want["inputs_embeds"]
    extra = {} if family == "vicuna" else {"decoder_input_ids": model.shift_right(inputs["labels"])}
    with torch.no_grad():
        logits = model.language_model(inputs_embeds=embeds, attention_mask=want["attention_mask"], **extra).logits
    real = want["attention_mask"].bool() if family == "vicuna" else want["labels"] >= 0
    torch.testing.assert_close(logits[real], want["logits"][real], atol=2e-5, rtol=1e-5)


@golden
def test_the_qformer_is_that_of_lavis_layer_by_layer():
    want, model = read("qformer_io"), model_of("vicuna")
    queries = model.query_tokens.expand(len(want["image_embeds"]), -1, -1)
    image = {"encoder_hidden_states": want["image_embeds"]}
    text = {"input_ids": want["input_ids"], "attention_mask": want["qformer_attention_mask"]}
    with torch.no_grad():
        both = model.qformer(query_embeds=queries, output_hidden_states=True, **text, **image)
        alone = model.qformer(input_ids=None, query_embeds=queries, output_hidden_states=True, **image)
        partial = model.qformer(
            input_ids=None, query_embeds=queries, encoder_attention_mask=want["image_attention_mask_partial"], **image
        )
        words = model.qformer(query_embeds=None, input_ids=text["input_ids"], attention_mask=want["attention_mask"])
    real = want["attention_mask"].bool()
    torch.testing.assert_close(words.last_hidden_state[real], want["text_only_out"][real], atol=5e-6, rtol=0)
    for number in range(5):
        torch.testing.assert_close(both.hidden_states[number], want[f"hidden_with_text.{number}"], atol=5e-6, rtol=0)
        torch.testing.assert_close(alone.hidden_states[number], want[f"hidden_no_text.{number}"], atol=5e-6, rtol=0)
    torch.testing.assert_close(both.last_hidden_state, want["out_with_text"], atol=5e-6, rtol=0)
    found = partial.last_hidden_state
    torch.testing.assert_close(found, want["query_out_no_text_partial_image_mask"], atol=5e-6, rtol=0)


@golden
def test_names_are_those_of_the_key_map():
    rules = json.loads((GOLDEN / "key_map.json").read_text())
    names = [
        *read("qformer_weights"),
        *read("vicuna_weights"),
        *read("t5_weights"),
        "Qformer.bert.embeddings.position_ids",
    ]
    for lavis in names:
        expected = None
        if not any(fnmatchcase(lavis, pattern) for pattern in rules["drop"]):
            old, new = next((old, new) for old, new in rules["prefix"] if lavis.startswith(old))
            expected = new + lavis[len(old) :]
            for part, other in rules["substring_for_qformer"] if new == "qformer." else []:
                expected = expected.replace(part, other)
        assert parameter_name(lavis) == expected


class Recorded:
    """A tokenizer that knows the ids which LAVIS's gave for the recorded texts."""

    bos_token_id, eos_token_id, pad_token_id, unk_token_id = 2, 2, 96, 2
    all_special_tokens, added_tokens_decoder = ("</s>",), {}

    def __init__(self, bare: dict[str, list[int]]) -> None:
        self.bare = bare

    def convert_tokens_to_ids(self, name):
        return {"</s>": 2}[name]

    def __call__(self, texts, add_special_tokens=True, split_special_tokens=False):
        if isinstance(texts, str):
            return {"input_ids": [2] * add_special_tokens + [7] * len(texts.split())}
        return {"input_ids": [self.bare.get(text, [7] * len(text.split())) for text in texts]}


def words_with_ids(recorded: dict[str, list[int]]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words with LAVIS's ids, which cuts by itself as LAVIS's BERT tokenizer does."""
    ids = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    for text, row in recorded.items():
        ids |= dict(zip(text.split(), row[1:-1], strict=True))
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


@golden
@pytest.mark.parametrize("cut", [False, True])
def test_rows_are_laid_out_and_cut_as_those_of_lavis(cut):
    notes = json.loads((GOLDEN / "vicuna_forward.json").read_text())
    want = {**notes, "attention_mask": notes["llm_attention_mask"], **(notes["truncated_run"] if cut else {})}
    asked, answers = notes["text_input"], notes["text_output"]
    llm = Recorded(
        dict(zip(asked, (row[1:] for row in notes["prompt_ids_alone"]), strict=True))
        | dict(zip(answers, (row[1:-1] for row in notes["output_ids_alone_with_eos_text"]), strict=True))
    )
    read_by_qformer = [[token for token in row if token] for row in notes["qformer_input_ids"]]
    qformer = words_with_ids(dict(zip(asked, read_by_qformer, strict=True)))
    model = model_of("vicuna")
    # LAVIS counts the start token of an answer, which it then takes off.
    limits = Limits(want["max_txt_len"], want["max_txt_len"], want["max_output_txt_len"] - 1) if cut else Limits()
    texts = Texts(llm, qformer, model.config, limits)
    prompts = [
        Prompt(str(n), "x", ask, answer, ["a"]) for n, (ask, answer) in enumerate(zip(asked, answers, strict=True))
    ]
    rows = texts.rows(texts.encode(prompts), [1, 1])
    assert rows["qformer_input_ids"].tolist() == want["qformer_input_ids"]
    for name, ours in (
        ("llm_input_ids", rows["input_ids"][:, 4:]),
        ("labels", rows["labels"]),
        ("attention_mask", rows["attention_mask"]),
    ):
        theirs = torch.tensor(want[name])
        # LAVIS pads to the longest prompt and the longest answer, which may be of two rows.
        width = ours.shape[1]
        assert torch.equal(ours, theirs[:, :width]), name
        assert (theirs[:, width:] == {"llm_input_ids": 96, "labels": -100, "attention_mask": 0}[name]).all()
    pixels = read("vicuna_forward")["image"]
    answer = model(pixel_values=pixels, image_index=torch.arange(2), image_rows=torch.arange(2), **rows)
    assert (answer.total / answer.tokens).item() == pytest.approx(want["loss"], abs=1e-5)


@golden
@pytest.mark.parametrize("family", ["vicuna", "t5"])
def test_a_trimmed_file_is_read_with_weights_only_and_leaves_encoder_and_llm(family, tmp_path):
    model = build(config_of(family))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.save({"model": trimmed(family), "epoch": 3}, tmp_path / "trimmed.pth")
    names = load_lavis(model, tmp_path / "trimmed.pth")
    after = model.state_dict()
    assert "query_tokens" in names
    assert "vision_model.post_layernorm.weight" in names
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == set(names)
    assert not any(name.startswith(("language_model.", "vision_model.encoder", "vision_model.emb")) for name in changed)
    model.save_pretrained(tmp_path / "saved")
    assert InstructBlip.from_pretrained(tmp_path / "saved").vision_model.post_layernorm.eps == 1e-5


@golden
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path):
    model = build(config_of("vicuna"))
    short = trimmed("vicuna")
    del short["query_tokens"]
    with pytest.raises(UserError, match="lacks 1 parameters, among them query_tokens"):
        load_lavis_state(model, short, "x.pth")
    wide = {**trimmed("vicuna"), "llm_proj.bias": torch.zeros(7)}
    with pytest.raises(UserError, match=r"language_projection\.bias is \[7\], the model's \[32\]"):
        load_lavis_state(model, wide, "x.pth")
    with pytest.raises(UserError, match="no such checkpoint"):
        load_lavis(model, tmp_path / "none.pth")
    (tmp_path / "torn.pth").write_bytes(b"\x80\x02oops")
    with pytest.raises(UserError, match="no checkpoint of tensors alone"):
        load_lavis(model, tmp_path / "torn.pth")


class Payload:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


def test_code_in_a_checkpoint_does_not_run(tmp_path, capsys):
    torch.save({"query_tokens": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="no checkpoint of tensors alone"):
        load_lavis(None, tmp_path / "bad.pth")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lavis", "ours"),
    [
        ("Qformer.bert.embeddings.LayerNorm.bias", "qformer.embeddings.layernorm.bias"),
        (
            "Qformer.bert.encoder.layer.3.attention.self.key.weight",
            "qformer.encoder.layer.3.attention.attention.key.weight",
        ),
        (
            "Qformer.bert.encoder.layer.2.crossattention.self.value.bias",
            "qformer.encoder.layer.2.crossattention.attention.value.bias",
        ),
        (
            "Qformer.bert.encoder.layer.0.output_query.LayerNorm.weight",
            "qformer.encoder.layer.0.output_query.LayerNorm.weight",
        ),
        ("Qformer.cls.predictions.bias", None),
        ("Qformer.bert.embeddings.position_ids", None),
        ("ln_vision.weight", "vision_model.post_layernorm.weight"),
        ("t5_proj.bias", "language_projection.bias"),
        ("query_tokens", "query_tokens"),
    ],
)
def test_names(lavis, ours):
    assert parameter_name(lavis) == ours


def test_an_unknown_name_is_said():
    with pytest.raises(UserError, match=r"visual_encoder\.cls_token: not one"):
        parameter_name("visual_encoder.cls_token")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A tiny model in the place of a published one, and a trimmed file of another's trained weights."""
    base, texts = tiny_model(seed=0)
    save_model(base, texts, tmp_path / "base")
    trained = tiny_model(seed=5)[0].state_dict()
    names = {
        f"Qformer.bert.{name.removeprefix('qformer.')}" if name.startswith("qformer.") else name: name
        for name in trained
    }
    old = {new: lavis_name for lavis_name, new in checkpoints._QFORMER.items()}
    old |= {"vision_model.post_layernorm.": "ln_vision.", "language_projection.": "llm_proj."}
    state = {}
    for name, ours in names.items():
        for part, theirs in old.items():
            name = name.replace(part, theirs)
        if name.startswith(("Qformer.", "ln_vision.", "llm_proj.", "query_tokens")):
            state[name] = trained[ours]
    torch.save({"model": state}, tmp_path / "trimmed.pth")
    monkeypatch.setattr(checkpoints, "BASES", {("llm_proj", 32): str(tmp_path / "base")})
    return base.state_dict(), trained, tmp_path


def is_put_on(model, base, trained):
    for name, weight in model.state_dict().items():
        ours = name.startswith(("qformer.", "query_tokens", "language_projection.", "vision_model.post_layernorm."))
        assert torch.equal(weight, (trained if ours else base)[name]), name
    assert model.vision_model.post_layernorm.eps == 1e-5


def test_a_model_is_named_by_a_file(published):
    """`model.name=FILE.pth`: trained weights of the file, encoder and LLM of the published size, tokenisers, too."""
    base, trained, folder = published
    model, texts = load_model(str(folder / "trimmed.pth"))
    is_put_on(model, base, trained)
    assert texts.encode([Prompt("", "", "what color is the shape?")])[0].qformer
    assert model_identity(str(folder / "trimmed.pth")).startswith("sha256:")
    assert shape_of(ModelConfig(name=str(folder / "trimmed.pth"))).num_query_tokens == 4


def test_what_is_trained_on_a_file_finds_it_again(published):
    base, trained, folder = published
    name = str(folder / "trimmed.pth")
    model, texts = load_model(name)
    towers = TowersConfig()
    prepare_towers(model, towers, 0)
    state = {name: weight.detach() + 1 for name, weight in model.named_parameters() if weight.requires_grad}
    save_trained(folder / "run", model, state, ModelConfig(name=name), towers, texts)
    again, _ = load_model(str(folder / "run"))
    is_put_on(again, base, {**trained, **state})
    (folder / "trimmed.pth").unlink()
    with pytest.raises(UserError, match=r"the base .*trimmed\.pth is not there"):
        load_model(str(folder / "run"))


def test_a_file_goes_with_parts_of_its_own(published):
    """`model.name=FILE.pth model.llm=FOLDER`: an LLM from elsewhere behind the file's Q-Former."""
    base, trained, folder = published
    other, texts = tiny_model(seed=9)
    other.language_model.save_pretrained(folder / "llm")
    texts.llm.save_pretrained(folder / "llm")
    settings = ModelConfig(name=str(folder / "trimmed.pth"), llm=str(folder / "llm"))
    model, _ = join(settings, torch.float32, lambda: pytest.fail("nano's tokenisers are not asked for"))
    llm = {f"language_model.{name}": weight for name, weight in other.language_model.state_dict().items()}
    is_put_on(model, {**base, **llm}, trained)
    assert not model.fresh


def test_a_file_of_no_published_size_is_refused(published, monkeypatch):
    _, _, folder = published
    monkeypatch.setattr(checkpoints, "BASES", {("llm_proj", 4096): "vicuna-7b"})
    with pytest.raises(UserError, match=r"trimmed\.pth: no checkpoint of LAVIS's InstructBLIP or BLIP-2"):
        load_model(str(folder / "trimmed.pth"))
    with pytest.raises(UserError, match=r"none\.pth: no such checkpoint"):
        load_model("none.pth")
