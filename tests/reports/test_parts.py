"""Calibration, averages, chosen examples, pictures and the comparison of runs, by hand."""

from __future__ import annotations

import base64
import copy
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from instructkit.errors import UserError
from instructkit.evaluation.responses import Answer
from instructkit.prompts.protocols import benchmarks, load_protocol
from instructkit.reports.averages import averages
from instructkit.reports.calibration import calibration, is_right
from instructkit.reports.cases import choose
from instructkit.reports.compare import run_names, write_comparison
from instructkit.reports.html import html
from instructkit.reports.markdown import markdown
from instructkit.reports.pictures import data_uri
from tests.reports.conftest import Written


def test_calibration_by_hand() -> None:
    found = calibration([0.95, 0.91, 0.15, 1.0, 0.0], [True, False, True, True, False])
    assert found is not None
    bins = found["bins"]
    assert [row["n"] for row in bins] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    assert bins[9]["confidence"] == pytest.approx(100 * (0.95 + 0.91 + 1.0) / 3)
    assert bins[9]["accuracy"] == pytest.approx(200 / 3)
    assert bins[2] == {"confidence": None, "accuracy": None, "n": 0}
    by_hand = (3 * abs(2.86 / 3 - 2 / 3) + abs(0.15 - 1) + 0) / 5
    assert found["ece"] == pytest.approx(100 * by_hand)
    assert calibration([], []) is None


def test_right_under_the_auc_is_the_better_candidate() -> None:
    def answer(log_odds: float, label: int) -> Answer:
        return Answer(example="x", prediction=log_odds, reference=label)

    right = [is_right("roc_auc", answer(*each), 0.5) for each in ((0.3, 1), (-0.3, 0), (0.3, 0), (-0.3, 1))]
    assert right == [True, True, False, False]


def test_examples_are_chosen_by_their_ids_alone() -> None:
    answers = [Answer(example=f"x/test/{index}") for index in range(100)]
    scores = [float(index % 3 == 0) for index in range(100)]
    chosen = choose(answers, scores, "exact_match")
    assert [right for right, _ in chosen.values()] == [True] * 4 + [False] * 4
    assert all(right == (int(name.split("/")[-1]) % 3 == 0) for name, (right, _) in chosen.items())
    shuffled = choose(answers[::-1], scores[::-1], "exact_match")
    assert shuffled == chosen
    captions = choose(answers, [index / 10 for index in range(100)], "cider")
    assert all(right == (score > 4.95) for right, score in captions.values())


def entry(name: str, value: float, n: int = 5, available: int = 5) -> dict[str, Any]:
    return {"benchmark": name, "value": value, "n": n, "available": available, "miniature": False}


def test_averages_by_hand() -> None:
    held_out = [name for name in benchmarks() if load_protocol(name).role == "held-out"]
    entries = {name: entry(name, float(index)) for index, name in enumerate(held_out)}
    found = averages(entries)["held_out"]
    assert found["value"] == 6.0
    assert (found["missing"], found["partial"]) == ([], [])
    # The mean of the paper's thirteen figures for InstructBLIP FlanT5-XL.
    figures = [119.9, 84.5, 48.4, 64.8, 50.0, 46.6, 46.6, 56.6, 32.7, 70.4, 43.4, 25.0, 53.1]
    published = {row["model"]: row for row in found["published"]}
    assert published["InstructBLIP FlanT5-XL"]["value"] == pytest.approx(sum(figures) / 13)
    assert published["InstructBLIP FlanT5-XL"]["verified"]
    assert not published["BLIP-2 FlanT5-XL"]["verified"]
    in_percent = averages(entries)["held_out_percent"]
    assert set(held_out) - set(in_percent["benchmarks"]) == {"nocaps", "flickr30k"}
    assert in_percent["value"] == pytest.approx(
        (sum(range(13)) - held_out.index("nocaps") - held_out.index("flickr30k")) / 11
    )
    rows = {row["model"]: row["value"] for row in in_percent["published"]}
    assert rows["InstructBLIP FlanT5-XL"] == pytest.approx(sum(figures[2:]) / 11)
    part = averages(entries | {"gqa": entry("gqa", 1.0, n=2)})["held_out"]
    assert part["partial"] == ["gqa"]
    assert averages(entries | {"gqa": entry("gqa", 1.0) | {"miniature": True}})["held_out"]["published"] == []
    del entries["gqa"]
    assert averages(entries)["held_out"]["value"] is None
    assert averages(entries)["held_out"]["missing"] == ["gqa"]
    four = {name: entry(name, 10.0) for name in ("coco_caption", "okvqa", "aokvqa", "textcaps")}
    assert averages(four)["held_in"]["value"] == 10.0


def test_pictures_are_small_and_several_stand_side_by_side(tmp_path: Path) -> None:
    paths = []
    for number, colour in enumerate([(200, 0, 0), (0, 0, 200)]):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (800, 400), colour).save(path)
        paths.append(path)

    def shown(uri: str) -> Image.Image:
        return Image.open(BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))

    assert shown(data_uri(paths[:1], 4)).size == (320, 160)
    both = shown(data_uri(paths, 4))
    assert both.size == (320, 80)
    left: Any = both.getpixel((80, 40))
    right: Any = both.getpixel((240, 40))
    assert left[0] > 150 > right[0]
    assert right[2] > 150 > left[2]
    with pytest.raises(UserError, match="missing"):
        data_uri([tmp_path / "missing.png"], 4)


# ---- several runs ----


@pytest.fixture
def runs(written: Written, tmp_path: Path) -> list[Path]:
    """The report, and another of a model that scores more on fewer examples under a newer protocol."""
    other = copy.deepcopy(written.json)
    easy = other["benchmarks"]["easy_vqa"]
    easy.update(value=91.25, interval=[85.0, 95.0], n=20, protocol_version=2)
    other["benchmarks"]["nocaps"]["miniature"] = True
    del other["benchmarks"]["msvd_qa"]
    other["config"]["model"] = "better"
    folders = [tmp_path / "a" / "first", tmp_path / "b" / "second"]
    for folder, report in zip(folders, (written.json, other), strict=True):
        (folder / "report").mkdir(parents=True)
        (folder / "report" / "report.json").write_text(json.dumps(report))
    return folders


def test_runs_side_by_side(runs: list[Path], tmp_path: Path) -> None:
    paths = write_comparison(runs, tmp_path / "out")
    assert [path.name for path in paths] == ["comparison.md", "comparison.html"]
    text, page = paths[0].read_text(), paths[1].read_text()
    assert "| benchmark | first | second | metric |" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| easy-VQA")]
    assert row.endswith("| 91.25 (85.0 to 95.0) | exact match |")
    (row,) = [line for line in text.splitlines() if line.startswith("| MSVD-QA")]
    assert row.endswith("| - | top-1 accuracy |")
    told_of = ("versions of the protocol differ (first v1, second v2)", "numbers of examples differ")
    for told in (*told_of, "NoCaps: a miniature in second; the scores cannot be compared"):
        assert told in text
        assert told in page
    assert next(line for line in text.splitlines() if line.startswith("| model |")).endswith("| better |")
    assert "| limit |" not in text
    assert page.count("<svg") == 4


def test_a_score_that_cannot_be_computed_is_told_everywhere(written: Written, tmp_path: Path) -> None:
    report = written.json
    easy = report["benchmarks"]["easy_vqa"]
    easy["groups"] = {"near": [None, 1], "out": [51.5, 3]}
    easy["protocol"]["group_by"] = "domain"
    report["not_evaluated"] = [{"title": "NoCaps", "reason": "no cider can be computed: one image", "errors": {}}]
    text = markdown(report)
    assert "| near | cannot be computed | 1 |" in text
    assert "| out | 51.50 | 3 |" in text
    assert '<td class="number">cannot be computed</td>' in html(report)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report if name == "one" else written.json))
    for path in write_comparison([tmp_path / "one", tmp_path / "two"], tmp_path / "out"):
        assert "NoCaps: one has no score: no cider can be computed: one image" in path.read_text()


def test_names_of_runs(tmp_path: Path) -> None:
    assert run_names([tmp_path / "a" / "x", tmp_path / "b" / "x"]) == ["a/x", "b/x"]
    assert run_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    with pytest.raises(UserError, match="named twice"):
        run_names([tmp_path / "a", tmp_path / "a"])


def test_a_folder_without_a_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no report here"):
        write_comparison([tmp_path], tmp_path / "out")
    (tmp_path / "report.json").write_text("[1, ")
    with pytest.raises(UserError, match=r"report\.json: damaged"):
        write_comparison([tmp_path], tmp_path / "out")
