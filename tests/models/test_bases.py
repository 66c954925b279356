"""A trained part and its base: found from wherever one looks, and refused where it is another."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
import transformers.utils.hub
from transformers import AutoModelForCausalLM

from instructkit.config.settings import ModelConfig, TowersConfig
from instructkit.errors import UserError
from instructkit.evaluation.identity import model_identity
from instructkit.models.load.bases import bases_of, check_package, checkpoint_digest, find_base
from instructkit.models.load.trained import save_trained
from instructkit.models.save import load_model
from instructkit.models.towers import prepare_towers
from tests.models.checkpoints import write_instructblip, write_llm, write_vision
from tests.models.test_joining import joined, pixels_for
from tests.models.test_trained import batch, trained_state

LORA = TowersConfig(llm="lora", lora_rank=2)


def saved(folder, names, model, texts):
    """Save a model whose LoRA was trained, and give what it says."""
    prepare_towers(model, LORA)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    save_trained(folder, model, trained_state(model), names, LORA, texts)
    return answers(model, texts)


@torch.no_grad()
def answers(model, texts):
    return model.eval()(**pixels_for(model, batch(texts))).rows


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run in `work` whose base was named by a relative path."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    write_instructblip(tmp_path / "work" / "base")
    model, texts = load_model("base")
    before = saved(tmp_path / "work" / "runs" / "a" / "model", ModelConfig("base"), model, texts)
    return SimpleNamespace(work=tmp_path / "work", folder=tmp_path / "work" / "runs" / "a" / "model", before=before)


def test_a_part_loads_from_any_folder_and_after_both_have_moved(run, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    torch.testing.assert_close(answers(*load_model(str(run.folder))), run.before, atol=2e-5, rtol=1e-5)
    shutil.move(run.work, tmp_path / "moved")
    for place, folder in (("/", tmp_path / "moved/runs/a/model"), (tmp_path / "moved/runs/a/model", ".")):
        monkeypatch.chdir(place)
        torch.testing.assert_close(answers(*load_model(str(folder))), run.before, atol=2e-5, rtol=1e-5)


def test_the_adapter_names_its_base_by_an_absolute_path_and_its_layers_in_order(run):
    content = json.loads((run.folder / "adapters" / "language_model" / "adapter_config.json").read_text())
    assert content["base_model_name_or_path"] == str(run.work / "base")
    assert len(content["target_modules"]) > 8
    assert content["target_modules"] == sorted(content["target_modules"])


def test_a_base_that_is_gone_is_said_and_no_hub_is_asked(run):
    shutil.rmtree(run.work / "base")
    with pytest.raises(UserError, match=r"/work/base is not there, and nothing lies at \.\./\.\./\.\./base"):
        load_model(str(run.folder))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_base_that_has_changed_is_refused(run, file):
    path = run.work / "base" / file
    if file == "config.json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "initializer_range": 0.5}))
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1  # one bit of one weight
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"the base /.*/work/base is not the one that this was trained on") as caught:
        load_model(str(run.folder))
    assert "\n" not in str(caught.value)


def test_a_base_at_another_place_is_taken_where_the_first_place_holds_another_one(run, tmp_path):
    shutil.copytree(run.work, tmp_path / "copy")
    shutil.rmtree(run.work / "base")
    write_llm(run.work / "base")
    torch.testing.assert_close(
        answers(*load_model(str(tmp_path / "copy/runs/a/model"))), run.before, atol=2e-5, rtol=1e-5
    )


def test_every_part_of_a_joined_model_is_found_and_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_instructblip(tmp_path / "blip")
    write_llm(tmp_path / "llm", "qwen2")
    write_vision(tmp_path / "siglip", "siglip")
    names = ModelConfig("blip", vision="siglip", llm="llm")
    before = saved(tmp_path / "run", names, *joined(name="blip", vision="siglip", llm="llm"))
    monkeypatch.chdir("/")
    torch.testing.assert_close(answers(*load_model(str(tmp_path / "run"))), before, atol=2e-4, rtol=1e-4)
    adapter = json.loads((tmp_path / "run" / "adapters" / "language_model" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(tmp_path / "llm")
    AutoModelForCausalLM.from_pretrained(adapter["base_model_name_or_path"])
    for part in ("blip", "llm", "siglip"):
        path = tmp_path / part / "model.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"the base .*/{part} is not the one"):
            load_model(str(tmp_path / "run"))
        path.write_bytes(whole)


def test_a_part_of_a_part_is_found_as_well(run, tmp_path, monkeypatch):
    model, texts = load_model(str(run.folder))
    before = saved(tmp_path / "second", ModelConfig(str(run.folder)), model, texts)
    torch.testing.assert_close(answers(*load_model(str(tmp_path / "second"))), before, atol=2e-5, rtol=1e-5)
    shutil.rmtree(run.work / "base")
    with pytest.raises(UserError, match="work/base is not there"):
        load_model(str(tmp_path / "second"))


def test_the_hubs_commit_is_kept_and_compared(tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    for module in (huggingface_hub.constants, transformers.utils.hub.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(hub))
    cached = hub / "models--someone--blip"
    first, second = "a" * 40, "b" * 40
    write_instructblip(cached / "snapshots" / first)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(first)
    (base,) = bases_of(ModelConfig("someone/blip"), tmp_path).values()
    assert (base.place, base.commit, base.relative, base.digest) == ("someone/blip", first, None, None)
    assert find_base(base, tmp_path) == "someone/blip"
    assert model_identity("someone/blip") == f"someone/blip@{first}"
    shutil.copytree(cached / "snapshots" / first, cached / "snapshots" / second)
    (cached / "refs" / "main").write_text(second)
    with pytest.raises(UserError, match=f"someone/blip is at commit {second} now, this was trained on {first}"):
        find_base(base, tmp_path)


def test_a_packages_file_is_compared(tmp_path, monkeypatch):
    file = tmp_path / "llm.gguf"
    file.write_bytes(b"one")
    monkeypatch.setitem(sys.modules, "some_llm", SimpleNamespace(assemble=lambda: str(file)))
    bases = bases_of(ModelConfig(llm="package:some_llm"), tmp_path)
    assert bases.keys() == {"llm"}  # nano has no checkpoint
    check_package(bases["llm"], tmp_path)
    file.write_bytes(b"two")
    with pytest.raises(UserError, match="what package:some_llm ships is not what"):
        check_package(bases["llm"], tmp_path)


def test_a_digest_is_of_configuration_and_weights_alone(tmp_path):
    write_llm(tmp_path / "llm")
    first = checkpoint_digest(tmp_path / "llm")
    (tmp_path / "llm" / "README.md").write_text("notes")
    assert checkpoint_digest(tmp_path / "llm") == first
    write_llm(tmp_path / "other", hidden_size=64)
    assert checkpoint_digest(tmp_path / "other") != first


def test_a_folder_of_an_earlier_version_still_loads(run, monkeypatch):
    path = run.folder / "instructkit.json"
    content = json.loads(path.read_text())
    del content["bases"]
    content["base"] = content["model"]["name"] = "base"
    path.write_text(json.dumps(content))
    monkeypatch.chdir(run.work)
    torch.testing.assert_close(answers(*load_model(str(run.folder))), run.before, atol=2e-5, rtol=1e-5)
