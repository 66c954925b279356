"""Settings: what is wrong with them is said by name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml

from instructkit.config.read import load_capfilt, load_config, load_settings
from instructkit.config.settings import GROUPS, CapFiltRun, RunConfig, TrainingConfig, to_dict
from instructkit.errors import UserError
from instructkit.prompts.protocols import Protocol, load_protocol
from instructkit.prompts.templates import Templates


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 3\nmodel:\n  name: nano\ntraining:\n  max_steps: 5\n  learning_rate: 1e-4\n")
    return path


def test_words_go_over_the_file_and_the_file_over_the_defaults(config):
    loaded = load_config(config, ["max_steps=7", "towers.llm=lora", "data.weights.aokvqa=0.5", "betas=[0.8, 0.95]"])
    assert (loaded.seed, loaded.training.max_steps, loaded.training.learning_rate) == (3, 7, 1e-4)
    assert loaded.towers.llm == "lora"
    assert loaded.data.weights == {"aokvqa": 0.5}
    assert loaded.training.betas == (0.8, 0.95)
    assert loaded.training.weight_decay == TrainingConfig().weight_decay
    assert to_dict(loaded)["training"]["max_steps"] == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["max_step=7"], "unknown key max_step; did you mean max_steps"),
        (["training.max_step=7"], "unknown key training.max_step; did you mean max_steps"),
        (["nonsense=7"], "unknown key nonsense; there are output, seed"),
        (["max_steps"], "settings are given as key=value"),
        (["max_steps=many"], "training.max_steps = 'many': Expected `int`, got `str`"),
        (["max_steps=0"], "training.max_steps = 0: Expected `int` >= 1"),
        (["zero_stage=4"], "training.zero_stage = 4: Expected 0, 1, 2 or 3"),
        (["towers.llm=quantised"], "towers.llm = 'quantised': Expected frozen, lora or full"),
        (["betas=[0.9]"], r"training.betas = \[0.9\]: .*length 2, got 1"),
        (["data.train=[]"], r"data.train = \[\]: .*length >= 1"),
        (["data.weights.okvqa=-1"], r">= 0"),
        (["seed={"], "'seed={': line 1: "),
    ],
)
def test_what_is_wrong_with_a_word_is_said_in_one_line(config, words, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(config, words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modell: {}", "unknown key modell; did you mean model"),
        ("model:\n  nam: nano", "unknown key model.nam; did you mean name"),
        ("training: 5", "training is a group of keys, not 5"),
        ("- a", "a config is a mapping"),
        ("a: [", "run.yaml: "),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(path)
    assert "run.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: no such config file"):
        load_config(tmp_path / "none.yaml")


def test_a_short_key_that_two_groups_have_is_ambiguous(config, monkeypatch):
    from instructkit.config import read as module

    monkeypatch.setattr(module, "GROUPS", {**module.GROUPS, "data": TrainingConfig})
    with pytest.raises(UserError, match=r"in several groups: write data\.max_steps or training\.max_steps"):
        load_config(config, ["max_steps=7"])


def fields() -> Iterator[tuple[str, Any]]:
    """Every setting with its type."""
    for name, kind in get_type_hints(RunConfig).items():
        if name not in GROUPS:
            yield name, kind
    for group, struct in GROUPS.items():
        for name, kind in get_type_hints(struct).items():
            yield f"{group}.{name}", kind


def wrong_values(kind: Any) -> Iterator[Any]:
    """YAML texts that no setting of this type takes."""
    options = [part for part in get_args(kind) if part is not type(None)] if type(None) in get_args(kind) else [kind]
    yield from [
        ".inf",
        "-.inf",
        ".nan",
        "1e999",
        '"\\uD800"',
        "{a: {b: 1}}",
        "[[1]]",
    ]
    if bool not in options:
        yield "true"
    if int in options:
        yield from ["-1000000", "1.5", "many", "'3'", "9" * 30, "010", "1:30", "2024-01-01"]
    elif float in options:
        yield from ["-0.5", "many", "1e300", "9" * 400]
    elif str in options:
        yield from ["5", "''", "' '", "[]", '"\\0"', "1.5"]
    elif bool in options:
        yield from ["0", "'yes'", "maybe"]
    elif any(get_origin(part) is list for part in options):
        yield from ["easy_vqa", "[1]", "['']", "[null]", "{}"]
    elif any(get_origin(part) is dict for part in options):
        yield from ["[]", "x", "{a: []}", "{a: -1}", "{'': 1}"]
    else:
        yield from ["nonsense", "-1", "7", "[x, y]"]


@pytest.mark.parametrize(("name", "kind"), list(fields()), ids=lambda value: value if isinstance(value, str) else "")
def test_no_setting_takes_a_value_of_another_kind(tmp_path: Path, name: str, kind: Any) -> None:
    group, _, key = name.rpartition(".")
    path = tmp_path / "run.yaml"
    for text in wrong_values(kind):
        path.write_text(f"{group}:\n  {key}: {text}\n" if group else f"{key}: {text}\n")
        with pytest.raises(UserError) as of_file:
            load_config(path)
        assert str(of_file.value).startswith(f"{path}: "), text
        assert name in str(of_file.value), text
        path.write_text("{}")
        with pytest.raises(UserError) as of_word:
            load_config(path, [f"{name}={text}"])
        assert name in str(of_word.value), text
        for message in (str(of_file.value), str(of_word.value)):
            assert message.isprintable(), text
            assert len(message) < 1000, text


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "line 6: holds more than 100,000 values, aliases written out"),
        ("data: {train: &a [*a]}", "line 1: a value holds itself"),
        ("data: {train: " + "[" * 2000 + "]" * 2000 + "}", "is nested too deeply"),
        ("1: 2", "line 1: a key is a text, not 1"),
        ("null: 2", "line 1: a key is a text, not null"),
        ("true: 2", "line 1: a key is a text, not true"),
        ("2.5: 2", "line 1: a key is a text, not 2.5"),
        ("? [a]\n: 2", "line 1: a key is a text, not a list or mapping"),
        ("training: {max_steps: 5, max_steps: 7}", "line 1: the key 'max_steps' stands twice"),
        ("training: {max_steps: 5}\nseed: 1\ntraining: {batch_size: 7}", "line 3: the key 'training' stands twice"),
        ("data:\n  weights:\n    easy_vqa: 1\n    easy_vqa: 2", "line 4: the key 'easy_vqa' stands twice"),
        ('data: {raw: {"\\uD800": x}}', "data.raw = "),
        ("seed: " + "9" * 5000, "Exceeds the limit"),
        ("output: !!python/object:os.system x", "line 1: "),
        ("output: !!binary aGk=", "line 1: "),
        ("seed: 1\n---\nseed: 2", "line 2: "),
        ("training: {betas: [1, 1]}", r"training.betas\[0\] = 1: Expected `float` < 1"),
        ("training: {warmup_from: 1}", "training.warmup_from = 1 is above training.learning_rate = 1e-05"),
        ("training: {min_learning_rate: 1}", "training.min_learning_rate = 1 is above training.learning_rate"),
        ("towers: {qformer: frozen}", "so there is nothing to train"),
        ("towers: {lora_targets: [x]}", "no tower is set to lora"),
        ("model: {llm_bits: 8}\ntowers: {llm: full}", "model.llm_bits=8 cannot be used with towers.llm=full"),
        ("model: {llm_bits: 4}\ntraining: {zero_stage: 3}", "model.llm_bits=4 .* with training.zero_stage=3"),
        ("training: {compile: true, zero_stage: 3}", "training.compile=true: ZeRO 3 fetches weights inside layers"),
        ("data: {train: [easy_vqa, easy_vqa]}", "data.train names 'easy_vqa' twice"),
        ("evaluation: {benchmarks: [vqav2, vqav2]}", "evaluation.benchmarks names 'vqav2' twice"),
    ],
)
def test_a_config_that_says_less_or_more_than_it_seems_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["training.max_steps.foo=1"], "unknown key training.max_steps.foo; training.max_steps is a single value"),
        (["data.train.x=1"], "unknown key data.train.x; data.train is a single value"),
        (["output.x=1"], "unknown key output.x; output is a single value"),
        (["training=1", "training.max_steps=2"], "'training=1': training is a group of keys, not 1"),
        (["data.raw=true", "data.raw.jsonl=x"], "'data.raw=true': data.raw = True: Expected `object`, got `bool`"),
        (["=1"], "unknown key "),
        (["\ud800=1"], "unknown key "),
        ([f"{'x' * 100_000}=1"], "unknown key "),
        ([f"output=[{'x' * 100_000}]"], "output = .* Expected `str`, got `array`"),
        (["x" * 100_000], "settings are given as key=value"),
    ],
)
def test_a_word_that_cannot_be_meant_is_one_short_line(config: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(config, words)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_values_mean_what_people_write(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("output: 2024-01-01\nseed: 1_000\ntraining: &t {learning_rate: 1e-4, warmup_from: 0}\n")
    loaded = load_config(
        path, ["training={max_steps: 5}", "data.weights.jsonl/my.data=2", "data.train=[jsonl/my.data]"]
    )
    assert (loaded.output, loaded.seed) == ("2024-01-01", 1000)
    assert (loaded.training.learning_rate, loaded.training.max_steps) == (1e-4, 5)  # a group's keys, not the group
    assert loaded.data.weights == {"jsonl/my.data": 2.0}


@pytest.mark.parametrize("content", [b"\xff\xfe", b"seed: 1\x00", b"seed: \xe4"])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.yaml: ") as caught:
        load_config(path)
    assert str(caught.value).isprintable()


def damaged_protocols() -> Iterator[tuple[str, str]]:
    """Protocols with one value of the wrong kind, and the key."""
    shipped = yaml.safe_load(Path("templates/eval/nocaps.yaml").read_text())
    for name in Protocol.__struct_fields__:
        yield name, yaml.safe_dump({**shipped, name: [[1.5]]})
        yield name, yaml.safe_dump(shipped | {name: math.inf})


@pytest.mark.parametrize(("name", "text"), list(damaged_protocols()))
def test_a_protocol_with_a_value_of_another_kind_is_refused(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / "eval" / "nocaps.yaml"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_protocol("nocaps", tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert name in str(caught.value)


@pytest.mark.parametrize("text", [BOMB, "task: vqa\ntask: vqa", "task: &a [*a]", "1: 2", "task: !!binary aGk="])
def test_protocols_and_templates_are_read_as_strictly(tmp_path: Path, text: str) -> None:
    for path, load in (
        (tmp_path / "eval" / "mine.yaml", lambda: load_protocol("mine", tmp_path)),
        (tmp_path / "train" / "vqa.yaml", lambda: Templates(tmp_path / "train" / "vqa.yaml")),
    ):
        path.parent.mkdir()
        path.write_text(text)
        with pytest.raises(UserError, match="line ") as caught:
            load()
        assert str(caught.value).startswith(f"{path}: ")
        assert str(caught.value).isprintable()


CONFIGS = Path(__file__).resolve().parents[1] / "recipes" / "configs"
VALUES = json.loads(Path(__file__).with_name("config_values.json").read_text())
"""Settings of the shipped configs that are not the defaults, as they were when every file named all of its own."""


@pytest.mark.parametrize("shipped", VALUES)
def test_a_shipped_config_comes_to_the_values_that_it_had_written_out(shipped: str) -> None:
    plain, default = to_dict(load_config(CONFIGS / f"{shipped}.yaml")), to_dict(RunConfig())
    found: dict[str, Any] = {}
    for name, value in plain.items():
        if name in GROUPS:
            found |= {f"{name}.{key}": each for key, each in value.items() if each != default[name][key]}
        elif value != default[name]:
            found[name] = value
    assert json.loads(json.dumps(found)) == VALUES[shipped]


def test_a_configs_own_keys_go_over_its_bases(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text(
        "output: runs/below\nseed: 3\ndata: {train: [a, b], weights: {a: 2}, group_size: 4}\n"
        "training: {max_steps: 50, batch_size: 8}"
    )
    above = tmp_path / "above.yaml"
    for base in ("below.yaml", "below", "./below.yaml", str(tmp_path / "below.yaml")):
        above.write_text(f"base: {base}\noutput: runs/above\ndata: {{weights: {{b: 3}}}}\ntraining: {{batch_size: 16}}")
        config = load_config(above, ["seed=4"])
        assert (config.output, config.seed, config.data.train) == ("runs/above", 4, ["a", "b"])
        assert (config.data.weights, config.data.group_size) == ({"b": 3.0}, 4)  # a key's value, not parts of it
        assert (config.training.max_steps, config.training.batch_size) == (50, 16)
    above.write_text("base: vicuna_7b\nmodel: {name: mine}")
    config = load_config(above)
    assert (config.model.name, config.training.max_steps) == ("mine", 60000)


@pytest.mark.parametrize(
    ("base", "below", "message"),
    [
        ("none.yaml", "", r"above\.yaml: base = 'none\.yaml': no such file"),
        ("vicuna_7c", "", r"above\.yaml: base = vicuna_7c: .*did you mean vicuna_7b"),
        ("[a]", "", r"above\.yaml: base = \['a'\]: Expected the name"),
        ("''", "", r"above\.yaml: base = '': Expected the name"),
        ("null", "", r"above\.yaml: base = None: Expected the name"),
        ("above.yaml", "", "its base .*above.yaml has a base itself"),
        ("below.yaml", "base: vicuna_7b", "its base .*below.yaml has a base itself; a base is one level deep"),
        ("below.yaml", "sed: 1", "below.yaml: unknown key sed; did you mean seed"),
        ("below.yaml", "training: {max_steps: 0}", "below.yaml: training.max_steps = 0"),
        ("below.yaml", "[]", "below.yaml: a config is a mapping"),
    ],
)
def test_a_base_that_cannot_be_is_told_with_its_file(tmp_path: Path, base: str, below: str, message: str) -> None:
    (tmp_path / "below.yaml").write_text(below)
    (tmp_path / "above.yaml").write_text(f"base: {base}\nseed: 1")
    with pytest.raises(UserError, match=message) as caught:
        load_config(tmp_path / "above.yaml")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("file", "words", "lengths"),
    [
        ("{}", [], (1000, None)),
        ("training: {max_steps: 5}", [], (5, None)),
        ("training: {epochs: 3}", [], (1000, 3)),
        ("training: {max_steps: 5}", ["epochs=0.5"], (1000, 0.5)),
        ("training: {epochs: 3}", ["max_steps=7"], (7, None)),
        ("training: {epochs: 3}", ["training={max_steps: 7}"], (7, None)),
        ("training: {epochs: 3}", ["max_steps=7", "max_steps=8", "epochs=null"], (8, None)),
        ("base: below.yaml\ntraining: {epochs: 3}", [], (1000, 3)),
        ("base: below.yaml\ntraining: {batch_size: 3}", [], (50, None)),
        ("base: below.yaml\ntraining: {epochs: 3}", ["max_steps=2"], (2, None)),
        ("training: {epochs: 3, max_steps: 5}", [], None),
        ("{}", ["epochs=3", "max_steps=5"], None),
        ("training: {max_steps: 5}", ["max_steps=5", "epochs=3"], None),
        ("{}", ["training={epochs: 3, max_steps: 5}"], None),
    ],
)
def test_epochs_and_max_steps_replace_each_other_and_never_stand_side_by_side(
    tmp_path: Path, file: str, words: list[str], lengths: tuple[int, float | None] | None
) -> None:
    (tmp_path / "below.yaml").write_text("training: {max_steps: 50}")
    path = tmp_path / "run.yaml"
    path.write_text(file)
    if lengths is None:
        with pytest.raises(UserError, match="both say how long the run is"):
            load_config(path, words)
    else:
        training = load_config(path, words).training
        assert (training.max_steps, training.epochs) == lengths


# ---- CapFilt ----

CAPFILT = CONFIGS / "capfilt.yaml"


def test_capfilts_settings_are_the_papers_and_words_go_over_them() -> None:
    config = load_settings(CAPFILT, ["captioner.model=a", "filter.model=b", "human=[]", "seed=3"])
    assert isinstance(config, CapFiltRun)
    how = config.captioner
    assert (how.decoding, how.captions, how.top_p, how.min_tokens, how.max_tokens) == ("nucleus", 1, 0.9, 5, 20)
    assert (config.filter.score, config.filter.least, config.filter.keep) == ("itm", 0.5, None)
    assert (config.data.human, config.seed, config.captioner.model, config.filter.model) == ([], 3, "a", "b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"capfilt\.yaml: captioner\.model and filter\.model are both null"),
        (["model=a"], r"key model is in several groups: write captioner\.model or filter\.model"),
        (["filter.model=a", "web=[]"], r"data\.web names no dataset"),
        (["filter.model=a", "web=[cc3m,cc3m]"], r"data\.web names 'cc3m' twice"),
        (["filter.model=a", "score=itc"], r"filter\.score=itc needs filter\.threshold"),
        (["filter.model=a", "threshold=-0.1"], r"filter\.threshold = -0\.1: for filter\.score=itm it is a probability"),
        (["filter.model=a", "threshold=0.4", "keep=2"], r"filter\.keep and filter\.threshold both"),
        (["captioner.model=a", "captions=2", "decoding=beams"], r"captioner\.captions = 2: beams give one"),
        (["captioner.model=a", "min_tokens=21"], r"captioner\.min_tokens = 21 is above captioner\.max_tokens = 20"),
        (["captioner.model=a", "top_p=0"], r"'top_p=0': captioner\.top_p = 0: Expected `float` > 0"),
        (["captioner.model=a", "max_steps=3"], r"unknown key max_steps"),
        (["keep"], r"'keep': settings are given as key=value, such as filter\.threshold=0\.4"),
    ],
)
def test_settings_of_capfilt_that_cannot_be_are_told(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_capfilt(CAPFILT, words)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "words", [["score=itc", "keep=2"], ["score=itc", "threshold=0.3"], ["keep=2"], ["threshold=0"]]
)
def test_a_threshold_or_a_number_decides(words: list[str]) -> None:
    config = load_capfilt(CAPFILT, ["filter.model=a", *words])
    assert (config.filter.least is None) == (config.filter.keep is not None)


def test_a_file_of_capfilt_has_a_base_and_is_no_file_of_training(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: capfilt\nfilter: {model: b}\ncaptioner: {top_p: 0.5}")
    config = load_settings(mine)
    assert isinstance(config, CapFiltRun)
    assert (config.captioner.top_p, config.captioner.max_tokens, config.filter.model) == (0.5, 20, "b")
    for path in (CAPFILT, mine):
        with pytest.raises(UserError, match=r"recipe = 'capfilt': these settings are for that recipe"):
            load_config(path)
    with pytest.raises(UserError, match=r"recipe = 'pretrain_qformer': these settings are for that recipe"):
        load_capfilt(CONFIGS / "stage1_world.yaml")
    mine.write_text("captioner: {top_p: 0.5}")
    with pytest.raises(UserError, match=r"unknown key captioner"):
        load_settings(mine)
