"""BLIP as captioner and filter: what it writes and scores against plain calls, and the recipe from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import torch

from instructkit.config.settings import CapFiltRun, CaptionerConfig, FilterConfig
from instructkit.errors import UserError
from instructkit.evaluation.capfilt.judge import Models, Settings, judge_pictures
from instructkit.evaluation.capfilt.models import BlipTool, load_models
from instructkit.models.batches import Captions, Picture, decode
from instructkit.models.blip import Blip
from instructkit.models.load.blip import join_blip
from instructkit.models.load.new_tokenizers import train_qformer_tokenizer
from instructkit.models.save import save_blip
from instructkit.training.recipe import run_recipe
from tests.evaluation.capfilt_fakes import many, write_human, write_web
from tests.evaluation.test_capfilt import listed, pictures_of
from tests.models.checkpoints import write_bert
from tests.models.test_blip_tasks import write_class
from tests.tiny import SENTENCES

TEXTS = ["a red circle on a light background", "is there a triangle", "yes no red green blue " * 8]
PROMPT = "a picture of"


def nano(seed: int = 0) -> tuple[Blip, Captions]:
    """A small BLIP with random weights, large enough that what it says depends on the picture."""
    model, captions = join_blip(
        None, None, "all_but_self_attention", lambda: train_qformer_tokenizer([*SENTENCES, PROMPT], 110), seed=seed
    )
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=noise)
    return model.eval(), captions


@pytest.fixture(scope="module")
def blip() -> tuple[Blip, Captions]:
    return nano()


def tool(blip: tuple[Blip, Captions], **how: Any) -> BlipTool:
    score = how.pop("score", "itm")
    return BlipTool(*blip, CaptionerConfig(**how), FilterConfig(score=score))


@pytest.fixture
def pixels(blip: tuple[Blip, Captions], tmp_path: Path) -> torch.Tensor:
    paths = [Picture(each.path) for each in pictures_of(tmp_path, [[]] * 4)]
    return decode(paths, blip[0].config.vision_config.image_size)


def draws(count: int = 1, pictures: int = 4) -> list[list[Random]]:
    return [[Random(f"{picture}/{number}") for number in range(count)] for picture in range(pictures)]


@torch.no_grad()
def one_by_one(
    blip: tuple[Blip, Captions], features: torch.Tensor, draw: Random, top_p: float, least: int, most: int
) -> str:
    """A caption token by token, the whole text read anew for each."""
    model, captions = blip
    end = captions.tokenizer.sep_token_id
    start = captions.encode([PROMPT])[0][0][:-1]
    ids: list[int] = []
    while len(ids) < most:
        rows = torch.tensor([start + ids])
        logits = model.tell(features, torch.tensor([0]), rows, torch.ones_like(rows))[0, -1]
        if len(ids) < least:
            logits[end] = -torch.inf
        chances, order = logits.double().softmax(-1).sort(descending=True)
        size = int((chances.cumsum(0) < top_p).sum()) + 1
        place = draw.random() * float(chances[:size].sum())
        token = next(int(t) for t, reached in zip(order, chances.cumsum(0), strict=True) if reached > place)
        if token == end:
            break
        ids.append(token)
    return captions.tokenizer.decode(ids, skip_special_tokens=True)


@torch.no_grad()
@pytest.mark.parametrize(("top_p", "least", "most"), [(0.9, 5, 20), (0.3, 0, 7), (1.0, 3, 9)])
def test_captions_are_those_of_a_token_by_token_nucleus(
    blip: tuple[Blip, Captions], pixels: torch.Tensor, top_p: float, least: int, most: int
) -> None:
    used = tool(blip, top_p=top_p, min_tokens=least, max_tokens=most)
    features = used.encode(pixels)
    written = used.write(features, draws(2))
    expected = [
        [one_by_one(blip, features[n : n + 1], draw, top_p, least, most) for draw in each]
        for n, each in enumerate(draws(2))
    ]
    assert written == expected
    assert len({text for each in written for text in each}) > 4


@torch.no_grad()
def test_beams_give_what_transformers_own_search_gives(blip: tuple[Blip, Captions], pixels: torch.Tensor) -> None:
    used = tool(blip, decoding="beams", beams=3, prompt=None)
    features = used.encode(pixels)
    ids = blip[0].generate(features, num_beams=3, do_sample=False, min_new_tokens=5, max_new_tokens=20)
    expected = blip[1].tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert [text for (text,) in used.write(features, draws())] == expected


@torch.no_grad()
def test_scores_are_the_heads(blip: tuple[Blip, Captions], pixels: torch.Tensor) -> None:
    model, captions = blip
    index = torch.tensor([0, 0, 3])
    for score in ("itm", "itc"):
        used = tool(blip, score=score)
        features = used.encode(pixels)
        found = used.score(features, index, TEXTS)
        assert list(found.cut) == [False, False, True]
        for number, (image, text) in enumerate(zip(index.tolist(), TEXTS, strict=True)):
            rows = captions.rows([text])
            if score == "itm":
                no, yes = model.judge(features[image : image + 1], torch.tensor([0]), **rows)[0]
                expected = 1 / (1 + torch.exp(no - yes))
            else:
                expected = model.embed_images(features[image : image + 1])[0, 0] @ model.embed_texts(**rows)[0]
            torch.testing.assert_close(found.scores[number], expected, atol=1e-5, rtol=1e-5)


def test_each_models_encoder_reads_a_picture_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode = Blip.encode_images
    monkeypatch.setattr(Blip, "encode_images", lambda self, pixels: seen.append(len(pixels)) or encode(self, pixels))
    for name, seed in (("captioner", 0), ("scorer", 1)):
        save_blip(*nano(seed), tmp_path / name)
    given = pictures_of(tmp_path, [["a red circle"], ["a triangle"], ["green"]])
    for names, models in ((("captioner", "captioner"), 1), (("captioner", "scorer"), 2)):
        loaded = load_models(run_config(tmp_path, *names))
        assert (loaded.captioner is loaded.filter) == (models == 1)
        seen.clear()
        judge_pictures(loaded, given, Settings(batch_size=2))
        assert sum(seen) == models * len(given)


def run_config(folder: Path, captioner: str, scorer: str) -> CapFiltRun:
    plain = {"captioner": {"model": str(folder / captioner)}, "filter": {"model": str(folder / scorer)}}
    return msgspec.convert(plain, CapFiltRun)


def test_transformers_classes_do_what_they_are_for(tmp_path: Path) -> None:
    for task in ("captioning", "retrieval"):
        write_class(tmp_path / task, task)
    loaded = load_models(run_config(tmp_path, "captioning", "retrieval"))
    given = pictures_of(tmp_path, [["a red circle"], ["a blue circle"]])
    for each in judge_pictures(loaded, given, Settings(batch_size=2)):
        assert [text.origin for text in each.texts] == ["web", "synthetic"]
        assert all(text.score is not None for text in each.texts)
    with pytest.raises(
        UserError, match=r"filter\.model=.*: is a BLIP for captioning; CapFilt's filter is a BLIP for ret"
    ):
        load_models(run_config(tmp_path, "captioning", "captioning"))
    with pytest.raises(UserError, match=r"captioner\.model=.*: is a BLIP for retrieval; CapFilt's captioner is"):
        load_models(run_config(tmp_path, "retrieval", "retrieval"))
    with pytest.raises(
        UserError, match=r"captioner\.model=.*: is no BLIP; CapFilt's captioner is a BLIP for captioning"
    ):
        load_models(run_config(tmp_path, str(write_bert(tmp_path / "bert")), "retrieval"))


def test_captions_do_not_depend_on_the_batch(blip: tuple[Blip, Captions], tmp_path: Path) -> None:
    given = pictures_of(tmp_path, [["a red circle"], ["a triangle"], [], ["green"], ["blue"]])
    used = tool(blip)
    whole = judge_pictures(Models(used, used), given, Settings(batch_size=5, captions=2))
    for size in (1, 3):
        for one, other in zip(whole, judge_pictures(Models(used, used), given, Settings(2, 0, size)), strict=True):
            assert [text.text for text in one.texts] == [text.text for text in other.texts]
            for a, b in zip(one.texts, other.texts, strict=True):
                assert a.score == (None if b.score is None else pytest.approx(b.score, abs=1e-5))


def test_the_recipe_from_data_to_report(tmp_path: Path) -> None:
    write_web(tmp_path, many(20))
    write_human(tmp_path)
    save_blip(*nano(), tmp_path / "model")
    words = {
        "data.root": tmp_path / "data",
        "data.web": ["cc3m"],
        "data.human": ["vg_caption"],
        "captioner.model": tmp_path / "model",
        "filter.model": tmp_path / "model",
        "output": tmp_path / "run",
        "batch_size": 4,
    }
    folder = run_recipe("capfilt", words)
    pairs = listed(folder)
    assert {pair["origin"] for pair in pairs} <= {"web", "synthetic", "human"}
    assert sum(pair["origin"] == "human" for pair in pairs) == 4
    report = json.loads((folder / "report" / "report.json").read_text())["capfilt"]
    assert sum(report["kept"].values()) == len(pairs) - 4
    assert report["pictures"] == 20
    with pytest.raises(UserError, match="holds parts of another run"):
        run_recipe("capfilt", {**words, "captioner.decoding": "beams"})
