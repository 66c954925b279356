"""Tokenizers trained on a run's text: the same text gives the same tokens, in every process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from instructkit.models.load.new_tokenizers import train_llm_tokenizer, train_qformer_tokenizer
from instructkit.models.load.parts import read_tokenizer
from instructkit.models.load.tokenizer_files import open_tokenizer
from instructkit.models.packable import COMPARED_DECODERS
from tests.tiny import SENTENCES
from tests.training.mini import launch

SCRIPT = """
import json
from instructkit.models.load.new_tokenizers import train_llm_tokenizer, train_qformer_tokenizer
from tests.tiny import SENTENCES
trained = train_llm_tokenizer(SENTENCES, 400), train_qformer_tokenizer(SENTENCES, 120)
print(hash("triangle"))
print(json.dumps([tokenizer.get_vocab() for tokenizer in trained]))
"""


def test_another_process_learns_the_same_vocabularies(tmp_path):
    """One whose hashes of strings are others, as sets are walked through in their order."""
    here = [train_llm_tokenizer(SENTENCES, 400).get_vocab(), train_qformer_tokenizer(SENTENCES, 120).get_vocab()]
    (tmp_path / "script.py").write_text(SCRIPT)
    seed, *there = launch(1, tmp_path / "script.py", []).splitlines()[-2:]
    assert int(seed) != hash("triangle")
    assert json.loads(there[0]) == here


def test_the_qformers_tokenizer_lower_cases_splits_words_and_has_berts_tokens():
    tokenizer = train_qformer_tokenizer(SENTENCES, 120)
    assert len(tokenizer) == 120
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = tokenizer("What COLOR is a triangle?")["input_ids"]
    assert tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == ["[CLS]", "[SEP]"]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "whatcolorisatriangle?"
    assert tokenizer.unk_token_id in tokenizer("snow ☃")["input_ids"]
    assert sorted(tokenizer.all_special_tokens) == ["[CLS]", "[MASK]", "[PAD]", "[SEP]", "[UNK]"]


def test_the_llms_tokenizer_encodes_any_text_and_gives_it_back():
    tokenizer = train_llm_tokenizer(SENTENCES, 400)
    assert tokenizer.convert_ids_to_tokens(range(4)) == ["<pad>", "<s>", "</s>", "<image>"]
    for text in ("what color is the shape?", "snow ☃ and ümläut"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


@pytest.mark.parametrize("kind", sorted(COMPARED_DECODERS & set(CONFIG_MAPPING)))
def test_a_tokenizer_is_read_as_it_was_written_beside_an_llm_of_any_class(kind: str, tmp_path: Path) -> None:
    """`AutoTokenizer` reads that of a Qwen2, say, by the class's own rules: digits one by one, no blank in front."""
    tokenizer = train_llm_tokenizer(["The left sign says 25.", "Facts of one picture.", *SENTENCES], 400)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    text = "Facts of one picture. The left sign says 25."
    assert open_tokenizer(str(tmp_path)).tokenize(text) == tokenizer.tokenize(text)
    assert read_tokenizer(str(tmp_path), "llm").tokenize(text) == tokenizer.tokenize(text)
