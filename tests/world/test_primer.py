"""The primer: what its documents say again, and that common words come in half of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from instructkit.world.primer import COMMON, TWICE, write_primer
from instructkit.world.scene import NUMBERS, WORDS

HEAD = re.compile(r"Facts of one picture\. The left sign says (\w+)\. The right sign says (\w+)\. (.*)\.")


def test_each_document_says_again_what_is_printed(tmp_path: Path) -> None:
    assert write_primer(tmp_path / "primer.jsonl", 1200) == 1200
    texts = [json.loads(line)["text"] for line in (tmp_path / "primer.jsonl").read_text().splitlines()]
    seen, common = set(), 0
    for text in texts:
        found = HEAD.fullmatch(text)
        assert found is not None, text
        left, right, said = found.groups()
        word, number = (left, right) if right.isdigit() else (right, left)
        assert word.upper() in WORDS
        assert number in NUMBERS
        lines = [f"the left sign: {left}", f"the right sign: {right}", f"word: {word}", f"number: {number}"]
        assert sorted(said.split("; ")) == sorted(lines * TWICE)
        seen |= {word, number}
        common += WORDS.index(word.upper()) < COMMON and NUMBERS.index(number) < COMMON
    assert len(seen) > 0.95 * (len(WORDS) + len(NUMBERS))
    assert 600 <= common < 660
    write_primer(tmp_path / "again.jsonl", 1200)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "primer.jsonl").read_bytes()
