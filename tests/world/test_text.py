"""The text about the world: every form of a held-out benchmark, none of its facts in that form, no scene of a test."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase
from typing import NamedTuple

import pytest
import typer
from typer.testing import CliRunner

from instructkit.conversion.convert_all import convert_all
from instructkit.data.dataset import load_examples
from instructkit.data.examples import Example
from instructkit.errors import UserError
from instructkit.models.load.new_tokenizers import train_llm_tokenizer
from instructkit.models.plain_text import PlainText
from instructkit.prompts.protocols import Protocol, benchmarks, load_protocol
from instructkit.prompts.templates import Templates, templates_folder
from instructkit.world import lessons
from instructkit.world import text as module
from instructkit.world.build import WRITERS
from instructkit.world.facts import HELD_IN, HELD_OUT, TEXT
from instructkit.world.release import Release, Size, side_of
from instructkit.world.remarks import PRINTED, TOLD
from instructkit.world.scene import KINDS, PLACES, UNSEEN, Film, Scene, Thing
from instructkit.world.text import (
    DOCUMENTS,
    TRAINED_AS,
    WORDED_AS,
    Document,
    digest_of,
    documents,
    question_of,
    tell,
    write,
)

COUNT = 12_000
THING = re.compile(rf"({'|'.join(sorted(PLACES, key=len, reverse=True))}) an? (\w+) (\w+) (\w+) (\w+)(?=[;.])")
PROMPT = re.compile(
    r" (?=Question: |Based on |Context: |OCR tokens: |This is an image with: |Dialog history: "
    r"|A short image description)"
)
ASKED = re.compile(r'Question: (.+?) (?:Options:|Short answer:|Answer:)|true or false\? "(.+?)"|image with: "(.+?)"')


class Asked(NamedTuple):
    """An example of a source, with the first scene or film that it shows."""

    source: str
    split: str
    example: Example
    scene: Scene | Film

    @property
    def form(self) -> str:
        return (HELD_IN | HELD_OUT)[self.source].form


@pytest.fixture(scope="module")
def written() -> list[Document]:
    return list(documents(0, COUNT))


@pytest.fixture(scope="module")
def as_benchmark(written: list[Document]) -> list[Document]:
    """Documents that ask in the words of a benchmark."""
    return [document for document in written if document.words in WORDED_AS.values()]


@pytest.fixture(scope="module")
def as_training(written: list[Document]) -> list[Document]:
    """Documents that ask in the words of a training template."""
    return [document for document in written if document.words in TRAINED_AS.values()]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[Asked]:
    """The examples of training and of all tests; training splits of held-out datasets are neither."""
    root = tmp_path_factory.mktemp("shown")
    releases = {}
    for name, write_release in WRITERS.items():
        releases[name] = Release(root / "raw" / name, name, 0, Size(1, 60, 8))
        write_release(releases[name])
        releases[name].finish(pictures=False)
        for path in map(releases[name].root.joinpath, (*releases[name].pictures, *releases[name].films)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    found = []
    for result in convert_all(root / "raw", root / "data", every_split=True):
        name, split = result.source, result.split
        wanted = name in HELD_IN or (name in HELD_OUT and side_of(split) == "test")
        if not wanted or (name, split) == ("flickr30k", "all"):  # the latter is made of the other splits
            continue
        assert result.outcome is not None, result
        scenes = {
            f"{name}/{path}": scene for path, scene in {**releases[name].pictures, **releases[name].films}.items()
        }
        for example in load_examples(result.outcome.folder):
            for path in example.images or [str(example.video)]:
                (scene,) = {scene for where, scene in scenes.items() if where.endswith(f"/{path}")}
                found.append(Asked(name, split, example, scene))
    return found


def of_form(written: list[Document], form: str) -> list[Document]:
    return [document for document in written if document.form == form]


def held_out() -> Iterator[Protocol]:
    for name in benchmarks():
        if (protocol := load_protocol(name)).role == "held-out" and protocol.source in HELD_OUT:
            yield protocol


def test_a_prompt_has_the_same_tokens_behind_a_description_as_on_its_own(
    written: list[Document], as_benchmark: list[Document]
) -> None:
    """What reads it later has no description in front of it."""
    tokenizer = train_llm_tokenizer([document.text for document in written], 2048)
    plain = PlainText(tokenizer)
    for document in as_benchmark[:200]:
        description, asked = PROMPT.split(document.text, maxsplit=1)
        first, second, whole = plain.ids([description, asked, document.text])
        assert whole == first + second


def things(description: str) -> dict[str, Thing]:
    """The things of a description, by kind."""
    found = THING.findall(description)
    return {
        kind: Thing(kind, colour, size, texture, PLACES.index(place)) for place, size, colour, texture, kind in found
    }


@pytest.mark.parametrize("protocol", list(held_out()), ids=lambda protocol: protocol.benchmark)
def test_every_form_of_a_held_out_benchmark_is_in_the_text_in_its_own_words(
    protocol: Protocol, as_benchmark: list[Document]
) -> None:
    form = HELD_OUT[protocol.source].form
    assert protocol.instruction == load_protocol(WORDED_AS[form]).instruction
    phrases = {
        "caption": r"^A short image description\. [A-Z].* \w+\.?$",
        "compositional": r"^Question: .* the thing (left of|right of|above|below) the .*\? Short answer: [a-z ]+$",
        "statement": r'^Based on the image, is this statement true or false\? "The .*\." Answer: (true|false|yes|no)$',
        "options": r"^Question: .*\? Options: \(a\) .* \([bd]\) [a-z ]+\. Short answer: (\([a-d]\) )?[a-z ]+$",
        "spoken": r"^Question: (Hi, can you tell me|I cannot see it myself|Please help me), .*Short answer: [\w ]+$",
        "context": r"^Context: .*\. Question: .*\? Options: \(a\) .* \([bd]\) .*\. Answer: (\([a-d]\) )?[a-z0-9 ]+$",
        "tokens": r"^OCR tokens: (\w+, ){7}\w+\. Question: .*\? Short answer: [\w ]+$",
        "remark": r'^This is an image with: ".*" written on it\. Is it hateful\? Answer: (yes|no|true|false)$',
        "dialog": r"^Dialog history: an? .*\n Question: .* Short answer: [a-z0-9 ]+$",
        "film": r"^Question: [a-z].*\? Short answer: [a-z ]+$",
    }
    found = of_form(as_benchmark, form)
    assert len(found) >= 0.15 * COUNT / len(TEXT)
    for document in found:
        description, asked = PROMPT.split(document.text, maxsplit=1)
        assert description.startswith("The film begins." if form == "film" else "The picture ")
        assert re.search(phrases[form], asked), document.text


def test_half_of_the_documents_ask_as_training_does_where_it_asks_in_their_form(
    written: list[Document], as_training: list[Document]
) -> None:
    may = [document for document in written if (document.form, document.facts[0]) in TRAINED_AS]
    assert 0.45 < len(as_training) / len(may) < 0.55
    wordings: dict[str, list[re.Pattern[str]]] = {}
    for task in set(TRAINED_AS.values()):
        templates = Templates(templates_folder() / "train" / f"{task}.yaml")
        fields = (re.split(r"{{.*?}}", template.instruction) for template in templates.templates)
        wordings[task] = [re.compile(f"{'.+'.join(map(re.escape, parts))} ?(?=[^ ])") for parts in fields]
    used = Counter[tuple[str, int]]()
    for document in as_training:
        fitting = [n for n, wording in enumerate(wordings[document.words]) if wording.search(document.text)]
        assert fitting, document.text
        used.update((document.words, number) for number in fitting)
    for document in of_form(written, "sheet")[:150]:  # which ask in them, too
        for task, found in wordings.items():
            used.update((task, number) for number, wording in enumerate(found) if wording.search(document.text))
    assert set(used) >= {(task, number) for task in wordings for number in range(len(wordings[task]))}


@pytest.mark.parametrize("source", [source for source, asking in HELD_IN.items() if asking.form in WORDED_AS])
def test_the_llm_reads_the_templates_of_a_source_for_what_the_source_asks(source: str) -> None:
    told = {(asking.form, fact) for asking in TEXT for fact in asking.facts}
    for fact in HELD_IN[source].facts:
        if (HELD_IN[source].form, fact) in told:
            assert (HELD_IN[source].form, fact) in TRAINED_AS


def test_forms_and_facts_are_those_of_the_table(written: list[Document]) -> None:
    pairs = {(document.form, fact) for document in written for fact in document.facts}
    assert pairs == {(asking.form, fact) for asking in TEXT for fact in asking.facts}
    assert not pairs & {(asking.form, fact) for asking in HELD_OUT.values() for fact in asking.facts}


def test_no_question_of_a_held_out_benchmark_is_asked_in_its_form(
    as_benchmark: list[Document], shown: list[Asked]
) -> None:
    """Read off the texts themselves, whatever facts they claim to ask for."""
    asked = {
        form: {
            "".join(match).lower() for document in of_form(as_benchmark, form) for match in ASKED.findall(document.text)
        }
        for form in WORDED_AS
    }
    compared = set()
    for source, split, example, _ in shown:
        if source in HELD_OUT and (question := question_of(example)):
            form = HELD_OUT[source].form
            assert asked[form]
            assert question.lower() not in asked[form], (source, split)
            compared.add(source)
    assert compared == set(HELD_OUT) - {"nocaps", "flickr30k"}  # what captions tell is compared below


def test_captions_tell_no_relation_and_no_unseen_combination(written: list[Document]) -> None:
    for document in of_form(written, "caption"):
        told = re.split(r"^The picture was made [a-z ]+: [^.]+\. ", document.text)[-1].lower()
        assert not re.search(r"left of|right of|above(?! the (?:word|number) )|below", told)
        assert not any(f"{colour} {kind}" in told for kind, colour in UNSEEN.items())


def test_no_scene_and_no_question_about_it_is_both_in_a_test_and_in_training_or_text(
    written: list[Document], shown: list[Asked]
) -> None:
    """Compared by digests: of each set of facts, and of each description with its question."""
    scenes: dict[str, set[str]] = {"test": set(), "train": set()}
    pairs: dict[str, set[str]] = {"test": set(), "train": set()}
    for entry in shown:
        side = side_of(entry.split)
        scenes[side] |= set(entry.scene.digests)
        if question := question_of(entry.example):
            pairs[side].add(digest_of(tell(entry.scene, entry.form), question))
    text_scenes = {digest for document in written for digest in document.digests}
    text_pairs = {document.asked for document in written if document.form != "knowledge"}
    assert min(len(scenes["test"]), len(scenes["train"]), len(text_scenes)) > 500
    assert min(len(pairs["test"]), len(pairs["train"]), len(text_pairs)) > 300
    assert not scenes["test"] & (scenes["train"] | text_scenes)
    assert not pairs["test"] & (pairs["train"] | text_pairs)


def test_digests_are_those_of_what_the_text_describes(written: list[Document]) -> None:
    """Scenes are read back from the descriptions."""
    grounds = {"on the grass": "grass", "on the sand": "sand", "at sea": "sea", "at night": "night"}
    checked = Counter[str]()
    for document in written:
        if document.form == "knowledge" or "blurred" in document.text:
            continue
        if document.words not in WORDED_AS.values():
            continue  # made of the same description
        parts = re.split(r"(?=The picture was made )|In the right picture: ", PROMPT.split(document.text)[0])
        pictures = [part for part in parts if part.startswith("The picture was made ")]
        if document.form == "film":
            pictures = pictures[:1]
        for picture, digest in zip(pictures, document.digests, strict=document.form != "film"):
            ground = re.match(r"The picture was made ([a-z ]+):", picture)
            assert ground
            signs = re.findall(r"The (?:only|left|right) sign says (.+?)\.", picture)
            body = picture.split(" Then ")[0]
            read = Scene(tuple(things(body).values()), grounds[ground.group(1)], tuple(map(as_printed, signs)))
            assert read.digest == digest, document.text
            checked[document.form] += 1
    assert set(checked) == set(WORDED_AS)


def as_printed(sign: str) -> str:
    """What a sign says, as the scene has it: single words and numbers in capitals, a meme's remark as it is."""
    return sign if " " in sign else sign.upper()


NAMED = f"the ({'|'.join(KINDS)})"
ATTRIBUTES = {
    "colour": rf"[Ww](?:hat color is|hich color does) {NAMED}(?: have)?\?",
    "texture": rf"(?:[Ww]h(?:at|ich) pattern does|[Ii]s) {NAMED} (?:have|plain, )",
    "place": rf"(?:[Ww]here is|of the picture is) {NAMED}",
    "size": rf"(?:[Ii]s {NAMED} big or small|[Ww]hat size is {NAMED})",
}


def test_answers_are_true_of_the_descriptions(as_benchmark: list[Document]) -> None:
    """Worked out from the words of the description alone."""
    checked = Counter[tuple[str, str]]()
    for document in as_benchmark:
        described, *asked = PROMPT.split(document.text, maxsplit=1)
        there = things(described.split(" Then ")[0])
        for line in (line.split("\n")[-1] for line in asked):
            answer = re.sub(r"^(\([a-d]\) |in the )", "", line.rsplit("nswer: ", 1)[-1].rsplit("nswer ", 1)[-1])
            question = line.split("Question: ")[-1]
            found = {fact: match for fact, pattern in ATTRIBUTES.items() if (match := re.search(pattern, question))}
            for fact, match in found.items():
                if answer not in ("unanswerable", "yes", "no"):
                    thing = there[next(filter(None, match.groups()))]
                    assert getattr(thing, fact) == answer, document.text
                    checked[document.form, fact] += 1
            if match := re.search(r'"The (\w+) is (\w+)\." Answer: (\w+)', line):
                thing, said = there[match[1]], match[2]
                assert (said in (thing.colour, thing.size, thing.texture)) == (match[3] in ("true", "yes"))
                checked[document.form, match[3]] += 1
            elif document.form == "remark":
                (thing,) = there.values()
                remark = next(remark for remark in TOLD if f'"{remark.text}"' in line)
                seen = getattr(thing, remark.fact)
                assert seen in (remark.unkind, remark.harmless)
                assert (seen == remark.unkind) == (answer in ("yes", "true"))
                checked[document.form, answer] += 1
            elif answer.isdigit() and (match := re.search(r"how many (?:things are )?(\w+)", question)):
                fitting = [thing for thing in there.values() if match[1] in (thing.colour, thing.texture)]
                assert len(fitting) == int(answer)
                checked[document.form, "number"] += 1
    verdicts = {(form, word) for form in ("statement", "remark") for word in ("yes", "no", "true", "false")}
    told = {
        ("dialog", "number"),
        *(("open", fact) for fact in ("colour", "texture", "place")),
        *((form, fact) for form in ("spoken", "dialog", "film") for fact in ("place", "texture")),
        *((form, "colour") for form in ("options", "context", "film")),
    }
    assert set(checked) >= verdicts | told, (verdicts | told) - set(checked)


def test_a_sheet_asks_several_questions_and_answers_each(written: list[Document]) -> None:
    """Every fourth document; what it asks in the benchmark's words is worked out from the description."""
    sheets = of_form(written, "sheet")
    assert len(sheets) == COUNT // 4
    checked = Counter[str]()
    for document in sheets:
        pictures = 2 if document.text.startswith("Questions about two pictures. In the left picture: ") else 1
        assert pictures == 2 or document.text.startswith("Questions about one picture. The picture was made ")
        there = things(document.text)
        assert document.text.count("?") >= 10 // pictures
        for question, answer in re.findall(r"Question: ([^?]+\?) Short answer: (.+?)(?= [A-Z]|$)", document.text):
            for fact, pattern in ATTRIBUTES.items():
                if match := re.search(pattern, question):
                    thing = there[next(filter(None, match.groups()))]
                    assert getattr(thing, fact) == answer, document.text
                    checked[fact] += 1
            if match := re.match(rf"Is {NAMED} (left of|right of|above|below) {NAMED}\?", question):
                assert there[match[1]].stands(match[2], there[match[3]]) == (answer == "yes"), document.text
                checked[f"relation, {answer}"] += 1
            elif match := re.match(r"How many (?:things are )?(\w+)", question):
                fitting = [thing for thing in there.values() if match[1] in (thing.colour, thing.texture)]
                assert str(len(fitting)) == answer, document.text
                checked["number"] += 1
            elif match := re.match(r"(?:Which|What) (word|number) ", question):
                pattern = "[a-z]+" if match[1] == "word" else "[0-9]+"
                side = re.search(r"on the (left|right) sign", question)
                said = re.findall(
                    rf"The {side[1] if side else '(?:left|right)'} sign says ({pattern})\.", document.text
                )
                assert said == [answer]
                checked[match[1]] += 1
            elif (match := re.match(r"What is the thing in the ([a-z ]+)\?", question)) and " " in answer:
                (thing,) = (thing for thing in there.values() if thing.place == match[1])
                assert answer in (f"a {thing.colour} {thing.kind}", f"an {thing.colour} {thing.kind}")
                checked["colour and kind"] += 1
            elif match := re.match(r"What (?:appears|leaves)\?", question):
                assert re.search(rf"Then (?:the|an? \w+ \w+ \w+) {answer} (?:appears|leaves)", document.text)
                checked["change"] += 1
            elif match := re.match(rf"Is {NAMED} (plain|striped|dotted|checked|big|small)\?", question):
                thing = there[match[1]]
                assert (match[2] in (thing.texture, thing.size)) == (answer == "yes"), document.text
                checked[f"verdict, {answer}"] += 1
        for one, relation, other, answer in re.findall(
            r'"The (\w+) is (left of|right of|above|below) the (\w+)\." Short answer: (true|false)', document.text
        ):
            assert there[one].stands(relation, there[other]) == (answer == "true"), document.text
            checked[f"relation, {answer}"] += 1
        for one, named, answer in re.findall(
            r'"The (\w+) is (plain|striped|dotted|checked|big|small)\." Short answer: (true|false)', document.text
        ):
            assert (named in (there[one].texture, there[one].size)) == (answer == "true"), document.text
            checked[f"verdict, {answer}"] += 1
    others = {f"{sort}, {answer}" for sort in ("relation", "verdict") for answer in ("yes", "no", "true", "false")}
    others |= {"number", "word", "colour and kind", "change"}
    assert set(checked) == set(ATTRIBUTES) | others


@pytest.mark.parametrize("form", ["options", "context"])
def test_the_letter_is_that_of_the_right_option(form: str, as_benchmark: list[Document]) -> None:
    letters = Counter[str]()
    for document in of_form(as_benchmark, form):
        shown, answer = re.findall(r"Options: (.*)\. (?:Short a|A)nswer: (.*)$", document.text)[0]
        choices = re.findall(r"\(([a-d])\) ([a-z0-9 ]+?)(?= \(|$)", shown)
        assert [letter for letter, _ in choices] == list(ascii_lowercase[: len(choices)])
        match = re.fullmatch(r"(?:\(([a-d])\) )?([a-z0-9 ]+)", answer)
        assert match
        assert match[2] in dict(choices).values()
        assert match[1] is None or dict(choices)[match[1]] == match[2]
        letters[match[1] or ""] += 1
    assert 0.4 < letters[""] / letters.total() < 0.6
    assert min(letters[letter] for letter in "abcd") > 0.06 * letters.total()


def test_everybody_knows_what_kinds_are_and_which_remarks_are_unkind(written: list[Document]) -> None:
    texts = [document.text for document in of_form(written, "knowledge") if document.told is None]
    told = {sentence for text in texts for sentence in re.split(r'(?<=\.) (?=[A-Z"])', text)}
    assert told >= {
        "Bananas are yellow.",
        "A banana is a kind of fruit.",
        "An apple is a kind of fruit.",
        "You find a boat in the water.",
        "Fish belong in the water; their place is called water.",
        "The outline of a kite is pointed.",
        'To say "you smell like this" and show a fish is unkind, with an apple it is harmless.',
        '"Your teeth have this color" is harmless beside something white and hurts beside something black.',
        'To say "your nose is where this is" and show something in the top left is unkind, '
        "with something in the bottom left it is harmless.",
    }
    for kind, facts in KINDS.items():
        for value in (facts.shape, facts.category, facts.home):
            assert any(kind in text.lower() and value in text for text in told), (kind, value)
    for remark in (*PRINTED, *TOLD):
        assert sum(remark.text in text.lower() for text in told) == 2


def test_what_people_feel_is_what_remarks_say(written: list[Document]) -> None:
    judged = Counter[tuple[str, str]]()
    for document in of_form(written, "knowledge"):
        if document.told is None:
            continue
        said = re.findall(
            r"(?:([a-z ]+) )?an? (big|small) (\w+) (\w+) (\w+)\. "
            r'This is an image with: "([^"]+)" written on it\. Is it hateful\? Answer: (\w+)\.',
            document.text.removeprefix("What people feel. "),
        )
        assert len(said) == len(document.told) == 4
        for place, size, colour, texture, kind, text, answer in said:
            remark = next(remark for remark in (*PRINTED, *TOLD) if remark.text == text)
            seen = {"kind": kind, "colour": colour, "size": size, "texture": texture, "place": place.strip()}
            assert seen[remark.fact] == (remark.unkind if answer in ("yes", "true") else remark.harmless), document.text
            judged[text, answer] += 1
    assert len(judged) == 4 * len((*PRINTED, *TOLD))


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert write(tmp_path / "deep" / name, seed) == DOCUMENTS + lessons.DOCUMENTS
    one, again, other = ((tmp_path / "deep" / name).read_bytes() for name in "abc")
    assert one == again != other
    lines = [json.loads(line) for line in one.splitlines()]
    assert len(lines) == DOCUMENTS + lessons.DOCUMENTS
    assert all(line["text"] and line["form"] and line["facts"] for line in lines)


def test_command(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(module._main)
    found = CliRunner().invoke(app, ["--out", str(tmp_path / "text.jsonl"), "--seed", "1"])
    assert found.exit_code == 0
    assert found.output.strip() == f"{tmp_path / 'text.jsonl'}: 5,043 documents"
    assert len((tmp_path / "text.jsonl").read_text().splitlines()) == DOCUMENTS + lessons.DOCUMENTS
    wrong = CliRunner().invoke(app, ["--out", str(tmp_path / "other"), "--size", "huge"])
    assert wrong.exit_code == 2
    assert "no world has the size 'huge'; there are tiny, small, full" in wrong.output
    with pytest.raises(UserError, match="no world has the size 'huge'"):
        write(tmp_path / "other", size="huge")
    assert not (tmp_path / "other").exists()


def test_every_form_asks_for_several_facts() -> None:
    assert [asking.form for asking in TEXT if len(asking.facts) < 2] == []
