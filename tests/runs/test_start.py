"""A recipe's command line: help from the docstrings, settings, mistakes in a line."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from instructkit.config.read import load_config
from instructkit.config.settings import GROUPS, RunConfig
from instructkit.runs.start import attributes, setting_lines, start


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def read(*arguments: str) -> RunConfig | None:
    return start("__main__", "A recipe.", RunConfig, load_config, "easy_vqa", arguments)


def test_every_setting_is_listed_once_with_its_default_and_what_it_is() -> None:
    lines = list(setting_lines(RunConfig))
    names = [line.split("=")[0].strip() for line in lines]
    groups = [f"{group}.{name}" for group, kind in GROUPS.items() for name in kind.__struct_fields__]
    assert sorted(names) == sorted([*(set(RunConfig.__struct_fields__) - set(GROUPS)), *groups])
    assert all(line.split(": ", 1)[1] for line in lines)
    assert "  training.learning_rate=0.00001: peak learning rate" in lines
    assert "  training.betas=[0.9,0.999]: betas of AdamW" in lines
    assert "  data.augment=false: crop and flip pictures at random" in lines


def test_a_setting_that_must_be_given_has_no_default() -> None:
    class Asked(msgspec.Struct):
        """What is asked for.

        Attributes:
            model: a folder; the text
                goes on here. Another sentence.
            limit: so many.
        """

        model: str
        limit: int | None = None

    assert list(setting_lines(Asked)) == ["  model=...: a folder", "  limit=null: so many"]
    assert attributes(Asked)["model"] == "a folder; the text goes on here. Another sentence."


def test_help_shows_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read("--help")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "A recipe." in said
    assert "--config" in said
    assert "  training.max_steps=" in said


def test_a_config_is_named_or_a_path_and_words_go_over_it(tmp_path: Path) -> None:
    config = read("max_steps=7")
    assert config is not None
    assert (config.output, config.training.max_steps) == ("runs/easy_vqa", 7)
    (tmp_path / "mine.yaml").write_text("output: here\n")
    for words in (["--config", str(tmp_path / "mine.yaml")], [f"--config={tmp_path / 'mine.yaml'}", "--local_rank=1"]):
        assert read(*words, "seed=3") == RunConfig(output="here", seed=3)
    named = read("--config", "vicuna_7b")
    assert named is not None
    assert named.model.name == "vicuna-7b"


@pytest.mark.parametrize("words", [["max_step=7"], ["--config", "no_such"], ["max_steps=-1"], ["seed"]])
def test_a_mistake_is_one_line_on_the_first_rank_of_a_machine(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit) as ended:
            read(*words)
        assert ended.value.code == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == lines
        assert all(line.startswith("error: ") for line in said)


def test_nothing_is_read_where_the_recipe_is_imported() -> None:
    assert start("instruct", "A recipe.", RunConfig, load_config, "easy_vqa", ["nonsense"]) is None
