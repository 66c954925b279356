"""Tokenizers trained on a run's text: the same text gives the same tokens, in every process."""

from __future__ import annotations

import json
import subprocess
import sys

from instructkit.models.load.new_tokenizers import train_llm_tokenizer, train_qformer_tokenizer
from tests.tiny import SENTENCES

SCRIPT = """
import json
from instructkit.models.load.new_tokenizers import train_llm_tokenizer, train_qformer_tokenizer
from tests.tiny import SENTENCES
trained = train_llm_tokenizer(SENTENCES, 400), train_qformer_tokenizer(SENTENCES, 120)
print(json.dumps([tokenizer.get_vocab() for tokenizer in trained]))
"""


def test_another_process_learns_the_same_vocabularies():
    here = [train_llm_tokenizer(SENTENCES, 400).get_vocab(), train_qformer_tokenizer(SENTENCES, 120).get_vocab()]
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == here


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
