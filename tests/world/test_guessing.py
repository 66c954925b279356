"""Guessing does not pay: a classifier on words alone is hardly better than chance, on every benchmark of the world."""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold

from instructkit.conversion.convert import convert
from instructkit.data.dataset import load_examples
from instructkit.data.examples import Example
from instructkit.prompts.protocols import Protocol, benchmarks, load_protocol
from instructkit.world.build import WRITERS
from instructkit.world.captions import describe
from instructkit.world.questions import ask
from instructkit.world.release import Release, Size
from instructkit.world.releases.talked import judge
from instructkit.world.remarks import PRINTED, TOLD, Remark
from instructkit.world.scene import CATEGORIES, HOMES, KINDS, Scene, draw

QUESTIONS = 1000
PROTOCOLS = [
    protocol
    for protocol in map(load_protocol, benchmarks())
    if protocol.source in WRITERS and protocol.mode != "retrieve"  # where there is nothing to guess
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guessing")


def asked(root: Path, protocol: Protocol) -> list[Example]:
    """What a benchmark asks for, without its pictures."""
    raw = root / "raw" / protocol.source
    if not raw.exists():
        release = Release(raw, protocol.source, 0, Size(0, QUESTIONS, 0))
        WRITERS[protocol.source](release)
        release.finish(pictures=False)
    outcome = convert(protocol.source, raw, root / "data", split=protocol.split)
    return [example for example in load_examples(outcome.folder) if protocol.keeps(example)]


def right(protocol: Protocol, example: Example) -> str:
    """The right answer: the option, what most annotators say, or of a caption the kind that it names first."""
    if protocol.metric == "cider":
        words = example.references[0].lower().rstrip(".").split()
        return next(word for word in words if word in KINDS)
    if example.choices:
        assert example.choice is not None
        return example.choices[example.choice]
    return Counter(answer.lower() for answer in example.answers).most_common(1)[0][0]


def read(texts: Sequence[str], answers: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Each answer's probability by a logistic regression on the other texts' words, and the answers."""
    words = CountVectorizer(binary=True, token_pattern=r"[a-z0-9']+").fit_transform(texts)
    classes = sorted(set(answers))
    labels = np.array([classes.index(answer) for answer in answers])
    found = np.zeros((len(texts), len(classes)))
    for others, own in KFold(4, shuffle=True, random_state=0).split(labels):
        model = LogisticRegression(C=0.3, max_iter=300).fit(words[others], labels[others])
        found[np.ix_(own, model.classes_)] = model.predict_proba(words[own])
    return found, classes


def accuracy(texts: Sequence[str], answers: Sequence[str]) -> float:
    found, classes = read(texts, answers)
    return float(np.mean(found.argmax(axis=1) == [classes.index(answer) for answer in answers]))


def ranks(texts: Sequence[str], answers: Sequence[str], choices: Sequence[Sequence[str]]) -> np.ndarray:
    """Place, from 1, of each right answer among the options."""
    found, classes = read(texts, answers)
    places = {text: place for place, text in enumerate(classes)}
    scores = [
        {text: row[places[text]] for text in own if text in places} for row, own in zip(found, choices, strict=True)
    ]
    return np.array([1 + sum(s > own[a] for s in own.values()) for own, a in zip(scores, answers, strict=True)])


def test_there_are_the_thirteen_held_out_benchmarks_and_those_held_in_with_a_test() -> None:
    roles = Counter(protocol.role for protocol in PROTOCOLS)
    assert roles["held-out"] == 13
    held_in = {protocol.source for protocol in PROTOCOLS if protocol.role == "held-in"}
    assert held_in == {"coco_caption", "textcaps", "vqav2", "okvqa", "aokvqa", "ocrvqa"}


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.benchmark)
def test_words_alone_do_not_tell_the_answer(protocol: Protocol, root: Path) -> None:
    """The prompt of the protocol, word by word; chance is one answer of those that the wording leaves open."""
    examples = asked(root, protocol)
    assert len(examples) >= 0.8 * QUESTIONS
    texts = [protocol.prompt(example).instruction.lower() for example in examples]
    answers = [right(protocol, example) for example in examples]
    margin = 0.05
    if protocol.metric == "cider":
        score, chance = accuracy(texts, answers), 1 / len(KINDS)
    elif protocol.metric == "roc_auc":
        found, classes = read(texts, answers)
        assert classes == ["no", "yes"]
        score, chance = roc_auc_score([answer == "yes" for answer in answers], found[:, 1]), 0.5
    elif protocol.metric == "visdial":
        found_ranks = ranks(texts, answers, [example.choices for example in examples])
        score, margin = float(np.mean(1 / found_ranks)), 0.10
        chance = np.mean([np.mean(1 / np.arange(1, 1 + int(example.meta["among"]))) for example in examples])
    elif protocol.candidates == "choices":
        score = float(np.mean(ranks(texts, answers, [example.choices for example in examples]) == 1))
        chance = float(np.mean([1 / len(example.choices) for example in examples]))
    else:
        score, chance = accuracy(texts, answers), float(np.mean([1 / int(e.meta["among"]) for e in examples]))
    print(f"{protocol.benchmark}: {100 * score:.1f}, chance {100 * chance:.1f}")
    assert score <= chance + margin


def test_the_classifier_finds_a_wording_that_tells() -> None:
    """Seven in ten of the questions with "very" are to be answered with yes, as many of the others with no."""
    rng = random.Random(0)
    drawn = [(rng.choice(("very", "so")), rng.random() < 0.7) for _ in range(QUESTIONS)]
    texts = [f"is the {rng.choice(list(KINDS))} {word} big" for word, _ in drawn]
    answers = ["yes" if (word == "very") == usual else "no" for word, usual in drawn]
    assert accuracy(texts, answers) > 0.6


@pytest.mark.parametrize("remarks", [PRINTED, TOLD], ids=["memes", "text"])
def test_unkind_remarks_have_harmless_twins_in_text_and_in_picture(remarks: tuple[Remark, ...]) -> None:
    """The same words are harmless above another picture, the same picture below other words."""
    assert len({remark.text for remark in remarks}) == len(remarks)
    unkind = Counter((remark.fact, remark.unkind) for remark in remarks)
    assert unkind == Counter((remark.fact, remark.harmless) for remark in remarks)
    assert all(remark.unkind != remark.harmless for remark in remarks)
    judged = []
    for number in range(QUESTIONS):
        rng = random.Random(f"twins/{number}")
        judged.append(judge(rng, rng.choice(remarks)))
    for remark in remarks:
        assert {question.answer for question in judged if question.text == remark.text} == {"yes", "no"}
    pictures = [describe(replace(question.scene, signs=())) for question in judged if isinstance(question.scene, Scene)]
    answers = [question.answer for question in judged]
    assert accuracy(pictures, answers) <= 0.55
    assert accuracy([question.text for question in judged], answers) <= 0.55


@pytest.mark.parametrize(("fact", "values"), [("category", CATEGORIES), ("home", HOMES)])
def test_knowledge_questions_need_picture_and_fact(fact: str, values: tuple[str, ...]) -> None:
    """The wording names no kind; the picture shows a kind, and nothing of the group or the place of such things."""
    drawn = [draw(0, f"knowledge/{fact}", number, "test", lambda rng: ask(rng, fact)) for number in range(300)]
    for question in drawn:
        assert isinstance(question.scene, Scene)
        assert question.answer in values
        assert not set(question.text.lower().replace("?", "").split()) & set(KINDS)
        seen = set(re.findall(r"\w+", describe(question.scene).lower()))
        assert seen & set(KINDS)
        assert not seen & set(values)
    by_wording: dict[str, set[str]] = {}
    for question in drawn:
        by_wording.setdefault(question.text, set()).add(question.answer)
    often = [answers for text, answers in by_wording.items() if sum(q.text == text for q in drawn) >= 10]
    assert often
    assert all(len(answers) > 1 for answers in often)
