"""A model that is not there is told before anything else is done, with the names that are near; no hub is retried."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
from httpx import ConnectTimeout, Request, Response
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from instructkit.config.settings import ModelConfig, TowersConfig, WholeModelConfig
from instructkit.errors import UserError
from instructkit.models.load import find
from instructkit.models.load.join import join
from instructkit.models.load.look import look_for_model
from instructkit.models.load.trained import save_trained
from instructkit.models.save import load_model
from instructkit.models.towers import prepare_towers
from tests.models.checkpoints import write_bert, write_instructblip, write_llm, write_vision
from tests.models.test_trained import trained_state


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a run, and a hub that nothing may ask."""
    monkeypatch.chdir(tmp_path)
    write_instructblip(tmp_path / "runs" / "finetune" / "model")
    (tmp_path / "runs" / "finetune" / "checkpoints" / "step-00000010").mkdir(parents=True)
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"")
    monkeypatch.setattr(find, "get_hf_file_metadata", lambda *args, **options: pytest.fail("the hub was asked"))
    return tmp_path


MODEL = "runs/finetune/model"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/finetune", f"holds no model (no config.json); did you mean {MODEL}?"),
        ("runs", f"holds no model (no config.json); did you mean {MODEL}?"),
        ("runs/finetune/checkpoints", f"holds no model (no config.json); did you mean {MODEL}?"),
        ("runs/empty", "holds no model (no config.json)"),
        ("runs/finetune/modle", f"no such folder; did you mean {MODEL}?"),
        ("runs/finetune/best", f"no such folder; did you mean {MODEL}?"),
        ("runs/finetun/model", f"no such folder; did you mean {MODEL}?"),
        ("./runs/finetnue", f"no such folder; did you mean {MODEL}?"),
        ("/nowhere/at/all", "no such folder"),
        ("photo.jpg", "that is a file; name the folder of a model"),
        ("instruct_blip_vicuna7b_trimmed.pth", "no such file"),
        ("vicuna-7B", "no such folder, and no published size has that name; did you mean vicuna-7b"),
        ("vicuna7b", "no such folder, and no published size has that name; did you mean vicuna-7b"),
        ("instructblip_flan_t5_xl", "no such folder, and no published size has that name; did you mean flan-t5-xl"),
        ("elephant", "no such folder, and no published size has that name; there are the published sizes flan-t5-xl"),
    ],
)
def test_a_model_that_is_not_there_is_told_with_what_is_near(here: Path, name: str, message: str) -> None:
    for load in (
        lambda: look_for_model(WholeModelConfig(name=name)),
        lambda: look_for_model(ModelConfig(name=name)),
        lambda: find.find_model(name),
    ):
        with pytest.raises(UserError) as caught:
            load()
        said = str(caught.value)
        assert said.startswith(f"model.name={name}: ")
        assert message in said
        assert said.isprintable()


@pytest.mark.parametrize("part", ["vision", "qformer", "llm"])
def test_parts_are_looked_for_as_well(here: Path, part: str) -> None:
    for name, message in [("runs/empty", "holds no model"), ("none/of/these", "no such folder"), ("nano", "a shape")]:
        with pytest.raises(UserError, match=rf"model\.{part}={name}: .*{message}"):
            look_for_model(ModelConfig(**{part: name}))


def test_what_is_there_is_found(here: Path) -> None:
    look_for_model(ModelConfig())
    look_for_model(WholeModelConfig(name=MODEL))
    write_llm(here / "llm")
    write_vision(here / "clip", "clip")
    look_for_model(ModelConfig(name=MODEL, vision="clip", llm="llm"))


def test_a_model_of_another_kind_is_told_from_its_configuration(here: Path) -> None:
    write_bert(here / "bert")
    with pytest.raises(UserError, match=r"model\.name=bert: a bert, no InstructBLIP"):
        look_for_model(ModelConfig(name="bert"))
    with pytest.raises(UserError, match=r"model\.name=bert: a bert; parts replace those"):
        look_for_model(ModelConfig(name="bert", llm=MODEL))
    with pytest.raises(UserError, match="nano: that is a shape that training starts from random weights"):
        look_for_model(WholeModelConfig(name="nano"))


def test_the_base_of_a_trained_part_is_looked_for(here: Path) -> None:
    model, texts = load_model(MODEL)
    towers = TowersConfig(llm="lora", lora_rank=2)
    prepare_towers(model, towers)
    save_trained(here / "tuned", model, trained_state(model), ModelConfig(MODEL), towers, texts)
    look_for_model(ModelConfig("tuned"))
    (here / "runs" / "finetune").rename(here / "runs" / "gone")
    for settings in (ModelConfig("tuned"), WholeModelConfig("tuned")):
        with pytest.raises(UserError, match=f"tuned: the base .*{MODEL} is not there"):
            look_for_model(settings)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            RepositoryNotFoundError,
            r"the Hugging Face hub has no model runs/x, or it is private \(then: hf",
        ),
        (GatedRepoError, "the hub gives runs/x only to those who accepted its terms"),
        (ConnectTimeout, r"runs/x is not in the cache of the Hugging Face hub, which cannot be asked \(why\)"),
    ],
)
def test_the_hub_is_asked_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, answer: type[Exception], message: str
) -> None:
    asked = []

    def ask(url: str, **options: object) -> None:
        asked.append(url)
        request = Request("HEAD", url)
        raise answer("why") if answer is ConnectTimeout else answer("why", response=Response(404, request=request))

    monkeypatch.setattr(find, "get_hf_file_metadata", ask)
    with pytest.raises(UserError, match=f"model.name=runs/x: no such folder, and {message}"):
        look_for_model(WholeModelConfig(name="runs/x"))
    assert asked == ["https://huggingface.co/runs/x/resolve/main/config.json"]


def test_what_the_cache_of_the_hub_keeps_is_not_asked_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = here / "hub" / "models--Salesforce--instructblip-vicuna-7b"
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc" / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here / "hub"))
    find.find_model("vicuna-7b")


def test_the_hub_is_not_retried_where_a_part_is_loaded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(find, "get_hf_file_metadata", lambda url, **options: asked.append(url) or 1 / 0)
    with pytest.raises(UserError, match=r"model\.llm=gpt9: no such folder, and gpt9 is not in the cache"):
        join(ModelConfig(llm="gpt9", name=MODEL), None, lambda: None)  # type: ignore[arg-type]
    assert len(asked) == 1
