"""How the groups of a global batch are dealt out to the ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from instructkit.conversion import convert
from instructkit.data.dataset import load_examples
from instructkit.sources.easy_vqa import default_raw
from instructkit.training.data import Part, TrainingData
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """Easy-VQA's first 20 pictures: the first ten with one question each, the others with all of theirs."""
    folder = tmp_path_factory.mktemp("easy")
    raw = default_raw()
    (folder / "raw" / "train" / "images").mkdir(parents=True)
    shutil.copy(raw / "answers.txt", folder / "raw")
    questions, seen = [], set()
    for row in json.loads((raw / "train" / "questions.json").read_text()):
        if row[2] < 20 and not (row[2] < 10 and row[2] in seen):
            questions.append(row)
        seen.add(row[2])
    (folder / "raw" / "train" / "questions.json").write_text(json.dumps(questions))
    for number in range(20):
        shutil.copy(raw / "train" / "images" / f"{number}.png", folder / "raw" / "train" / "images")
    done = convert.convert("easy_vqa", folder / "raw", folder / "data", split="train")
    examples = load_examples(done.folder)
    return Part("easy_vqa", examples, "vqa", Path(examples.manifest.media_root))


def ranks(part, group_size, world, groups=4):
    _, texts = tiny_model()
    return [
        TrainingData([part], texts, 16, groups=groups, group_size=group_size, rank=rank, world=world)
        for rank in range(world)
    ]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_a_batch_without_overlap(part, world):
    data = ranks(part, 5, world)
    for index in range(8):
        dealt = [list(rank.positions(index)) for rank in data]
        assert {len(positions) for positions in dealt} == {4}
        together = range(index * 4 * world, (index + 1) * 4 * world)
        assert sorted(position for positions in dealt for position in positions) == list(together)


def test_ranks_get_as_many_questions_as_group_sizes_allow(part):
    data = ranks(part, 5, 2)
    uneven = 0
    for index in range(8):
        sizes = [[len(rank.mixture[position].rows) for position in rank.positions(index)] for rank in data]
        everyone = sizes[0] + sizes[1]
        assert 0 <= sum(sizes[0]) - sum(sizes[1]) <= max(everyone) - min(everyone)
        uneven += len(set(everyone)) > 1
    assert uneven > 4


def test_groups_of_one_question_are_taken_in_turn(part):
    first, second = ranks(part, 1, 2)
    assert list(first.positions(3)) == [24, 26, 28, 30]
    assert list(second.positions(3)) == [25, 27, 29, 31]
