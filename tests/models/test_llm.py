"""LLMs of joined models that come as a GGUF file, out of a package, or quantised while they are loaded."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from instructkit.config.settings import ModelConfig, TowersConfig
from instructkit.errors import UserError
from instructkit.models.load import llm as llms
from instructkit.models.load.join import join
from instructkit.models.load.trained import save_trained
from instructkit.models.save import load_model, save_model
from instructkit.models.towers import prepare_towers
from tests.models.checkpoints import bare_tokenizer, write_blip2, write_llm
from tests.models.test_instruct_blip import batch
from tests.models.test_joining import pixels_for, tokenizers

BLOCKS = {"hidden_size": 64, "intermediate_size": 128}
"""bitsandbytes quantises 64 weights together."""


def write_gguf(folder):
    """A Qwen2 of transformers in a GGUF file that is written tensor by tensor; the file and the model."""
    gguf = pytest.importorskip("gguf")
    source = write_llm(folder / "qwen2", "qwen2", bare=True)
    model = AutoModelForCausalLM.from_pretrained(source).eval()
    config, tokenizer = model.config, bare_tokenizer()
    path = folder / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    words = [tokenizer.convert_ids_to_tokens(index) for index in range(len(tokenizer))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(words) - 1))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model


def joined(**parts):
    model, texts = join(ModelConfig(**parts), torch.float32, tokenizers)
    return model.eval(), texts


@torch.no_grad()
def test_a_gguf_file_gives_the_llm_that_it_was_written_from(tmp_path, monkeypatch):
    path, plain = write_gguf(tmp_path)
    model, texts = joined(llm=str(path))
    ids = torch.tensor([[5, 9, 60, 7]])
    torch.testing.assert_close(model.language_model(ids).logits, plain(ids).logits, atol=1e-5, rtol=1e-5)
    text = "is there a red circle in the picture?"
    assert texts.llm(text)["input_ids"] == bare_tokenizer()(text)["input_ids"]
    assert not any(name.startswith("language_model.") for name in model.fresh)
    monkeypatch.setitem(sys.modules, "tiny_llm", SimpleNamespace(assemble=lambda: str(path)))
    packaged, _ = joined(llm="package:tiny_llm")
    torch.testing.assert_close(packaged.language_model(ids).logits, plain(ids).logits, atol=1e-5, rtol=1e-5)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"tiny\.gguf: no GGUF file that can be read"):
        joined(llm=str(path))


@torch.no_grad()
def test_a_gguf_files_llm_is_joined_and_saved_whole_like_any_other(tmp_path):
    """Its weights are unpacked, so nothing may take them for quantised ones."""
    path, _ = write_gguf(tmp_path)
    blip2 = write_blip2(tmp_path / "blip2")
    model, texts = joined(llm=str(path), qformer=str(blip2), vision=str(blip2))
    save_model(model, texts, tmp_path / "whole")
    again, _ = load_model(str(tmp_path / "whole"))
    assert "quantization_config" not in (tmp_path / "whole" / "config.json").read_text()
    ids = torch.tensor([[5, 9, 60, 7]])
    torch.testing.assert_close(again.language_model(ids).logits, model.language_model(ids).logits, atol=0, rtol=0)
    lora = TowersConfig(llm="lora", lora_rank=2)
    prepare_towers(model, lora)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter += 0.1
    state = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    state |= {name: value.detach() for name, value in model.named_parameters() if name in model.fresh}
    settings = ModelConfig(llm=str(path), qformer=str(blip2), vision=str(blip2))
    save_trained(tmp_path / "run", model, state, settings, lora, texts)
    merged, _ = load_model(str(tmp_path / "run"))
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(merged.language_model(ids).logits, model.language_model(ids).logits, atol=1e-4, rtol=0)


def test_a_package_that_only_holds_a_gguf_file(tmp_path, monkeypatch):
    path, plain = write_gguf(tmp_path)
    package = tmp_path / "holds_llm"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    path.rename(package / "weights" / "tiny.gguf")
    monkeypatch.syspath_prepend(tmp_path)
    model, _ = joined(llm="package:holds_llm")
    ids = torch.tensor([[5, 9, 60, 7]])
    torch.testing.assert_close(model.language_model(ids).logits, plain(ids).logits, atol=1e-5, rtol=1e-5)
    (package / "other.gguf").write_bytes(b"")
    with pytest.raises(UserError, match=r"no assemble\(\) and holds 2 of them \(other\.gguf, tiny\.gguf\); name one"):
        joined(llm="package:holds_llm")


def test_a_package_that_assembles_nothing_is_said():
    with pytest.raises(UserError, match="package:json: the package gives no GGUF file"):
        joined(llm="package:json")


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_llm_trains_lora_and_comes_back_with_its_logits(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    settings = ModelConfig(llm=str(write_llm(tmp_path / "llm", **BLOCKS)), llm_bits=bits)
    model, texts = join(settings, torch.float32, tokenizers)
    layer = model.language_model.model.layers[0].mlp.gate_proj
    assert layer.weight.dtype in (torch.uint8, torch.int8)
    towers = TowersConfig(llm="lora", lora_rank=2)
    prepare_towers(model, towers)
    inputs = pixels_for(model.eval(), batch(texts))
    model(**inputs).total.backward()
    assert model.query_tokens.grad.abs().sum() > 0
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
        trained = model(**inputs).rows
    state = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    state |= {name: value.detach() for name, value in model.named_parameters() if name in model.fresh}
    save_trained(tmp_path / "run", model, state, settings, towers, texts)
    again, _ = load_model(str(tmp_path / "run"))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**inputs).rows, trained, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="not written whole"):
        save_model(again, texts, tmp_path / "whole")


@torch.no_grad()
def test_four_bits_compute_what_their_unpacked_weights_do(tmp_path):
    functional = pytest.importorskip("bitsandbytes.functional")
    folder = write_llm(tmp_path / "llm", **BLOCKS)
    model, _ = joined(llm=str(folder), llm_bits=4)
    model.language_model.train()  # in evaluation mode bitsandbytes computes in bf16 on some CPUs
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([[5, 9, 60, 7]])
    exact = plain(ids).logits
    modules = dict(plain.named_modules())
    for name, module in model.language_model.named_modules():
        if module.__class__.__name__ == "Linear4bit":
            modules[name].weight.copy_(functional.dequantize_4bit(module.weight.data, module.weight.quant_state))
    ours = model.language_model(ids).logits
    torch.testing.assert_close(ours, plain(ids).logits, atol=1e-3, rtol=1e-3)
    assert (ours - exact).abs().max() > 1e-3


def test_what_cannot_be_quantised_is_said(tmp_path, monkeypatch):
    folder = str(write_llm(tmp_path / "llm"))
    with pytest.raises(UserError, match="nano's own LLM has no weights to quantise"):
        joined(llm_bits=4)
    monkeypatch.setattr(llms, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"llm_bits=4: bitsandbytes is not installed; run pip install bitsandbytes"):
        joined(llm=folder, llm_bits=4)
