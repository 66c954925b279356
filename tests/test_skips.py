"""A test that is skipped says why."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def silent_skips(code: str) -> Iterator[int]:
    """Lines that skip a test, or expect it to fail, without a reason."""
    tree = ast.parse(code)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        call = calls.get(id(node))
        marked = isinstance(node.value, ast.Attribute) and node.value.attr == "mark"
        if marked and node.attr in ("skip", "skipif", "xfail"):
            # A first word of `skip` alone is its reason; of the others it is the condition.
            given = reasons(call, positional=node.attr == "skip")
        elif isinstance(node.value, ast.Name) and node.value.id == "pytest" and node.attr in ("skip", "xfail"):
            given = reasons(call, positional=True)
        else:
            continue
        if not given:
            yield node.lineno


def reasons(call: ast.Call | None, positional: bool) -> list[ast.expr]:
    if call is None:
        return []
    given = [each.value for each in call.keywords if each.arg == "reason"] + (call.args if positional else [])
    return [each for each in given if not (isinstance(each, ast.Constant) and not str(each.value or "").strip())]


def test_every_skip_names_its_reason() -> None:
    silent = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line in silent_skips(path.read_text(encoding="utf-8"))
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("code", "silent"),
    [
        ("@pytest.mark.skip\ndef test(): ...", True),
        ("@pytest.mark.skip()\ndef test(): ...", True),
        ("@pytest.mark.skip('why')\ndef test(): ...", False),
        ("@pytest.mark.skip(reason=' ')\ndef test(): ...", True),
        ("slow = pytest.mark.skipif(here)", True),
        ("slow = pytest.mark.skipif(here, reason=why())", False),
        ("pytest.param(1, marks=pytest.mark.xfail)", True),
        ("def test():\n    pytest.skip()", True),
        ("def test():\n    pytest.skip(f'no {thing}')", False),
        ("def test():\n    pytest.skip(reason='')", True),
        ("def test():\n    tokenizer.skip()", False),
    ],
)
def test_what_counts_as_a_reason(code: str, silent: bool) -> None:
    assert bool(list(silent_skips(code))) == silent


def test_a_run_ends_with_its_skips(pytester: pytest.Pytester) -> None:
    """With the project's own options."""
    pytester.path.joinpath("pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    folder = pytester.path / "tests"
    folder.mkdir()
    (folder / "test_it.py").write_text("import pytest\ndef test():\n    pytest.skip('no such thing here')\n")
    result = pytester.runpytest_subprocess()
    result.stdout.fnmatch_lines(["*short test summary info*", "SKIPPED*test_it.py*no such thing here"])
