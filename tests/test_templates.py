"""Every template and every protocol, on every source that it is for; nothing to edit here when one is added."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from instructkit import sources
from instructkit.conversion.convert import convert
from instructkit.data.dataset import REJECTED, load_examples
from instructkit.data.examples import TASKS, Example
from instructkit.evaluation import metrics
from instructkit.prompts.protocols import Protocol, benchmarks, load_protocol
from instructkit.prompts.templates import Templates, templates_folder, train_templates
from tests.miniatures import write_release

TRAIN = sorted((templates_folder() / "train").glob("*.yaml"))
PASS_THROUGH = {"llava"}
"""Tasks whose data brings its own instructions."""
LONG_TARGETS = {"llava", "question_generation"}
HINT = re.compile(r"\b(short\w*|brief\w*|concise|words?|single|few|phrase|(one|a) sentence|one-line|in one)\b", re.I)


# ---- the examples of a miniature release, converted as a user would ----


class Converted:
    """Miniature releases, written and converted once a session."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.found: dict[tuple[str, str], list[Example]] = {}

    def raw(self, name: str) -> Path:
        packaged = sources.default_raw(name)
        if packaged is not None:
            return packaged
        raw = self.root / "raw" / name
        if not raw.exists():
            write_release(name, raw, media=False)
        return raw

    def split(self, name: str, split: str) -> list[Example]:
        name = sources.source(name).examples_of or name
        if (name, split) not in self.found:
            outcome = convert(name, self.raw(name), self.root / "out", split=split, limit=200)
            if not outcome.manifest.examples:
                pytest.fail(f"{name}/{split}: no examples; {(outcome.folder / REJECTED).read_text()[:200]}")
            self.found[name, split] = list(load_examples(outcome.folder))
        return self.found[name, split]

    def answered(self, name: str) -> list[Example]:
        """The examples that one can train on, of all splits."""
        source = sources.source(name)
        return [
            example
            for split in sources.source(source.examples_of or name).splits
            for example in self.split(name, split)
            if (example.references if "captioning" in source.task else example.answers)
        ]


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return Converted(tmp_path_factory.mktemp("mini"))


# ---- training templates ----


def test_every_task_has_its_file_and_every_file_its_task() -> None:
    assert {path.stem for path in TRAIN} == set(TASKS)


def test_every_source_has_training_templates_or_a_protocol() -> None:
    evaluated = {load_protocol(name).source for name in benchmarks()}
    trained = {path.stem for path in TRAIN}
    left_out = [source.name for source in sources.sources() if source.task not in trained | evaluated]
    assert left_out == []


def test_every_held_out_source_has_a_protocol() -> None:
    evaluated = {load_protocol(name).source for name in benchmarks()}
    held_out = {source.name for source in sources.sources() if source.role == "held-out"}
    assert held_out - evaluated == set()


@pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.stem)
def test_ten_to_fifteen_wordings(path: Path) -> None:
    count = len(train_templates(path.stem))
    assert count == 1 if path.stem in PASS_THROUGH else 10 <= count <= 15


def test_names_and_wordings_are_unique_over_all_files() -> None:
    templates = [template for path in TRAIN for template in train_templates(path.stem).templates]
    names = Counter(template.name for template in templates)
    wordings = Counter(re.sub(r"\W+", " ", template.instruction).lower() for template in templates)
    assert [name for name, count in names.items() if count > 1] == []
    assert [wording for wording, count in wordings.items() if count > 1] == []


def test_evaluation_prompts_are_not_trained_on() -> None:
    trained = {template.instruction for path in TRAIN for template in train_templates(path.stem).templates}
    # One's own data are asked as they were trained on, in their own words.
    assert trained.isdisjoint(load_protocol(name).instruction for name in benchmarks() if name != "jsonl")


@pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.stem)
def test_short_targets_are_asked_for_as_such_by_most_wordings(path: Path) -> None:
    fixed = [fixed_text(template.instruction) for template in train_templates(path.stem).templates]
    hinted = sum(bool(HINT.search(text)) for text in fixed)
    assert hinted == 0 if path.stem in LONG_TARGETS else hinted >= len(fixed) / 2


@pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.stem)
def test_every_wording_suits_an_example_of_some_source(path: Path, converted: Converted) -> None:
    templates = train_templates(path.stem)
    suited: set[int] = set()
    for source in sources.sources():
        if source.task == path.stem:
            for example in converted.answered(source.name):
                suited.update(templates.fitting(example))
    assert [templates.templates[index].name for index in set(range(len(templates))) - suited] == []


@pytest.mark.parametrize("name", sources.names())
def test_every_template_renders_on_every_source_that_uses_it(name: str, converted: Converted) -> None:
    source = sources.source(name)
    templates = train_templates(source.task)
    examples = converted.answered(name)
    assert examples
    for example in examples:
        for wording in templates.fitting(example):
            prompt = templates.render(example, wording=wording)
            check_spacing(prompt.instruction)
            assert prompt.target in right_targets(source.task, example), prompt


@pytest.mark.parametrize("name", sources.names())
def test_an_instruction_does_not_tell_its_answer(name: str, converted: Converted) -> None:
    source = sources.source(name)
    templates = train_templates(source.task)
    for example in converted.answered(name):
        other = with_another_answer(source.task, example)
        for wording in templates.fitting(example):
            told, untold = (templates.render(each, wording=wording).instruction for each in (example, other))
            assert told == untold


def fixed_text(jinja: str) -> str:
    """What a wording says whatever the example."""
    text = re.sub(r"{{.*?}}|{%.*?%}", "", jinja)
    assert not re.search(r"[{}#]", text), jinja
    return text


def check_spacing(text: str) -> None:
    assert text == text.strip()
    assert "  " not in text


def right_targets(task: str, example: Example) -> set[str]:
    """What a training target may be, by hand."""
    if task == "question_generation":
        return {example.question or ""}
    if "captioning" in task:
        return set(example.references)
    right = {answer for answer in example.answers if answer.strip()}
    if example.choice is not None:
        right.add(example.choices[example.choice])
    if task == "classification" or example.statement is not None:
        right |= {"yes", "true"} if example.choice == 1 else {"no", "false"}
    return right


def with_another_answer(task: str, example: Example) -> Example:
    """The example with all that is to be found out replaced."""
    if task == "question_generation":
        return msgspec.structs.replace(example, question="What else?")
    changed: dict[str, Any] = {
        "answers": [f"answer {number}" for number, _ in enumerate(example.answers)],
        "rationales": [f"reason {number}" for number, _ in enumerate(example.rationales)],
        "relevance": [],
    }
    if "captioning" in task:
        changed["references"] = [f"caption {number}" for number, _ in enumerate(example.references)]
    if example.choice is not None:
        changed["choice"] = (example.choice + 1) % len(example.choices)
    if example.lecture is not None:
        changed["lecture"] = "Another lecture."
    return msgspec.structs.replace(example, **changed)


# ---- protocols ----


@pytest.fixture(params=benchmarks())
def protocol(request: pytest.FixtureRequest) -> Protocol:
    return load_protocol(request.param)


def test_protocol_agrees_with_its_source(protocol: Protocol) -> None:
    source = sources.source(protocol.source)
    assert protocol.split in source.splits
    # The same benchmark asked as BLIP or BLIP-2 is, or a search among its pictures: no average counts it twice.
    extra = "_blip" in protocol.benchmark or protocol.mode == "retrieve"
    assert (protocol.task, protocol.role) == (source.task, "extra" if extra else source.role)
    if protocol.vocabulary is not None:
        assert set(protocol.vocabulary.splits) <= set(source.splits)


def test_protocol_names_a_metric_that_there_is(protocol: Protocol) -> None:
    assert protocol.metric in metrics.NAMES


def test_protocol_renders_ranks_and_scores_its_source(protocol: Protocol, converted: Converted) -> None:
    kept = [example for example in converted.split(protocol.source, protocol.split) if protocol.keeps(example)]
    assert kept
    vocabulary = None
    if protocol.vocabulary is not None:
        splits = protocol.vocabulary.splits
        vocabulary = protocol.vocabulary.texts(each for s in splits for each in converted.split(protocol.source, s))
    for example in kept:
        prompt = protocol.prompt(example)
        assert prompt.target is None
        check_spacing(prompt.instruction.replace("\n Question:", " Question:"))
        reference = protocol.reference(example)
        check_reference(protocol.metric, reference)
        if protocol.mode == "rank":
            options = protocol.options(example, vocabulary)
            texts = {text for texts in options for text in texts}
            assert len(options) > 1
            assert all(map(str.strip, texts))
            if protocol.metric == "top1" and protocol.vocabulary is None:
                assert set(reference) <= texts
            if protocol.metric == "visdial":
                assert 0 <= reference["gold_index"] < len(options)
                assert len(reference["relevance"]) in (0, len(options))


def check_reference(metric: str, reference: Any) -> None:
    """What `instructkit.evaluation.metrics` says that a reference of the metric is."""
    if metric == "roc_auc":
        assert reference in (0, 1)
    elif metric == "visdial":
        assert reference.keys() == {"gold_index", "relevance"}
        assert isinstance(reference["gold_index"], int)
    else:
        assert isinstance(reference, list)
        assert reference
        assert all(isinstance(text, str) for text in reference)


def test_protocol_does_not_depend_on_the_answer(protocol: Protocol, converted: Converted) -> None:
    if protocol.mode == "retrieve":
        pytest.skip("what is searched are the captions themselves")
    for example in converted.split(protocol.source, protocol.split):
        if protocol.keeps(example):
            other = with_another_answer(protocol.task, example)
            assert protocol.prompt(example).instruction == protocol.prompt(other).instruction


@pytest.mark.parametrize("path", sorted(templates_folder().rglob("*.yaml")), ids=lambda path: path.stem)
def test_files_are_yaml_with_a_comment_that_says_what_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert isinstance(yaml.safe_load(text), dict)
    assert Templates(path) if path.parent.name == "train" else load_protocol(path.stem)
