"""Settings: what is wrong with them is said by name."""

from __future__ import annotations

import pytest

from instructkit.config import TrainingConfig, load_config, to_dict
from instructkit.errors import UserError


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
        (["max_steps=many"], r"Expected `int`, got `str` - at `\$.training.max_steps`"),
        (["max_steps=0"], r"Expected `int` >= 1 - at `\$.training.max_steps`"),
        (["zero_stage=4"], r"Invalid enum value 4 - at `\$.training.zero_stage`"),
        (["towers.llm=quantised"], r"Invalid enum value 'quantised' - at `\$.towers.llm`"),
        (["betas=[0.9]"], r"length 2, got 1 - at `\$.training.betas`"),
        (["data.train=[]"], r"length >= 1 - at `\$.data.train`"),
        (["data.weights.okvqa=-1"], r">= 0"),
        (["seed={"], "the value is no YAML"),
    ],
)
def test_what_is_wrong_with_a_word_is_said_in_one_line(config, words, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(config, words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modell: {}", "unknown key 'modell'; did you mean model"),
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
    from instructkit import config as module

    monkeypatch.setattr(module, "GROUPS", {**module.GROUPS, "data": TrainingConfig})
    with pytest.raises(UserError, match=r"in several groups: write data\.max_steps or training\.max_steps"):
        load_config(config, ["max_steps=7"])
