"""What was trained is saved beside the base's name, and together they give the model that was trained."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel, InstructBlipForConditionalGeneration

from instructkit.config.settings import ModelConfig, TowersConfig
from instructkit.errors import UserError
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.join import join
from instructkit.models.load.trained import save_trained
from instructkit.models.save import load_model, save_model
from instructkit.models.towers import TOWERS as TOWERS_OF_A_MODEL
from instructkit.models.towers import merge_lora, prepare_towers, without_lora
from tests.matrix import mostly_full
from tests.models.checkpoints import write_instructblip, write_llm
from tests.models.test_instruct_blip import batch
from tests.tiny import tiny_model

TOWERS = [
    {"vision": "frozen", "qformer": "full", "llm": "frozen"},
    {"vision": "frozen", "qformer": "full", "llm": "lora"},
    {"vision": "frozen", "qformer": "lora", "llm": "lora"},
    {"vision": "lora", "qformer": "frozen", "llm": "frozen"},
    {"vision": "lora", "qformer": "lora", "llm": "full"},
]


def trained_model(base, settings):
    """A loaded model whose trained parameters have all moved."""
    model, texts = load_model(str(base))
    prepare_towers(model, settings)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval(), texts


def trained_state(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("llm", mostly_full(["llama", "t5", "opt", "gemma", "qwen2"], "llama", "t5"))
@pytest.mark.parametrize(
    "towers", mostly_full(TOWERS, TOWERS[1], TOWERS[4]), ids=lambda towers: "-".join(towers.values())
)
def test_a_loaded_model_gives_the_losses_of_the_trained_one(llm, towers, tmp_path):
    base, texts = tiny_model(llm)
    save_model(base, texts, tmp_path / "base")
    settings = TowersConfig(lora_rank=3, lora_alpha=12, **towers)
    model, texts = trained_model(tmp_path / "base", settings)
    save_trained(tmp_path / "run", model, trained_state(model), ModelConfig(str(tmp_path / "base")), settings)
    again, read = load_model(str(tmp_path / "run"))
    inputs = batch(texts)
    with torch.no_grad():
        before, after, plain = (each.eval()(**inputs).rows for each in (model, again, base))
    torch.testing.assert_close(after, before, atol=2e-5, rtol=1e-5)
    assert (after - plain).abs().max() > 1e-4
    assert not any(".lora_" in name for name in again.state_dict())
    assert read.queries == texts.queries
    kept = load_file(tmp_path / "run" / "trained.safetensors")
    assert ("query_tokens" in kept) == (towers["qformer"] != "frozen")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert not frozen & kept.keys()


@pytest.mark.parametrize("llm", ["llama", "t5"])
def test_peft_loads_the_adapter_and_merges_it(llm, tmp_path):
    base, texts = tiny_model(llm)
    save_model(base, texts, tmp_path / "base")
    settings = TowersConfig(qformer="lora", llm="lora")
    model, _ = trained_model(tmp_path / "base", settings)
    save_trained(tmp_path / "run", model, trained_state(model), ModelConfig(str(tmp_path / "base")), settings)
    plain, _ = load_model(str(tmp_path / "base"))
    wrapped = PeftModel.from_pretrained(plain.eval().language_model, tmp_path / "run" / "adapters" / "language_model")
    ids = torch.tensor([[1, 7, 9, 11]])
    extra = {} if llm == "llama" else {"decoder_input_ids": ids}
    with torch.no_grad():
        expected = model.language_model(input_ids=ids, **extra).logits
        torch.testing.assert_close(wrapped(input_ids=ids, **extra).logits, expected, atol=1e-5, rtol=1e-5)
        merged = wrapped.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids, **extra).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("llm", ["llama", "t5"])
@pytest.mark.parametrize("kind", [InstructBlip, InstructBlipForConditionalGeneration])
def test_an_adapter_loads_onto_its_tower_and_never_silently_onto_the_whole_model(kind, llm, tmp_path):
    base, texts = tiny_model(llm)
    save_model(base, texts, tmp_path / "base")
    settings = TowersConfig(vision="lora", qformer="lora", llm="lora", lora_rank=3)
    model, _ = trained_model(tmp_path / "base", settings)
    save_trained(tmp_path / "run", model, trained_state(model), ModelConfig(str(tmp_path / "base")), settings)
    folders = sorted((tmp_path / "run" / "adapters").iterdir())
    assert [folder.name for folder in folders] == sorted(TOWERS_OF_A_MODEL)
    whole = kind.from_pretrained(tmp_path / "base").eval()
    for folder in folders:
        with pytest.raises(ValueError, match="exclude"):
            PeftModel.from_pretrained(whole, folder)
        assert not any(".lora_" in name for name in whole.state_dict())
    whole.load_state_dict(load_file(tmp_path / "run" / "trained.safetensors"), strict=False)
    for folder in folders:
        PeftModel.from_pretrained(getattr(whole, folder.name), folder)
    own, there = dict(model.named_parameters()), dict(whole.named_parameters())
    assert {name for name in own if ".lora_" in name} == {name for name in there if ".lora_" in name}
    for name, weight in own.items():
        assert torch.equal(weight, there[name]), name


@pytest.mark.parametrize("variant", ["use_rslora", "use_dora"])
@pytest.mark.parametrize("llm", ["llama", "t5"])
def test_adapters_that_peft_itself_wrote_are_merged(llm, variant, tmp_path):
    base, texts = tiny_model(llm)
    save_model(base, texts, tmp_path / "base")
    settings = TowersConfig(qformer="full", llm="lora")
    model, _ = trained_model(tmp_path / "base", settings)
    save_trained(tmp_path / "run", model, trained_state(model), ModelConfig(str(tmp_path / "base")), settings)
    other, _ = load_model(str(tmp_path / "base"))
    names = ["q", "v", "wo"] if llm == "t5" else ["q_proj", "v_proj", "down_proj"]
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=names, init_lora_weights=False, **{variant: True})
    wrapped = get_peft_model(other.language_model, lora).eval()
    wrapped.save_pretrained(tmp_path / "run" / "adapters" / "language_model")
    again, _ = load_model(str(tmp_path / "run"))
    ids = torch.tensor([[1, 7, 9, 11]])
    extra = {} if llm == "llama" else {"decoder_input_ids": ids}
    with torch.no_grad():
        expected, found = (each(input_ids=ids, **extra).logits for each in (wrapped, again.eval().language_model))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert (base.eval().language_model(input_ids=ids, **extra).logits - expected).abs().max() > 1e-3
    assert all(weight.requires_grad for weight in again.parameters())
    save_model(again, texts, tmp_path / "whole")
    merged = InstructBlipForConditionalGeneration.from_pretrained(tmp_path / "whole").eval().language_model
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids, **extra).logits[..., : found.shape[-1]], found)


def less(weights):
    weights.pop(min(weights))


def more(weights):
    weights["base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"] = torch.zeros(3, 32)


def narrow(weights):
    weights[min(weights)] = weights[min(weights)][:-1].contiguous()


def saved_adapter(place):
    """Save a model of which LoRA alone was trained to `place/run`; the folder of its LLM's adapter."""
    base, texts = tiny_model()
    save_model(base, texts, place / "base")
    settings = TowersConfig(llm="lora", lora_rank=3)
    model, _ = trained_model(place / "base", settings)
    save_trained(place / "run", model, trained_state(model), ModelConfig(str(place / "base")), settings)
    return place / "run" / "adapters" / "language_model"


@pytest.mark.parametrize("wrong", [less, more, narrow])
def test_an_adapter_that_does_not_fit_is_one_line(wrong, tmp_path):
    file = saved_adapter(tmp_path) / "adapter_model.safetensors"
    weights = load_file(file)
    wrong(weights)
    save_file(weights, file)
    with pytest.raises(UserError, match=r"adapters/language_model.*: does not fit the base") as caught:
        load_model(str(tmp_path / "run"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("content", [None, "{", "[]", '{"peft_type": "LORA", "r": "x"}'])
def test_a_damaged_configuration_of_an_adapter_is_one_line(content, tmp_path):
    file = saved_adapter(tmp_path) / "adapter_config.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match="adapters/language_model"):
        load_model(str(tmp_path / "run"))


def test_adapters_from_before_they_excluded_the_whole_model_load(tmp_path):
    base, texts = tiny_model()
    save_model(base, texts, tmp_path / "base")
    settings = TowersConfig(llm="lora", lora_rank=3)
    model, _ = trained_model(tmp_path / "base", settings)
    save_trained(tmp_path / "run", model, trained_state(model), ModelConfig(str(tmp_path / "base")), settings)
    file = tmp_path / "run" / "adapters" / "language_model" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "exclude_modules": None}))
    again, _ = load_model(str(tmp_path / "run"))
    with torch.no_grad():
        after, before = (each.eval()(**batch(texts)).rows for each in (again, model))
    torch.testing.assert_close(after, before, atol=2e-5, rtol=1e-5)


def test_lora_on_gpt2_whose_layers_keep_their_matrices_transposed(tmp_path):
    source, llm = write_instructblip(tmp_path / "blip"), write_llm(tmp_path / "gpt2", "gpt2")
    names = ModelConfig(str(source), llm=str(llm))
    model, texts = join(names, torch.float32, lambda: pytest.fail("no tokenizer of nano's is needed"))
    settings = TowersConfig(llm="lora", lora_rank=3, lora_alpha=12)
    prepare_towers(model, settings)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    beside = {name.split(".lora_")[0].split(".", 4)[-1] for name, _ in model.named_parameters() if ".lora_" in name}
    assert beside == {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
    inputs, ids = batch(texts), torch.tensor([[1, 7, 9, 11]])
    with torch.no_grad():
        expected, rows = model.eval().language_model(input_ids=ids).logits, model(**inputs).rows
    save_trained(tmp_path / "run", model, trained_state(model), names, settings, texts)
    again, _ = load_model(str(tmp_path / "run"))
    plain = GPT2LMHeadModel.from_pretrained(llm)
    wrapped = PeftModel.from_pretrained(plain, tmp_path / "run" / "adapters" / "language_model").eval()
    merged = GPT2LMHeadModel.from_pretrained(llm).eval()
    merge_lora(model)
    state = without_lora(model.state_dict())
    merged.load_state_dict(
        {name.removeprefix("language_model."): value for name, value in state.items() if name.startswith("language_m")}
    )
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**inputs).rows, rows, atol=2e-5, rtol=1e-5)
        for llm_alone in (again.language_model, wrapped, merged):
            torch.testing.assert_close(llm_alone(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
        assert (GPT2LMHeadModel.from_pretrained(llm).eval()(input_ids=ids).logits - expected).abs().max() > 1e-3


def test_lora_stands_beside_the_layers_that_a_pattern_names(tmp_path):
    base, texts = tiny_model()
    save_model(base, texts, tmp_path / "base")
    patterns = ["language_model.*.q_proj", "language_model.model.layers.1.mlp.*", "qformer.*.crossattention.*.value"]
    settings = TowersConfig(qformer="lora", llm="lora", lora_targets=patterns)
    model, _ = trained_model(tmp_path / "base", settings)
    beside = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert beside == {
        "language_model.model.layers.0.self_attn.q_proj",
        "language_model.model.layers.1.self_attn.q_proj",
        *(f"language_model.model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")),
        "qformer.encoder.layer.0.crossattention.attention.value",
    }
    save_trained(tmp_path / "run", model, trained_state(model), ModelConfig(str(tmp_path / "base")), settings)
    assert "query_tokens" in load_file(tmp_path / "run" / "trained.safetensors")
    again, _ = load_model(str(tmp_path / "run"))
    plain, _ = load_model(str(tmp_path / "base"))
    plain.load_state_dict(load_file(tmp_path / "run" / "trained.safetensors"), strict=False)
    for tower in ("qformer", "language_model"):
        folder = tmp_path / "run" / "adapters" / tower
        setattr(plain, tower, PeftModel.from_pretrained(getattr(plain, tower).eval(), folder).merge_and_unload())
    inputs = batch(texts)
    with torch.no_grad():
        trained = model(**inputs).rows
        torch.testing.assert_close(again.eval()(**inputs).rows, trained, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(plain.eval()(**inputs).rows, trained, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("towers", "pattern", "message"),
    [
        ({"llm": "lora"}, "language_model.*.q_prj", r"q_prj matches no linear layer; near are .*\*\.self_attn\.q_proj"),
        ({"llm": "lora"}, "qformer.*.query", r"matches qformer\..*query, but that tower is not trained by LoRA"),
        ({"llm": "lora"}, "language_model.lm_head", r"matches no linear layer"),
        (
            {"llm": "lora", "qformer": "lora"},
            "qformer.*.query",
            r"language_model is to be trained by LoRA, but no pattern",
        ),
        ({}, "nothing", r"no tower is trained by LoRA"),
    ],
)
def test_a_pattern_that_matches_no_layer_is_an_error_that_names_near_ones(towers, pattern, message):
    model, _ = tiny_model()
    with pytest.raises(UserError, match=message):
        prepare_towers(model, TowersConfig(lora_targets=[pattern], **towers))


def test_a_base_that_does_not_fit_or_a_torn_file_is_said(tmp_path):
    base, texts = tiny_model()
    save_model(base, texts, tmp_path / "base")
    settings = TowersConfig()
    model, _ = trained_model(tmp_path / "base", settings)
    state = trained_state(model)
    wrong = {**state, "query_tokens": torch.zeros(1, 9, 32)}
    save_trained(tmp_path / "other", model, wrong, ModelConfig(str(tmp_path / "base")), settings)
    with pytest.raises(UserError, match="query_tokens does not fit the base"):
        load_model(str(tmp_path / "other"))
    save_trained(tmp_path / "run", model, state, ModelConfig(str(tmp_path / "base")), settings)
    file = tmp_path / "run" / "trained.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"trained\.safetensors: cannot be read"):
        load_model(str(tmp_path / "run"))


def write_run(folder, **model):
    """The trained part of a tiny model, with these settings of the model in its facts."""
    base, texts = tiny_model()
    save_model(base, texts, folder.parent / "base")
    save_trained(folder, base, {}, ModelConfig(str(folder.parent / "base")), TowersConfig())
    facts = json.loads((folder / "instructkit.json").read_text())
    facts["model"].update(model)
    return facts


@pytest.mark.parametrize("where", ["model", "bases"])
def test_a_folder_cannot_name_code_to_import_without_leave(where, tmp_path, monkeypatch):
    (tmp_path / "evil_llm.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    facts = write_run(tmp_path / "run", allow_packages=True)  # a folder cannot give itself leave
    if where == "model":
        facts["model"]["llm"], facts["bases"] = "package:evil_llm", {}
    else:
        facts["bases"]["llm"] = {"place": "package:evil_llm"}
    (tmp_path / "run" / "instructkit.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"names the Python package evil_llm .*--allow-packages") as caught:
        load_model(str(tmp_path / "run"))
    assert "pip install" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    # A folder whose base is that folder has no more leave than it.
    facts = write_run(tmp_path / "above")
    facts["model"]["name"], facts["bases"] = str(tmp_path / "run"), {}
    (tmp_path / "above" / "instructkit.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="names the Python package evil_llm"):
        load_model(str(tmp_path / "above"))
    assert not (tmp_path / "ran").exists()


def test_a_base_that_leads_back_to_itself_is_one_line(tmp_path):
    for name, base in (("own", "own"), ("first", "second"), ("second", "first")):
        facts = write_run(tmp_path / name)
        facts["model"]["name"], facts["bases"] = str(tmp_path / base), {}
        (tmp_path / name / "instructkit.json").write_text(json.dumps(facts))
    for name in ("own", "first"):
        with pytest.raises(UserError, match="is its own base, by ") as caught:
            load_model(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_pickled_weights_with_code_are_one_line(tmp_path):
    base, texts = tiny_model()
    save_model(base, texts, tmp_path / "base")
    for path in (tmp_path / "base").glob("*.safetensors"):
        path.unlink()

    class Payload:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"x": Payload()}, tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickled and hold more than tensors.*ask for safetensors") as caught:
        load_model(str(tmp_path / "base"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
