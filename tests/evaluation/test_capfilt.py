"""CapFilt with fakes: what is kept of which picture, in which files, however often a run is stopped."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import torch
from typer.testing import CliRunner

from instructkit.cli import app
from instructkit.config.settings import CapFiltRun
from instructkit.data.dataset import load_examples
from instructkit.data.media import image_pixels, load_image
from instructkit.errors import UserError
from instructkit.evaluation.capfilt import join, judge
from instructkit.evaluation.capfilt.decide import Rule, decide
from instructkit.evaluation.capfilt.join import Tally
from instructkit.evaluation.capfilt.judge import Judged, Models, Scored, Settings, Text, judge_pictures
from instructkit.evaluation.capfilt.pictures import Captioned, WebPicture, WebPictures
from instructkit.evaluation.capfilt.run import caption_and_filter
from instructkit.runs.ranks import Ranks
from instructkit.training.data import Part
from instructkit.training.pairs import Pictures
from tests import forks
from tests.evaluation.capfilt_fakes import LONG, WORDS, Fake, fit, many, settings, write_human, write_web
from tests.sources import write_picture
from tests.training.mini import ranks_of

PAIRS = many(40)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    write_web(folder, PAIRS)
    write_human(folder)
    return folder


def run(folder: Path, models: Models, output: Path, **changed: Any) -> tuple[Tally, list[str]]:
    config = msgspec.convert(settings(folder, output=str(output), **changed), CapFiltRun)
    lines: list[str] = []
    return caption_and_filter(config, Ranks(), lines.append, lambda _: models), lines


def listed(output: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((output / "capfilt.json").read_text())
    return found


def dropped(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "dropped.jsonl").read_text().splitlines()]


# ---- which pictures ----


def test_a_picture_comes_once_with_all_texts_of_its_address(tmp_path: Path) -> None:
    write_web(tmp_path, [("a/1.jpg", "one"), ("a/2.jpg", "two"), ("a/1.jpg", "first"), ("a/3.jpg", "three")])
    write_web(tmp_path, [("a/1.jpg", "elsewhere"), ("a/1.jpg", "again")], "sbu_caption")
    pictures = WebPictures([Captioned(name, tmp_path / "data") for name in ("cc3m", "sbu_caption")])
    assert (len(pictures), pictures.listed, pictures.repeated) == (4, 6, 2)
    expected = [
        WebPicture("cc3m/train/a/1.jpg", tmp_path / "raw/cc3m/a/1.jpg", ["one", "first"]),
        WebPicture("cc3m/train/a/2.jpg", tmp_path / "raw/cc3m/a/2.jpg", ["two"]),
        WebPicture("cc3m/train/a/3.jpg", tmp_path / "raw/cc3m/a/3.jpg", ["three"]),
        WebPicture("sbu_caption/train/a/1.jpg", tmp_path / "raw/sbu_caption/a/1.jpg", ["elsewhere", "again"]),
    ]
    assert pictures.take(range(4)) == expected
    assert [pictures.take(range(n, n + 1))[0] for n in range(4)] == expected
    assert pictures.take(range(2, 2)) == []


def test_what_is_no_picture_with_captions_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cc3m/train is not converted"):
        Captioned("cc3m", tmp_path)
    with pytest.raises(UserError, match="cc3m has no split"):
        Captioned("cc3m/test", tmp_path)


# ---- judging ----


def pictures_of(tmp_path: Path, texts: list[list[str]]) -> list[WebPicture]:
    found = []
    for number, each in enumerate(texts):
        write_picture(tmp_path / f"{number}.png", number)
        found.append(WebPicture(f"cc3m/train/{number}.png", tmp_path / f"{number}.png", each))
    return found


def test_scores_are_those_of_one_text_and_picture_at_a_time(tmp_path: Path) -> None:
    given = pictures_of(tmp_path, [["A dog!"], ["two cats", "TWO  cats."], [], ["?!.", "..."], ["the sea"]])
    captioner, scorer = Fake(size=8), Fake(size=6)
    found = judge_pictures(Models(captioner, scorer), given, Settings(captions=2, seed=7, batch_size=2))
    for picture, each in zip(given, found, strict=True):
        colour = torch.from_numpy(image_pixels(load_image(picture.path), 6)).mean((1, 2))
        words = [" ".join(Random(f"7/caption/{n}/{picture.name}").choices(WORDS, k=3)) for n in range(2)]
        assert [text.text for text in each.texts if text.origin == "synthetic"] == words
        for text in each.texts:
            assert text.score == (None if text.unread else pytest.approx(fit(colour, text.text), abs=1e-6))
    assert [(t.text, t.unread) for t in found[1].texts[:2]] == [("two cats", ""), ("two cats", "repeat")]
    assert [(t.text, t.unread) for t in found[3].texts[:2]] == [("?", ""), ("", "blank")]
    assert (captioner.encoded, scorer.encoded) == (5, 5)


def test_an_encoder_that_both_share_reads_a_picture_once(tmp_path: Path) -> None:
    both = Fake()
    judge_pictures(Models(both, both), pictures_of(tmp_path, [["a"], ["b"], ["c"]]), Settings(batch_size=2))
    assert both.encoded == 3


def test_captions_do_not_depend_on_batch_or_neighbours(tmp_path: Path) -> None:
    given = pictures_of(tmp_path, [["a"], ["b"], ["c"], ["d"], ["e"]])
    whole = judge_pictures(Models(Fake(), Fake()), given, Settings(batch_size=5))
    for size in (1, 2, 3):
        assert judge_pictures(Models(Fake(), Fake()), given, Settings(batch_size=size)) == whole
    assert judge_pictures(Models(Fake(), Fake()), given[::-1], Settings(batch_size=2)) == whole[::-1]
    other = judge_pictures(Models(Fake(), Fake()), given, Settings(seed=1))
    assert [each.texts[1].text for each in other] != [each.texts[1].text for each in whole]


def test_a_synthetic_caption_that_equals_the_webs_is_a_repeat(tmp_path: Path) -> None:
    (picture,) = pictures_of(tmp_path, [[]])
    caption = judge_pictures(Models(Fake(), None), [picture], Settings())[0].texts[0].text
    scorer = Fake()
    (found,) = judge_pictures(Models(Fake(), scorer), [picture._replace(texts=[f"{caption.upper()} !"])], Settings())
    assert [(text.text, text.origin, text.unread) for text in found.texts] == [
        (caption, "web", ""),
        (caption, "synthetic", "repeat"),
    ]
    assert scorer.read == [caption]


def test_pictures_that_cannot_be_read_are_no_end(tmp_path: Path) -> None:
    given = pictures_of(tmp_path, [["a"], ["b"], ["c"], ["d"]])
    given[0].path.write_bytes(b"torn")
    given[2].path.unlink()
    write_picture(given[3].path)
    load_image(given[3].path).resize((4, 4)).save(given[3].path)
    found = judge_pictures(Models(Fake(), Fake()), given, Settings(batch_size=2))
    assert [bool(each.error) for each in found] == [True, False, True, True]
    assert "0.png: not a picture" in found[0].error
    assert "2.png: no such picture" in found[2].error
    assert "4 x 4 pixels, too small" in found[3].error
    assert [len(each.texts) for each in found] == [1, 2, 1, 1]
    assert [text.score for each in found if each.error for text in each.texts] == [None] * 3


def test_scores_that_are_no_numbers_are_one_line(tmp_path: Path) -> None:
    scorer = Fake()
    scorer.score = lambda features, index, texts: Scored(torch.full((len(texts),), float("nan")), [False])  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"scores are not finite.*dtype=float32"):
        judge_pictures(Models(None, scorer), pictures_of(tmp_path, [["a"]]), Settings())


# ---- deciding ----


def text(score: float | None, unread: str = "", origin: judge.Origin = "web") -> Text:
    return Text("a dog", origin, score, unread)


@pytest.mark.parametrize(
    ("rule", "error", "expected"),
    [
        (Rule(0.5), "", ["", "unmatched", "", "repeat", "unmatched"]),
        (Rule(0.8), "", ["", "unmatched", "unmatched", "repeat", "unmatched"]),
        (Rule(), "", ["", "", "", "repeat", ""]),
        (Rule(keep=2), "", ["", "ranked lower", "", "repeat", "ranked lower"]),
        (Rule(keep=3), "", ["", "", "", "repeat", "ranked lower"]),
        (Rule(keep=9), "", ["", "", "", "repeat", ""]),
        (Rule(0.5), "torn", ["unreadable", "unreadable", "unreadable", "repeat", "unreadable"]),
    ],
)
def test_what_is_kept(rule: Rule, error: str, expected: list[str]) -> None:
    texts = [text(0.9), text(0.3), text(0.5), text(None, "repeat"), text(0.3)]
    assert [why for _, why in decide(Judged("a.jpg", texts, error), rule)] == expected


def test_without_a_filter_all_is_kept_once() -> None:
    texts = [text(None), text(None, "blank"), text(None, origin="synthetic"), text(None, "repeat")]
    assert [why for _, why in decide(Judged("a.jpg", texts), Rule())] == ["", "blank", "", "repeat"]


# ---- a run ----


def plain_run(folder: Path, threshold: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The list and the dropped texts, picture by picture, without blocks, batches and streams."""
    kept, lost = [], []
    by_image: dict[str, list[str]] = {}
    for image, caption in PAIRS:
        by_image.setdefault(image, []).append(caption)
    for image, captions in by_image.items():
        path = folder / "raw" / "cc3m" / image
        texts = [(caption.lower(), "web") for caption in captions]
        torn = "bad" in image
        if not torn:
            drawn = Random(f"0/caption/0/cc3m/train/{image}")
            texts.append((" ".join(drawn.choices(WORDS, k=3)), "synthetic"))
        before = set()
        for words, origin in texts:
            for mark in ".!":
                words = words.replace(mark, " ")
            words = " ".join(words.split())
            pair: dict[str, Any] = {"image": str(path), "caption": words, "origin": origin}
            if not words or words in before:
                why = "repeat" if words else "blank"
            elif torn:
                why = "unreadable"
            else:
                colour = torch.from_numpy(image_pixels(load_image(path), 6)).mean((1, 2))
                pair["score"] = round(fit(colour, words), 6)
                why = "unmatched" if pair["score"] < threshold else ""
            before.add(words)
            if why:
                lost.append({**pair, "why": why})
            else:
                kept.append(pair)
    return kept, lost


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_a_run_writes_what_was_kept_and_what_was_dropped(
    web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: float | None
) -> None:
    monkeypatch.setattr(judge, "PICTURES", 7)
    models = Models(Fake(), Fake(size=6))
    tally, lines = run(web, models, tmp_path, filter={"threshold": threshold})
    kept, lost = plain_run(web, threshold or 0.5)
    human = [pair for pair in listed(tmp_path) if pair["origin"] == "human"]
    assert [pair for pair in listed(tmp_path) if pair["origin"] != "human"] == kept
    assert [{key: value for key, value in each.items() if key != "error"} for each in dropped(tmp_path)] == lost
    assert [(Path(pair["image"]).name, pair["caption"]) for pair in human] == [
        ("1592325.jpg", "a clock on a pole"),
        ("2407890.jpg", "trees with leaves"),
        ("713420.jpg", "a man in a red shirt"),
        ("713420.jpg", "the sky"),
    ]
    assert all(("error" in line) == ("/bad" in line["image"]) for line in dropped(tmp_path))
    images = {image for image, _ in PAIRS}
    assert (tally.pictures, tally.listed, tally.human) == (len(images), len(PAIRS), 4)
    assert tally.unreadable == sum("bad" in image for image in images)
    assert tally.repeated == sum(sum(name == image for name, _ in PAIRS) > 1 for image in images)
    assert tally.cut == sum("score" in each and len(each["caption"]) > LONG for each in (*kept, *lost)) > 0
    some = {pair["image"] for pair in kept}
    assert tally.emptied == len(images) - tally.unreadable - len(some)
    for origin in ("web", "synthetic"):
        mine = [pair for pair in kept if pair["origin"] == origin]
        assert tally.kept[origin] == len(mine)
        reasons = [each["why"] for each in lost if each["origin"] == origin]
        assert tally.dropped[origin] == {why: reasons.count(why) for why in reasons}
        unmatched = reasons.count("unmatched")
        assert tally.noise(origin) == pytest.approx(unmatched / (unmatched + len(mine)))
        assert sum(tally.kept_bins[origin]) == len(mine)
        assert sum(tally.dropped_bins[origin]) == unmatched
    assert any("noise ratio" in line for line in lines)
    assert {*tally.shown} == {"synthetic dropped", "synthetic kept", "web dropped", "web kept"}
    for kind, shown in tally.shown.items():
        assert 0 < len(shown) == len({each.image for each in shown}) <= join.SHOWN
        for each in shown:
            assert each.texts[each.index].origin == kind.split()[0]
            assert bool(each.why[each.index]) == kind.endswith("dropped")


def test_the_list_goes_through_the_source_and_keeps_score_and_origin(web: Path, tmp_path: Path) -> None:
    run(web, Models(Fake(), Fake()), tmp_path / "run")
    done = CliRunner().invoke(
        app,
        ["convert", "web_capfilt", "--raw", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--check-images"],
    )
    assert done.exit_code == 0, done.output
    pairs = listed(tmp_path / "run")
    for folder in (tmp_path / "out", tmp_path / "run" / "data"):
        examples = load_examples(folder / "web_capfilt" / "train")
        assert len(examples) == len(pairs) > 20
        for example, pair in zip(examples, pairs, strict=True):
            assert example.references == [pair["caption"]]
            assert str(examples.media_path(example.images[0])) == pair["image"]
            score = {"score": f"{pair['score']:.6f}"} if "score" in pair else {}
            assert example.meta == {"origin": pair["origin"], **score}


def test_of_several_captions_the_two_best_are_kept_and_training_draws_one(web: Path, tmp_path: Path) -> None:
    models = Models(Fake(), Fake())
    tally, _ = run(web, models, tmp_path, captioner={"captions": 5}, filter={"keep": 2, "score": "itc"})
    assert tally.low == -1
    by_image: dict[str, list[dict[str, Any]]] = {}
    for pair in listed(tmp_path):
        if pair["origin"] != "human":
            by_image.setdefault(pair["image"], []).append(pair)
    assert {len(pairs) for pairs in by_image.values()} == {2}
    worse = [each for each in dropped(tmp_path) if each["why"] == "ranked lower"]
    for each in worse:
        assert each["score"] <= min(pair["score"] for pair in by_image[each["image"]])
    assert len(worse) > 3 * len(by_image)
    examples = load_examples(tmp_path / "data" / "web_capfilt" / "train")
    pictures = Pictures(Part("web_capfilt", examples, "captioning", Path("/")))
    assert len(pictures) == len({pair["image"] for pair in listed(tmp_path)})
    first = by_image[f"/{pictures.caption(0, Random(0)).images[0]}"]
    drawn = {pictures.caption(0, Random(seed)).references[0] for seed in range(20)}
    assert drawn == {pair["caption"] for pair in first}


def test_filter_or_captioner_alone(web: Path, tmp_path: Path) -> None:
    tally, _ = run(web, Models(None, Fake()), tmp_path / "filter", captioner={"model": None})
    assert {*tally.kept} == {"web"}
    assert tally.dropped["web"]["unmatched"] > 0
    tally, _ = run(web, Models(Fake(), None), tmp_path / "captioner", filter={"model": None})
    assert {*tally.kept} == {"web", "synthetic"}
    assert {*tally.dropped["web"]} == {"blank", "repeat", "unreadable"}
    assert all("score" not in pair for pair in listed(tmp_path / "captioner"))


def test_another_threshold_asks_no_model_and_another_seed_is_refused(web: Path, tmp_path: Path) -> None:
    first, _ = run(web, Models(Fake(), Fake()), tmp_path)
    idle = Fake()
    second, _ = run(web, Models(idle, idle), tmp_path, filter={"threshold": 0.9})
    assert idle.encoded == 0
    assert second.kept["web"] < first.kept["web"]
    assert len(load_examples(tmp_path / "data" / "web_capfilt" / "train")) == len(listed(tmp_path))
    for changed in ({"seed": 1}, {"batch_size": 3}, {"captioner": {"top_p": 0.8}}, {"dtype": "bfloat16"}):
        with pytest.raises(UserError, match="holds parts of another run; choose another folder or delete this"):
            run(web, Models(Fake(), Fake()), tmp_path, **changed)


def test_replaced_pictures_are_looked_at_again(tmp_path: Path) -> None:
    write_web(tmp_path, [("a/1.jpg", "one"), ("a/bad.jpg", "two")])
    words = {"data": {"human": []}}
    tally, _ = run(tmp_path, Models(Fake(), Fake()), tmp_path / "run", **words)
    assert tally.unreadable == 1
    write_picture(tmp_path / "raw" / "cc3m" / "a" / "bad.jpg", 5)
    tally, lines = run(tmp_path, Models(Fake(), Fake()), tmp_path / "run", **words)
    assert tally.unreadable == 0
    assert any(line.startswith("media     pictures were replaced") for line in lines)


def test_without_pictures_there_is_an_error_and_with_no_pair_an_empty_list(web: Path, tmp_path: Path) -> None:
    write_web(tmp_path, [("a/1.jpg", "one")])
    (tmp_path / "raw" / "cc3m" / "a" / "1.jpg").unlink()
    with pytest.raises(UserError, match="cc3m/train: none of 1 media files"):
        run(tmp_path, Models(Fake(), Fake()), tmp_path / "run", data={"human": []})
    tally, _ = run(web, Models(None, Fake()), tmp_path / "none", data={"human": []}, filter={"threshold": 1.0})
    assert (
        tally.kept.get("web", 0)
        == len(listed(tmp_path / "none"))
        == len(load_examples(tmp_path / "none" / "data" / "web_capfilt" / "train"))
    )


def test_a_folder_that_holds_something_else_is_refused(web: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run: another run lies here, with checkpoints/; choose another folder"):
        run(web, Models(Fake(), Fake()), tmp_path / "run")
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "ccs_filtered.json").write_text('[{"image": "a.jpg", "caption": "a dog"}]')
    with pytest.raises(UserError, match=r"release: ccs_filtered\.json lies here, too, which web_capfilt reads first"):
        run(web, Models(Fake(), Fake()), tmp_path / "release")


def test_a_dataset_is_named_once(web: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cc3m/train is named twice"):
        run(web, Models(Fake(), Fake()), tmp_path, data={"web": ["cc3m", "cc3m/train"]})


# ---- ranks ----


def on_ranks(web: Path, output: str, ranks: int, *words: str) -> tuple[list[int | None], dict[str, bytes]]:
    """Exit codes of a run on so many ranks, and the bytes of all that it left; with a word all end with the last."""
    (web / output).mkdir(exist_ok=True)
    said = web / f"{output}.said"
    script = Path(__file__).with_name("capfilt_ranks.py")
    processes = forks.start(script, [str(web), output, *words], said, ranks_of(ranks))
    try:
        for process in processes[-1:] if words else processes:
            process.join(120)
    finally:
        forks.end(processes)
    codes = [each.exitcode for each in processes]
    assert words or codes == [0] * ranks, said.read_text()
    files = {
        path.relative_to(web / output).as_posix(): path.read_bytes()
        for path in sorted((web / output).rglob("*"))
        if path.is_file() and not path.name.startswith("kept-")
    }
    return codes, files


def made(files: dict[str, bytes]) -> dict[str, bytes]:
    """All but the report, which says how the run was called."""
    return {name: content for name, content in files.items() if not name.startswith("report")}


def test_ranks_share_the_blocks_and_leave_the_same_bytes_killed_or_not(web: Path) -> None:
    alone = made(on_ranks(web, "one", 1)[1])
    shared = made(on_ranks(web, "two", 2)[1])
    assert shared == alone
    blocks = [name for name in alone if name.endswith(".safetensors")]
    assert len(blocks) == 8
    assert [int((web / "two" / f"kept-{rank}").read_text()) for rank in range(2)] == [4, 4]
    codes, part = on_ranks(web, "killed", 2, "3")
    assert -signal.SIGKILL in codes
    assert 0 < sum(name.endswith(".safetensors") for name in part) < len(blocks)
    assert made(on_ranks(web, "killed", 1)[1]) == alone
