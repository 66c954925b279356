"""Benchmarks of retrieval: what a report has of them, which models can do them, what goes wrong and what goes on."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from instructkit.cli import app
from instructkit.config.read import evaluation_settings, find_config, load_config
from instructkit.data.dataset import load_examples, write_shard
from instructkit.errors import UserError
from instructkit.evaluation import retrieve
from instructkit.evaluation.asked import protocol_of
from instructkit.evaluation.run import evaluate
from instructkit.files import sha256_of
from instructkit.models.batches import Captions, Picture, decode
from instructkit.models.blip2 import similarity
from instructkit.models.load.pretraining import load_pretraining
from instructkit.prompts.protocols import load_protocol
from instructkit.reports.compare import write_comparison
from instructkit.reports.report import failed, last_lines, write_evaluation_report
from instructkit.runs.ranks import Ranks
from instructkit.training.datasets import splits_of
from tests.evaluation.small_blocks import SIZES
from tests.evaluation.world import World, evaluate_on_two_ranks, kill_behind, report_bytes

NAME = "coco_retrieval"


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evaluation" / NAME / "responses.jsonl").read_text().splitlines()]


def report_of(world: World, run: Path, **options: Any) -> dict[str, Any]:
    write_evaluation_report(evaluation_settings(world.settings(NAME, run, **options)))
    content: dict[str, Any] = json.loads((run / "report" / "report.json").read_text())
    return content


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> World:
    """COCO's test split, its media in a folder of its own, with a long caption and pictures that can be broken."""
    world = World(tmp_path_factory.mktemp("own"))
    folder = world.split("coco_caption", "test")
    manifest = json.loads((folder / "manifest.json").read_text())
    shutil.copytree(manifest["media_root"], world.root / "media")
    manifest["media_root"] = str(world.root / "media")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return world


@torch.no_grad()
def test_responses_are_what_the_model_says_pair_by_pair(own: World, tmp_path: Path) -> None:
    own.evaluate(NAME, tmp_path)
    protocol = load_protocol(NAME)
    examples = list(load_examples(own.data / "coco_caption" / "test"))
    model, captions = load_pretraining(str(own.first_stage()))
    captions = Captions(captions.tokenizer, 35)
    model.eval()
    size = model.config.vision_config.image_size
    texts = [protocol.captions(example) for example in examples]
    every = [text for each in texts for text in each]
    score = torch.empty(len(examples), len(every))
    for row, example in enumerate(examples):
        features = model.encode_images(decode([Picture(own.root / "media" / example.images[0])], size))
        for column, text in enumerate(every):
            ids = captions.rows([text])
            score[row, column] = model.match(features, torch.tensor([0]), **ids)[0]
            score[row, column] += similarity(model.embed_images(features), model.embed_texts(**ids))[0, 0]
    owner = [number for number, each in enumerate(texts) for _ in each]
    for row, (line, example) in enumerate(zip(lines_of(tmp_path), examples, strict=True)):
        assert line["example"] == example.id
        assert line["reference"] == example.references
        assert line["expected"] == texts[row]
        mine = [column for column, image in enumerate(owner) if image == row]
        best = max(float(score[row, column]) for column in mine)
        ahead = [column for column in range(len(every)) if column not in mine and float(score[row, column]) >= best]
        assert line["prediction"]["text"] == 1 + len(ahead)
        order = score[row].argsort(descending=True).tolist()[:10]
        assert [text for text, _ in line["ranked"]] == [every[column] for column in order]
        assert [value for _, value in line["ranked"]] == pytest.approx(score[row, order].tolist(), abs=1e-4)
        for place, column in enumerate(mine):
            others = [
                image for image in range(len(examples)) if image != row and score[image, column] >= score[row, column]
            ]
            assert line["prediction"]["images"][place] == 1 + len(others)
            found = score[:, column].argsort(descending=True).tolist()[:10]
            assert [path for path, _ in line["found"][place]] == [examples[image].images[0] for image in found]
    assert not (tmp_path / "evaluation" / NAME / "blocks").exists()


def test_the_report_has_both_directions_and_shows_searches(own: World, tmp_path: Path) -> None:
    found = own.evaluate(NAME, tmp_path)
    report = report_of(own, tmp_path)
    entry = report["benchmarks"][NAME]
    assert entry["value"] == entry["details"]["tr_r1"] == found.results[0].value
    assert list(entry["details"]) == list(entry["intervals"])
    text = html.unescape((tmp_path / "report" / "report.md").read_text())
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    for name, label, published in (("tr_r1", "TR R@1", "85.4"), ("ir_r1", "IR R@1", "68.3")):
        (row,) = (row for row in rows if row[0] == "COCO retrieval" and row[-1] == label)
        assert row[1] == f"{entry['details'][name]:.2f}"
        assert row[rows[0].index("BLIP-2 ViT-g, finetuned")] == published
    measured = {row[0]: row[1:] for row in rows if len(row) == 3}
    for name in ("TR R@1", "TR R@5", "TR R@10", "IR R@1", "IR R@5", "IR R@10"):
        assert float(measured[name][0]) == pytest.approx(entry["details"][name.lower().replace(" r@", "_r")], abs=0.005)
        assert " to " in measured[name][1] or measured[name][1] == "-"
    assert "finetuned on COCO" in text
    assert "The 128 most similar are put in order" in text
    searches = {case["prompt"] == "" for case in entry["cases"]}
    assert searches == {True, False}
    page = (tmp_path / "report" / "report.html").read_text()
    for case in entry["cases"]:
        assert 0 < len(case["hits"]) <= 5
        assert case["text"] == case["hits"][0][0]
        assert case["right"] == (case["text"] in case["expected"])
        assert f"found: 1. {case['text']} (" in page
        if case["prompt"]:
            assert case["images"] == [path for path, _ in case["hits"][:4]]
    assert any(f"tr_r1 {entry['details']['tr_r1']:.2f}, ir_r1" in line for line in last_lines(tmp_path))
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "report", other / "report")
    write_comparison([tmp_path, other], tmp_path / "compared")
    compared = html.unescape((tmp_path / "compared" / "comparison.md").read_text())
    assert "TR R@1 |" in compared
    assert "IR R@1 |" in compared


# ---- which model ----


def test_a_model_that_answers_is_told_what_retrieval_takes(own: World, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^coco_retrieval: .* name a folder that recipes/pretrain_qformer\.py wrote"
    ) as told:
        own.evaluate(NAME, tmp_path, model=str(own.model()))
    assert "\n" not in str(told.value)


def test_a_first_stage_is_told_that_it_answers_nothing(own: World, tmp_path: Path) -> None:
    own.benchmark("vsr")
    with pytest.raises(UserError, match=r"^vsr: .*no LLM.*coco_retrieval, coco_retrieval_blip, flickr30k_retrieval$"):
        own.evaluate("vsr", tmp_path, model=str(own.first_stage()))


@pytest.mark.parametrize("first_stage", [True, False])
def test_of_several_benchmarks_a_model_does_what_it_can(own: World, tmp_path: Path, first_stage: bool) -> None:
    own.benchmark("vsr")
    model = own.first_stage() if first_stage else own.model()
    found = own.evaluate(f"vsr,{NAME}", tmp_path, model=str(model))
    assert [each.benchmark for each in found.results] == ([NAME] if first_stage else ["vsr"])
    (missing,) = found.not_evaluated
    assert missing.benchmark == ("vsr" if first_stage else NAME)
    assert "first stage" in missing.reason
    assert failed(found)


def test_the_command_runs_it(own: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--model={own.first_stage()}", f"--data={own.data}", f"--benchmarks={NAME}", f"--output={tmp_path}"]
    with pytest.raises(SystemExit) as ended:
        app(["evaluate", *words])
    assert not ended.value.code
    assert "COCO retrieval: tr_r1 " in capsys.readouterr().out
    assert (tmp_path / "report" / "report.html").is_file()


def test_a_spread_over_wordings_is_told_to_be_none(own: World, tmp_path: Path) -> None:
    lines: list[str] = []
    evaluate(evaluation_settings(own.settings(NAME, tmp_path, spread=2)), Ranks(), lines.append)
    assert [line for line in lines if line.startswith("wording")] == [
        "wording   coco_retrieval: nothing is asked, so there are no wordings to spread over"
    ]


@pytest.mark.parametrize("setting", ["benchmarks", "watch"])
def test_no_run_of_another_model_takes_it(setting: str) -> None:
    config = load_config(find_config("easy_vqa"), [f"{setting}=[{NAME}]", "evaluation.every=1"])
    with pytest.raises(UserError, match="coco_retrieval is a retrieval, which a model of BLIP-2's first stage does"):
        splits_of(config)


def test_nothing_is_asked_by_it(own: World) -> None:
    with pytest.raises(UserError, match="protocol coco_retrieval asks nothing"):
        protocol_of(NAME)


# ---- data ----


def changed(world: World, folder: Path, change: Any) -> Path:
    """A copy of the split, in a data folder of its own, whose examples were changed."""
    place = folder / "coco_caption" / "test"
    shutil.copytree(world.data / "coco_caption" / "test", place)
    examples = [change(number, example) for number, example in enumerate(load_examples(place))]
    (shard,) = place.glob("*.parquet")
    write_shard(shard, examples)
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["checksums"][shard.name] = sha256_of(shard)
    (place / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_long_captions_are_cut_at_their_end_and_counted(own: World, tmp_path: Path) -> None:
    def change(number: int, example: Any) -> Any:
        longer = [" ".join(["red"] * 60), *example.references[1:]] if number == 0 else example.references
        return msgspec.structs.replace(example, references=longer)

    lines: list[str] = []
    data = changed(own, tmp_path / "data", change)
    evaluate(evaluation_settings(own.settings(NAME, tmp_path / "run", data=str(data))), Ranks(), lines.append)
    told = "captions longer than the limit, their beginning kept: 1"
    assert f"cut       {NAME}: {told}" in lines
    report_of(own, tmp_path / "run", data=str(data))
    assert f"C{told[1:]}." in (tmp_path / "run" / "report" / "report.md").read_text()


def test_a_blank_caption_is_an_error_of_its_example(own: World, tmp_path: Path) -> None:
    def change(number: int, example: Any) -> Any:
        return msgspec.structs.replace(example, references=["...", "a dog"]) if number == 0 else example

    (result,) = own.evaluate(NAME, tmp_path / "run", data=str(changed(own, tmp_path / "data", change))).results
    ((name, error),) = result.errors.items()
    assert f"comes out blank for example {name}" in error
    assert result.n == result.available - 1


def test_a_split_with_an_example_a_caption_is_refused_in_one_line(own: World, tmp_path: Path) -> None:
    own.split("coco_caption", "train")
    (missing,) = own.evaluate(f"{NAME}/train", tmp_path).not_evaluated
    assert missing.reason.startswith("coco_caption/train: a retrieval needs a split with one example a picture")


def test_a_broken_picture_takes_no_part_until_it_is_mended(own: World, tmp_path: Path) -> None:
    example = load_examples(own.data / "coco_caption" / "test")[0]
    picture = own.root / "media" / example.images[0]
    whole = own.evaluate(NAME, tmp_path / "whole").results[0]
    good = picture.read_bytes()
    picture.write_bytes(good[:60])
    try:
        found = own.evaluate(NAME, tmp_path / "run")
        (result,) = found.results
        assert list(result.errors) == [example.id]
        assert picture.name in result.errors[example.id]
        assert (result.n, result.available) == (whole.n - 1, whole.n)
        assert failed(found)
        report = report_of(own, tmp_path / "run")
        assert report["benchmarks"][NAME]["errors"].keys() == {example.id}
    finally:
        picture.write_bytes(good)
    mended = own.evaluate(NAME, tmp_path / "run")
    assert mended.results[0].errors == {}
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "whole")


# ---- going on ----


@pytest.mark.parametrize("blocks", [1, 3])
def test_killed_and_started_again_the_report_is_the_same(own: World, tmp_path: Path, blocks: int) -> None:
    run = tmp_path / "killed"
    words = [f"--model={own.first_stage()}", f"--data={own.data}", f"--benchmarks={NAME}", f"--output={run}"]
    kill_behind(blocks, "instructkit.evaluation.blocks:Blocks.keep", ["evaluate", *words, "--batch-size=2"])
    assert len(list((run / "evaluation" / NAME / "blocks").glob("*.safetensors"))) == blocks
    with pytest.raises(UserError, match="of another evaluation"):
        own.evaluate(NAME, run, batch_size=3)
    own.evaluate(NAME, run, batch_size=2)
    report_of(own, run, batch_size=2)
    own.evaluate(NAME, tmp_path / "whole", batch_size=2)
    report_of(own, tmp_path / "whole", batch_size=2)
    assert lines_of(run) == lines_of(tmp_path / "whole")
    assert report_bytes(run) == report_bytes(tmp_path / "whole")


@pytest.mark.parametrize("limit", [30, 1])
def test_two_ranks_and_one_give_the_same_report(
    own: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Of several blocks each; with one picture the second rank has none."""
    for name, size in SIZES.items():
        monkeypatch.setattr(retrieve, name, size)
    options = {"limit": limit, "batch_size": 2}
    script = Path(__file__).with_name("small_blocks.py")
    evaluate_on_two_ranks(own.settings(NAME, tmp_path / "two", **options), script)
    own.evaluate(NAME, tmp_path / "one", **options)
    report_of(own, tmp_path / "one", **options)
    assert lines_of(tmp_path / "two") == lines_of(tmp_path / "one")
    assert report_bytes(tmp_path / "two") == report_bytes(tmp_path / "one")
