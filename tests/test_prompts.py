from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructkit.data.examples import TASKS, Example, Turn
from instructkit.errors import UserError
from instructkit.prompts.jinja import Condition, Draws, Text, dialog, lettered, most_common
from instructkit.prompts.templates import Prompt, Templates, train_templates

BRIDGE = Example(
    id="vqav2/train/1",
    images=["train2014/1.jpg"],
    question="What spans the river?",
    answers=["bridge", "bridge", "a bridge"],
)


def written(folder: Path, text: str, task: str = "vqa") -> Path:
    path = folder / f"{task}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def one(folder: Path, instruction: str, target: str = "{{ answers | choice }}") -> Templates:
    wording = {"name": "only", "instruction": instruction, "target": target}
    return Templates(written(folder, msgspec.yaml.encode({"task": "vqa", "templates": [wording]}).decode()))


def text(jinja: str, task: str = "vqa") -> Text:
    return Text(jinja, task, "x.yaml: template 'only'")


def test_an_example_becomes_a_prompt(tmp_path: Path) -> None:
    templates = one(tmp_path, "Q: {{ question }} A:", "{{ answers | most_common }}")
    example = msgspec.structs.replace(BRIDGE, video="v.mp4", start=1.5, end=4.0)
    assert templates.render(example) == Prompt(
        example="vqav2/train/1",
        template="only",
        instruction="Q: What spans the river? A:",
        target="bridge",
        images=["train2014/1.jpg"],
        video="v.mp4",
        clip=(1.5, 4.0),
    )


# ---- which wording, which answer ----


def test_the_same_seed_epoch_and_example_give_the_same_prompt_in_another_process() -> None:
    program = (
        "import sys; from tests.test_prompts import BRIDGE; from instructkit.prompts.templates import train_templates\n"
        "for epoch in range(8): print(train_templates('vqa').render(BRIDGE, seed=3, epoch=epoch))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[1],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    here = [str(train_templates("vqa").render(BRIDGE, seed=3, epoch=epoch)) for epoch in range(8)]
    assert outputs == {"\n".join(here) + "\n"}


def test_the_draws_are_these_for_ever() -> None:
    draws = Draws("0/0/vqa/vqav2/train/1")
    # blake2b-256 of the key as a big-endian number, as `b2sum -l 256` prints it.
    number = 0x85D94578D341E2D1BCB4C75DCA41F3A19BA87440515399C76610D1F90B6FC12D
    assert [draws.below(12), draws.below(10)] == [number % 12, number // 12 % 10]


@pytest.mark.parametrize("changed", ["seed", "epoch", "example"])
def test_all_wordings_and_answers_come_up_about_equally_often(changed: str) -> None:
    templates = train_templates("vqa")
    drawn: Counter[tuple[str, str | None]] = Counter()
    for number in range(3600):
        seed, epoch = number * (changed == "seed"), number * (changed == "epoch")
        example = msgspec.structs.replace(BRIDGE, id=f"a/b/{number}") if changed == "example" else BRIDGE
        prompt = templates.render(example, seed=seed, epoch=epoch)
        drawn[prompt.template, prompt.target] += 1
    assert len(templates) == 12
    # Expected 200 and 100 of each; four standard deviations.
    for template in templates.templates:
        assert drawn[template.name, "bridge"] == pytest.approx(200, abs=56)
        assert drawn[template.name, "a bridge"] == pytest.approx(100, abs=40)


def test_blank_answers_are_never_targets() -> None:
    example = msgspec.structs.replace(BRIDGE, answers=["", "pier", " ", "\t"])
    assert {train_templates("vqa").render(example, epoch=epoch).target for epoch in range(30)} == {"pier"}


def test_only_wordings_that_suit_the_example_are_drawn(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """\
task: knowledge_vqa
target: "{{ answers | first }}"
templates:
  - {name: open, when: not choices, instruction: "{{ question }}"}
  - {name: options, when: choices, instruction: "{{ question }} {{ choices | lettered }}"}
  - {name: hint, when: context and choice == 0, instruction: "{{ context }} {{ question }}"}
  - {name: always, instruction: "Say it: {{ question }}"}
""",
        "knowledge_vqa",
    )
    templates = Templates(path)

    def names(**fields: object) -> set[str]:
        example = msgspec.structs.replace(BRIDGE, **fields)
        drawn = {templates.render(example, epoch=epoch).template for epoch in range(60)}
        assert drawn == {templates.templates[index].name for index in templates.fitting(example)}
        return drawn

    assert names() == {"open", "always"}
    assert names(choices=["a", "b"]) == {"options", "always"}
    assert names(choices=["a", "b"], choice=0, context="c") == {"options", "hint", "always"}
    assert names(choices=["a", "b"], choice=1, context="c") == {"options", "always"}


def test_an_example_that_no_wording_suits_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, 'task: vqa\ntarget: x\ntemplates: [{name: a, when: not question, instruction: "b"}]')
    with pytest.raises(UserError, match=r"vqa.yaml: no template fits example vqav2/train/1: not question"):
        Templates(path).render(BRIDGE)


def test_a_wording_can_be_named_by_its_place() -> None:
    templates = train_templates("vqa")
    assert templates.render(BRIDGE, wording=3).template == templates.templates[3].name
    with pytest.raises(UserError, match="no wording 12, there are 0 to 11"):
        templates.render(BRIDGE, wording=12)


# ---- a dataset's text is text ----

NASTY = [
    "{{ 7 * 7 }} {% raw %} {# note #}",
    "%s %(x)d 100 % {0} {} {x.__class__}",
    '<b>Tom & Jerry\'s "hat"</b>',
    "{{ answers }}",
    "日本語 🐘 é e\u0301 \u202eabc ﷽",
    "line\nbreak\ttab \\n $x ${y}",
]


@pytest.mark.parametrize("nasty", NASTY)
def test_what_looks_like_a_template_in_the_data_is_not_interpreted(tmp_path: Path, nasty: str) -> None:
    templates = one(tmp_path, "Q: {{ question }} A:")
    example = msgspec.structs.replace(BRIDGE, question=nasty, answers=[nasty])
    prompt = templates.render(example)
    assert (prompt.instruction, prompt.target) == (f"Q: {nasty} A:", nasty.strip())


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=26))
def test_any_text_comes_through_letter_by_letter(texts: list[str]) -> None:
    example = Example(
        id="a/b/c", question=texts[0], choices=texts, ocr_tokens=texts, history=[Turn(texts[0], texts[-1])]
    )
    assert text("{{ question }}").render(example) == texts[0]
    assert text("{{ ocr_tokens | join(', ') }}", "reading_vqa").render(example) == ", ".join(texts)
    assert text("{{ history | dialog }}", "llava").render(example) == f"{texts[0]} {texts[-1]}"
    assert text("{{ choices | lettered }}", "knowledge_vqa").render(example) == " ".join(
        f"({letter}) {choice}" for letter, choice in zip("abcdefghijklmnopqrstuvwxyz", texts, strict=False)
    )


# ---- the sandbox ----


@pytest.mark.parametrize(
    "jinja",
    [
        "{{ question.__class__ }}",
        "{{ question.__class__.__mro__[1].__subclasses__() }}",
        "{{ question['__class__'] }}",
        "{{ answers.append('x') }}{{ question }}",
        "{{ answers.clear() }}",
        "{{ question.format(1) }}",
        "{{ '{0.__class__}'.format(question) }}",
        "{{ question.upper() }}",
        "{{ answers[0].join }}",
    ],
)
def test_a_template_reaches_no_attribute_and_no_method(jinja: str) -> None:
    with pytest.raises(UserError, match=r"x\.yaml: template 'only'.*\(example vqav2/train/1\)"):
        text(jinja).render(BRIDGE)
    assert BRIDGE.answers == ["bridge", "bridge", "a bridge"]


@pytest.mark.parametrize(
    "jinja",
    [
        "{{ range(3) }}",
        "{{ ''.__class__ }}",
        "{{ 'x'.upper() }}",
        "{{ self }}",
        "{{ draws_ }}",
        "{{ environment }}",
        "{{ config }}",
        "{{ answers | random }}",
        "{{ answers | attr('pop') }}",
        "{{ answers | map('upper') | list }}",
        "{{ question | format(1) }}",
        "{% include 'vqa.yaml' %}",
        "{% extends question %}",
        "{% from 'x' import y %}",
        "{{ lipsum() }}",
        "{{ cycler('a') }}",
    ],
)
def test_a_template_has_no_functions_and_only_the_listed_filters(jinja: str) -> None:
    with pytest.raises(UserError, match=r"x\.yaml: template 'only'"):
        text(jinja)


def test_a_template_may_walk_through_a_dialog() -> None:
    example = msgspec.structs.replace(BRIDGE, history=[Turn("Is it old?", "yes"), Turn("Is it wide?", "no")])
    jinja = (
        "{% for turn in history %}{{ loop.index }}. {{ turn.question }} {{ turn.answer }}; {% endfor %}{{ question }}"
    )
    assert text(jinja, "llava").render(example) == "1. Is it old? yes; 2. Is it wide? no; What spans the river?"
    with pytest.raises(UserError, match="__class__"):
        text("{{ history[0].__class__ }}", "llava").render(example)


# ---- empty fields ----


@pytest.mark.parametrize(
    "jinja",
    [
        "{{ context }}",
        "{{ 'a' ~ context }}",
        "{{ context | upper }}",
        "{{ choices | lettered }}",
        "{{ choices | join(', ') }}",
        "{{ choices | choice }}",
        "{{ choices[0] }}",
        "{{ answers[choice] }}",
        "{{ choices[:3] | join }}",
        "{% for each in choices %}{{ each }}{% endfor %}x",
    ],
)
def test_an_empty_field_is_an_error_where_its_content_is_used(jinja: str) -> None:
    with pytest.raises(
        UserError, match=r"x\.yaml: template 'only': .*(context|choices|choice)\b.*example vqav2/train/1"
    ):
        text(jinja, "knowledge_vqa").render(BRIDGE)


def test_an_empty_field_is_false_in_a_condition_and_a_zero_is_not_empty() -> None:
    jinja = (
        "{% if context %}C{% endif %}{% if not choices %}N{% endif %}{{ choices | length }}{{ context | default('-') }}"
    )
    assert text(jinja, "knowledge_vqa").render(BRIDGE) == "N0-"
    first = msgspec.structs.replace(BRIDGE, choices=["no", "yes"], choice=0)
    assert text("{{ choices[choice] }}", "knowledge_vqa").render(first) == "no"
    assert Condition("choice == 0", "knowledge_vqa", "x").holds(first)


@pytest.mark.parametrize(
    "jinja", ["", "   ", "{% if context %}x{% endif %}", "{{ question | replace(question, ' ') }}"]
)
def test_a_text_that_comes_out_blank_is_an_error(jinja: str) -> None:
    with pytest.raises(UserError, match="comes out blank"):
        text(jinja, "knowledge_vqa").render(BRIDGE)


def test_choice_of_blanks_is_an_error() -> None:
    with pytest.raises(UserError, match="nothing to choose from"):
        text("{{ answers | choice }}").render(msgspec.structs.replace(BRIDGE, answers=["", " "]))


# ---- files with mistakes ----

GOOD = 'task: vqa\ntarget: "{{ answers | choice }}"\ntemplates:\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            GOOD + '  - {name: a, instruction: "{{ qestion }}"}',
            "vqa.yaml: template 'a': qestion is no field of the task vqa; it has question, answers",
        ),
        (
            GOOD + '  - {name: a, instruction: "{{ question }}", target: "{{ choice }}"}',
            "vqa.yaml: template 'a': choice is no field of the task vqa; it has question, answers",
        ),
        (
            GOOD + '  - {name: a, when: ocr_tokens, instruction: "x"}',
            "vqa.yaml: template 'a': ocr_tokens is no field of the task vqa; it has question, answers",
        ),
        (
            GOOD + '  - {name: a, instruction: "{{ question "}',
            "vqa.yaml: template 'a': unexpected end of template, expected 'end of print statement'. in '{{ question '",
        ),
        (GOOD + "  - {name: a, instruction: x}\n  - {name: a, instruction: y}", "template names must be unique"),
        (GOOD + "  []", "there must be at least one"),
        ("task: vqa\ntemplates: [{name: a, instruction: x}]", "vqa.yaml: template 'a' has no target"),
        (GOOD + "  - {name: a, instruction: x, need: [choices]}", "vqa.yaml: unknown key templates[0].need; there are"),
        (GOOD + "  - {name: a}", "vqa.yaml: templates[0]: Object missing required field `instruction`"),
        (GOOD + "  - {name: a, instruction: [x]}", "templates[0].instruction = ['x']: Expected `str`, got `array`"),
        (GOOD + "  - {name: a, instruction: 'x}", "vqa.yaml: line 4: while scanning a quoted scalar"),
        (
            GOOD.replace("vqa", "quiz") + "  - {name: a, instruction: x}",
            "vqa.yaml: task 'quiz' is not one of captioning",
        ),
        (GOOD.replace("vqa", "llava") + "  - {name: a, instruction: x}", "vqa.yaml: is of task 'llava'"),
        ("", "vqa.yaml: holds keys with values, not None"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_says_where(tmp_path: Path, content: str, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        Templates(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_binary_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vqa\.yaml: no such file"):
        train_templates("vqa", tmp_path)
    (tmp_path / "vqa.yaml").write_bytes(b"task: \xff\xfe")
    with pytest.raises(UserError, match=r"vqa\.yaml: .*utf-8"):
        Templates(tmp_path / "vqa.yaml")


# ---- filters ----


def test_filters() -> None:
    assert lettered(["apple", "pear"]) == "(a) apple (b) pear"
    assert dialog([Turn("Who?", "a man"), Turn("Where?", "here")]) == "Who? a man Where? here"
    assert dialog([Turn("Who?", "a man"), Turn("Where?", "here")], " - ", "; ") == "Who? - a man; Where? - here"
    assert most_common(["", "", "", "red", "blue", "blue", "red"]) == "red"
    assert lettered(["apple", "", "pear", " "]) == "(a) apple (c) pear"
    with pytest.raises(ValueError, match="27 choices"):
        lettered(["x"] * 27)


def test_a_text_without_fields_is_constant_unless_it_draws() -> None:
    assert text("A short caption:").is_constant
    assert not text("{{ question }}").is_constant
    varied = text("{{ ['Picture', 'Image'] | choice }}:")
    assert not varied.is_constant
    assert {varied.render(BRIDGE, Draws(str(key))) for key in range(20)} == {"Picture:", "Image:"}


# ---- templates that ask for too much ----


@pytest.mark.parametrize(
    "jinja",
    [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
        "{{ " + "[" * 150 + "question" + "]" * 150 + " }}",
        "{% if 1 %}" * 120 + "x" + "{% endif %}" * 120,
        "{{ " + "not " * 5000 + "question }}",
    ],
)
@pytest.mark.parametrize("kind", [Text, Condition])
def test_a_template_nested_without_end_is_one_line(jinja: str, kind: type[Text] | type[Condition]) -> None:
    if kind is Condition:
        jinja = jinja.removeprefix("{{ ").removesuffix(" }}")
    said = "taken"  # a newer Python may take some of them
    try:
        compiled = kind(jinja, "vqa", "x.yaml: template 'only'")
        _ = compiled.render(BRIDGE) if isinstance(compiled, Text) else compiled.holds(BRIDGE)
    except UserError as error:
        said = str(error)
    assert said.startswith("x.yaml: template 'only': ") or (said == "taken" and "m()" not in jinja)
    assert "\n" not in said


def test_what_python_refuses_in_a_template_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"only': is nested too deeply, or calls itself \(example vqav2/train/1\)"):
        text("{% macro m() %}{{ m() }}{% endmacro %}{{ question }}{{ m() }}").render(BRIDGE)
    with pytest.raises(UserError, match="only': is nested too deeply"):
        text("{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}")
    hungry = text("{{ question }} {{ answers | lettered }}")

    def lacking(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(hungry, "_template", type("T", (), {"new_context": lacking, "root_render_func": str})())
    with pytest.raises(UserError, match=r"only': needs too much memory \(example vqav2/train/1\)"):
        hungry.render(BRIDGE)


@pytest.mark.parametrize("task", TASKS)
def test_targets_have_no_blanks_around_them(task: str) -> None:
    texts = [" a red\tbus \n", "\u00a0a red\tbus", "a red\tbus"]
    example = Example(
        id="a/b/1",
        images=["1.png"],
        question=" What is it? ",
        answers=texts,
        references=texts,
        choices=[" a red\tbus ", " no "],
        choice=0,
        context="c",
        ocr_tokens=["bus"],
        rationales=["r"],
        history=[Turn("q", "a")],
    )
    templates = train_templates(task)
    found = {
        templates.render(example, seed, 0, wording).target
        for wording in templates.fitting(example)
        for seed in range(6)
    }
    assert found
    assert all(target is not None and target == target.strip() for target in found)


def test_answers_inside_a_text_have_no_blanks_around_them() -> None:
    example = Example(id="a/b/1", answers=[" cat", "cat ", "dog"])
    assert text("It is {{ answers | most_common }}.").render(example) == "It is cat."
    assert text("It is {{ answers | choice }}.").render(example) == "It is cat."
