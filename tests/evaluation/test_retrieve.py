"""Retrieval over shortlists and blocks against the full matrix of all pairs, in loops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from instructkit.errors import UserError
from instructkit.evaluation import retrieve as retrieval
from instructkit.evaluation import shortlist
from instructkit.evaluation.blocks import Blocks
from instructkit.evaluation.retrieve import Gallery, Pixels, Retrieved, retrieve
from instructkit.evaluation.shortlist import places, shortlists
from instructkit.runs.ranks import Ranks
from tests import forks, lavis_stage1
from tests.evaluation.stand_in import StandIn, gallery
from tests.training.mini import ranks_of

NOT_LISTED = -100.0
"""The predecessor's score of a pair outside a shortlist."""


class Expected(NamedTuple):
    """Scores of all pairs, minus infinity outside shortlists, and the place of the first right one."""

    scores: list[list[float]]
    places: list[int]


def one_by_one(similar: Tensor, match: Tensor, right: Tensor, k: int) -> Expected:
    """Each row by itself: the k most similar by sorting, then their scores by sorting; wrong ones in front."""
    scores, found = [], []
    for row in range(len(similar)):
        order = sorted(range(similar.shape[1]), key=lambda c: (-float(similar[row, c]), bool(right[row, c]), c))
        listed = order[:k]
        score = {column: float(match[row, column]) + float(similar[row, column]) for column in listed}
        scores.append([score.get(column, float("-inf")) for column in range(similar.shape[1])])
        ranked = sorted(listed, key=lambda c: (-score[c], bool(right[row, c])))
        found.append(next((place for place, column in enumerate(ranked, 1) if right[row, column]), 0))
    return Expected(scores, found)


@torch.no_grad()
def full(model: StandIn, given: Gallery, k: int) -> tuple[Expected, Expected]:
    """Both directions from the matrices of all pairs, a pair a forward pass."""
    features = [model.encode_images(given.pixels([number]).values) for number in range(given.images)]
    similar = torch.empty(given.images, len(given.texts))
    match = torch.empty_like(similar)
    for text, words in enumerate(given.texts):
        rows = {"input_ids": torch.tensor([words]), "attention_mask": torch.ones(1, len(words), dtype=torch.long)}
        embedded = model.embed_texts(**rows)[0]
        for image in range(given.images):
            similar[image, text] = max(float(query @ embedded) for query in model.embed_images(features[image])[0])
            match[image, text] = model.match(features[image], torch.tensor([0]), **rows)[0]
    right = torch.tensor([[owner == image for owner in given.owner] for image in range(given.images)])
    return one_by_one(similar, match, right, k), one_by_one(similar.T, match.T, right.T, k)


def blocks(folder: Path, ranks: Ranks | None = None) -> Blocks:
    made = Blocks(folder, ranks or Ranks())
    made.open({"model": "stand-in"})
    return made


def run(model: Any, given: Gallery, folder: Path, k: int = 5, batch_size: int = 3) -> Retrieved:
    found = retrieve(model, given, k, batch_size, blocks(folder))
    assert found is not None
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that there are several, and of unequal size."""
    for module, sizes in (
        (retrieval, {"IMAGES": 5, "TEXTS": 7, "MATCHED": 3}),
        (shortlist, {"IMAGES": 4, "TEXTS": 6}),
    ):
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size)


@pytest.mark.parametrize("k", [1, 5, 17, 128])
def test_both_directions_equal_the_full_matrix(small: None, tmp_path: Path, k: int) -> None:
    model, given = StandIn(), gallery(17, 40)
    found = run(model, given, tmp_path, k)
    for hits, expected in zip((found.of_images, found.of_texts), full(model, given, k), strict=True):
        scores = torch.full((len(expected.scores), len(expected.scores[0])), float("-inf"))
        scores.scatter_(1, hits.numbers, hits.score)
        torch.testing.assert_close(scores, torch.tensor(expected.scores), rtol=0, atol=1e-5)
        assert hits.place.tolist() == expected.places
        assert (hits.score.diff(dim=1) <= 0).all()
    assert (found.images.tolist(), found.texts.tolist(), found.errors) == ([*range(17)], [*range(40)], {})


def test_an_image_is_encoded_twice_however_many_pairs_it_has(small: None, tmp_path: Path) -> None:
    model, given = StandIn(), gallery(17, 40)
    run(model, given, tmp_path)
    assert model.encoded == 2 * 17


def test_the_predecessors_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LAVIS's two score matrices by its model, whose encoder's outputs were recorded."""
    golden, model = lavis_stage1.recorded("retrieval"), lavis_stage1.model()
    norm = model.vision_model.post_layernorm
    monkeypatch.setattr(model, "encode_images", lambda recorded: norm(recorded))
    lengths = golden["attention_mask"].sum(1).tolist()
    given = Gallery(
        images=6,
        pixels=lambda numbers: Pixels(list(numbers), golden["image"][list(numbers)], {}),
        texts=[row[:length] for row, length in zip(golden["input_ids"].tolist(), lengths, strict=True)],
        owner=list(range(6)),
        name="golden",
    )
    found = run(model, given, tmp_path, k=int(golden["k_test"]))
    for hits, name in ((found.of_images, "score_i2t"), (found.of_texts, "score_t2i")):
        scores = torch.full((6, 6), NOT_LISTED).scatter(1, hits.numbers, hits.score)
        torch.testing.assert_close(scores, golden[name], rtol=0, atol=1e-4)


# ---- ties ----


def test_the_place_counts_ties_against_the_model_and_the_best_of_several_right_ones() -> None:
    score = torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [0.0, 5.0, 5.0], [9.0, 8.0, 7.0]])
    right = torch.tensor([[False, True, True], [True, False, False], [True, False, True], [False, False, False]])
    assert places(score, right).tolist() == [2, 3, 2, 0]


@pytest.mark.parametrize("k", [3, 8])
def test_a_model_that_tells_nothing_apart_finds_nothing(small: None, tmp_path: Path, k: int) -> None:
    model = StandIn()
    with torch.no_grad():
        for weight in (model.see, model.word, model.pair):
            weight.fill_(1.0)
        model.query.fill_(0.1)
    given = gallery(8, 20)
    same = given._replace(
        pixels=lambda numbers: Pixels(list(numbers), torch.ones(len(numbers), 3, 4, 4), {}), texts=[[1]] * 20
    )
    found = run(model, same, tmp_path, k)
    # All images are equal, so with all eight listed the right one is the last.
    assert found.of_texts.place.tolist() == [0 if k < 8 else 8] * 20
    assert found.of_images.place.tolist() == [0] * 8


@pytest.mark.parametrize("k", [1, 4, 7, 30])
def test_shortlists_of_similarities_that_repeat(small: None, k: int) -> None:
    """Embeddings of few values: many ties at the end of a shortlist, also across blocks."""
    generator = torch.Generator().manual_seed(k)
    images = torch.randint(0, 2, (13, 2, 3), generator=generator).float()
    texts = torch.randint(0, 2, (29, 3), generator=generator).float()
    owner = torch.arange(29) % 13
    similar = torch.stack([(image @ texts.T).amax(0) for image in images])
    right = owner == torch.arange(13)[:, None]
    for found, matrix, own in zip(
        shortlists(images, texts, owner, k), (similar, similar.T), (right, right.T), strict=True
    ):
        for row, (index, values) in enumerate(zip(found.numbers.tolist(), found.similarity.tolist(), strict=True)):
            order = sorted(range(matrix.shape[1]), key=lambda c: (-float(matrix[row, c]), bool(own[row, c]), c))
            assert index == sorted(order[:k])
            assert values == matrix[row, index].tolist()


# ---- what cannot be read, what is no number ----


def test_an_image_that_cannot_be_read_takes_no_part_and_is_told(small: None, tmp_path: Path) -> None:
    broken = gallery(12, 30, broken=[0, 7])
    found = run(StandIn(), broken, tmp_path / "broken")
    assert found.errors == {0: "0.jpg: torn", 7: "7.jpg: torn"}
    assert found.images.tolist() == [number for number in range(12) if number not in (0, 7)]
    assert found.texts.tolist() == [text for text, owner in enumerate(broken.owner) if owner not in (0, 7)]
    whole = gallery(12, 30)
    kept = [text for text, owner in enumerate(whole.owner) if owner not in (0, 7)]
    numbers = found.images.tolist()
    without = Gallery(
        10,
        lambda some: whole.pixels([numbers[number] for number in some])._replace(numbers=list(some)),
        [whole.texts[text] for text in kept],
        [numbers.index(whole.owner[text]) for text in kept],
        "without them",
    )
    other = run(StandIn(), without, tmp_path / "without")
    assert found.of_images.place.equal(other.of_images.place)
    assert found.of_texts.numbers.equal(found.images[other.of_texts.numbers])
    torch.testing.assert_close(found.of_texts.score, other.of_texts.score)


def test_no_image_at_all_finds_nothing(tmp_path: Path) -> None:
    found = run(StandIn(), gallery(2, 3, broken=[0, 1]), tmp_path)
    assert (len(found.images), len(found.texts)) == (0, 0)
    assert found.errors == {0: "0.jpg: torn", 1: "1.jpg: torn"}


@pytest.mark.parametrize(("weight", "told"), [("query", "embedding of images"), ("word", "texts"), ("pair", "logits")])
def test_what_is_no_number_is_one_line(tmp_path: Path, weight: str, told: str) -> None:
    model = StandIn()
    with torch.no_grad():
        getattr(model, weight).fill_(float("nan"))
    with pytest.raises(UserError, match=f"random: the model's .*{told}.* not finite"):
        run(model, gallery(4, 6), tmp_path)


# ---- blocks ----


def test_going_on_gives_the_same_bytes_and_computes_only_what_is_missing(small: None, tmp_path: Path) -> None:
    given = gallery(17, 40)
    whole = run(StandIn(), given, tmp_path / "whole")
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert len(files) == 1 + 4 + 6 + 1 + 6  # identity, images, texts, shortlists, matches
    for name in sorted(files):
        if name == "identity.json":
            continue
        (tmp_path / "whole" / name).unlink()
        model = StandIn()
        again = run(model, given, tmp_path / "whole")
        assert {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()} == files
        assert again.of_texts.score.equal(whole.of_texts.score)
        assert model.encoded <= 5


def test_blocks_of_something_else_are_refused_or_replaced(tmp_path: Path) -> None:
    made = blocks(tmp_path / "blocks")
    made.keep("images", 0, {"embeds": torch.zeros(1)})
    assert not made.open({"model": "stand-in"})
    assert made.there("images")
    with pytest.raises(UserError, match="holds parts of another evaluation"):
        made.open({"model": "other"})
    assert made.open({"model": "stand-in"}, media="other")
    assert not made.there("images")
    made.keep("images", 0, {"embeds": torch.zeros(1)})
    assert not made.open({"model": "other"}, replace=True)
    assert not made.there("images")
    made.drop()
    assert not made.folder.exists()


@pytest.mark.parametrize("content", [b"", b"no block"])
def test_a_damaged_block_is_named(small: None, tmp_path: Path, content: bytes) -> None:
    run(StandIn(), gallery(4, 6), tmp_path / "blocks")
    (path,) = (tmp_path / "blocks").glob("shortlists.*")
    path.write_bytes(content)
    remedy = f"remove {tmp_path / 'blocks'} and start the evaluation again"
    with pytest.raises(UserError, match=rf"^{path}: damaged \(.*\); {remedy}"):
        run(StandIn(), gallery(4, 6), tmp_path / "blocks")


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_a_damaged_identity_of_blocks_is_named(tmp_path: Path, content: bytes) -> None:
    made = blocks(tmp_path / "blocks")
    made.keep("images", 0, {"embeds": torch.zeros(1)})
    (made.folder / "identity.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"^{made.folder / 'identity.json'}: damaged"):
        made.open({"model": "stand-in"})


# ---- ranks ----


def retrieved(folder: Path, ranks: int, *words: str) -> tuple[list[int | None], dict[str, bytes]]:
    """Exit codes of a retrieval on so many ranks, and the blocks that it left; with words all end with the last."""
    folder.mkdir(exist_ok=True)
    processes = forks.start(
        Path(__file__).with_name("retrieve_ranks.py"), [str(folder), *words], folder / "said", ranks_of(ranks)
    )
    try:
        for process in processes[-1:] if words else processes:
            process.join(120)
    finally:
        forks.end(processes)
    return [each.exitcode for each in processes], {
        path.name: path.read_bytes() for path in (folder / "blocks").glob("*.safetensors")
    }


def test_two_ranks_share_the_blocks_and_leave_the_same_bytes_as_one_killed_or_not(tmp_path: Path) -> None:
    codes, alone = retrieved(tmp_path / "one", 1)
    assert codes == [0], (tmp_path / "one" / "said").read_text()
    two = tmp_path / "two"
    codes, shared = retrieved(two, 2)
    assert codes == [0, 0], (two / "said").read_text()
    assert shared == alone
    each = [int((two / f"kept-{rank}").read_text()) for rank in range(2)]
    assert sum(each) == len(shared)
    assert min(each) >= len(shared) // 2 - 3
    for most in ("2", "7"):  # within the embeddings of images, and within the matches
        killed = tmp_path / f"killed-{most}"
        codes, part = retrieved(killed, 2, most)
        assert codes == [-signal.SIGKILL] * 2
        assert 0 < len(part) < len(alone)
        codes, again = retrieved(killed, 1)
        assert codes == [0], (killed / "said").read_text()
        assert again == alone
        assert int((killed / "kept-0").read_text()) == len(alone) - len(part)
        assert torch.load(killed / "found.pt", weights_only=False)[2] == {4: "4.jpg: torn"}


@pytest.mark.full
def test_memory_of_as_many_images_and_texts_as_coco_has() -> None:
    """5,000 by 25,000, where the matrices of all pairs and queries would take 16 GB: at most 2 GB beside the model."""
    command = [sys.executable, "-m", "tests.benchmarks.retrieval"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1"})
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["images"], figures["texts"]) == (5000, 25000)
    assert 0.1 < figures["peak_gb"] <= 2
