"""A source that was edited, or a module that it imports, is converted again."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from instructkit import cli, sources
from instructkit.conversion.code_digest import code_digest
from instructkit.conversion.convert import convert

TINY = Path(__file__).parent / "made_up_source/tiny.py"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The made-up source, in a file that a test may edit."""
    (tmp_path / "sources").mkdir()
    shutil.copy(TINY, tmp_path / "sources/edited.py")
    text = (
        (tmp_path / "sources/edited.py")
        .read_text()
        .replace('"tiny"', '"edited"')
        .replace("tiny/{split}", "edited/{split}")
    )
    (tmp_path / "sources/edited.py").write_text(text)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path / "sources")])
    return tmp_path / "sources/edited.py"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    record = {"id": "0", "image": "0.png", "question": "What?", "answers": ["a"]}
    (tmp_path / "raw/list.json").write_text(json.dumps([record]))
    return tmp_path / "raw"


def test_the_digest_covers_a_module_and_what_it_imports_from_the_package(module: Path) -> None:
    name = "instructkit.sources.edited"
    digests = [code_digest(name)]
    assert code_digest(name, name) == digests[0]

    def edited(path: Path, text: str) -> None:
        path.write_text(text)
        digests.append(code_digest(name))

    edited(module, module.read_text() + "# a comment\n")
    edited(module.with_name("helper.py"), "X = 1\n")  # nothing imports it
    assert digests.pop() == digests[-1]
    edited(module, module.read_text() + "def later():\n    from instructkit.sources import helper\n")
    edited(module.with_name("helper.py"), "X = 2\n")
    edited(module.with_name("helper.py"), "from .further import Y\n")
    edited(module.with_name("further.py"), "import instructkit.sources.helper\nY = 1\n")
    edited(module.with_name("further.py"), "import instructkit.sources.helper\nY = 2\n")
    edited(module.with_name("further.py"), "import json\nY = 2\n")
    assert len(set(digests)) == len(digests) == 8


def test_every_source_has_its_own_digest() -> None:
    digests = [code_digest(f"instructkit.sources.{name}") for name in sources.names()]
    assert len(set(digests)) == len(digests)


def test_an_edited_source_is_converted_again(module: Path, raw: Path, tmp_path: Path) -> None:
    first = convert("edited", raw, tmp_path / "out")
    assert not convert("edited", raw, tmp_path / "out").converted
    whole = module.read_text()
    module.write_text(whole + "\n# edited\n")
    again = convert("edited", raw, tmp_path / "out")
    assert again.converted
    assert again.manifest.code != first.manifest.code
    assert not convert("edited", raw, tmp_path / "out").converted


def test_force_converts_again_what_has_not_changed(module: Path, raw: Path, tmp_path: Path) -> None:
    assert convert("edited", raw, tmp_path / "out").converted
    before = {path.name: path.read_bytes() for path in (tmp_path / "out/edited/train").iterdir()}
    assert convert("edited", raw, tmp_path / "out", force=True).converted
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/edited/train").iterdir()} == before


def test_the_command_has_force(module: Path, raw: Path, tmp_path: Path) -> None:
    words = ["convert", "edited", "--raw", str(raw), "--out", str(tmp_path / "out"), "--jobs", "1"]
    told = [CliRunner().invoke(cli.app, [*words, *more]).output for more in ([], [], ["--force"])]
    assert ["nothing changed" in text for text in told] == [False, True, False]
