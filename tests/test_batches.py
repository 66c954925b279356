"""Rows: who reads what. No target token may reach the Q-Former, nor a label lie outside the answer."""

from __future__ import annotations

import pytest
import torch

from instructkit.models.batches import IGNORED, Limits, padded, share_images
from instructkit.prompts.templates import Prompt
from tests.tiny import tiny_model

SECRET = "rectangle"
PROMPTS = [
    Prompt("s/t/0", "x", "what shape is it?", SECRET, ["a.png"]),
    Prompt("s/t/1", "x", "Question: what is in the picture? Short answer:", f"{SECRET} {SECRET}", ["a.png"]),
    Prompt("s/t/2", "x", "name it", SECRET, ["b.png"]),
]


@pytest.mark.parametrize("llm", ["llama", "t5"])
def test_no_target_token_reaches_the_qformer_nor_a_label_lies_outside_the_answer(llm):
    _, texts = tiny_model(llm)
    rows = texts.rows(texts.encode(PROMPTS), [1, 1, 1])
    for index, prompt in enumerate(PROMPTS):
        read = texts.qformer.decode(rows["qformer_input_ids"][index], skip_special_tokens=True)
        assert SECRET not in read
        assert read.replace(" ", "") == prompt.instruction.lower().replace(" ", "")
        labels = rows["labels"][index]
        answer = labels[labels != IGNORED].tolist()
        assert answer[-1] == texts.llm.eos_token_id
        assert texts.llm.decode(answer[:-1]).strip() == prompt.target
        before = rows["input_ids"][index][labels == IGNORED] if texts.decoder_only else rows["input_ids"][index]
        assert SECRET not in texts.llm.decode(before)


def test_rows_of_a_decoder_are_queries_start_instruction_answer_end_padding():
    _, texts = tiny_model()
    rows = texts.rows(texts.encode(PROMPTS), [1, 2, 1])
    prompt = texts.llm("name it")["input_ids"]
    answer = texts.encode_answers([SECRET])[0]
    ids = rows["input_ids"][2].tolist()
    body = [3] * 4 + prompt + answer + [2]
    assert prompt[0] == 1
    assert ids == body + [0] * (len(ids) - len(body))
    assert rows["attention_mask"][2].tolist() == [1] * len(body) + [0] * (len(ids) - len(body))
    expected = [IGNORED] * (4 + len(prompt)) + answer + [2]
    assert rows["labels"][2].tolist() == expected + [IGNORED] * (len(ids) - len(body))
    assert (rows["input_ids"][1] == 3).sum() == 8


def test_prefixes_end_together():
    _, texts = tiny_model()
    rows = texts.prefixes(texts.encode(PROMPTS), [1, 1, 1])
    assert rows["attention_mask"][:, -1].tolist() == [1, 1, 1]
    assert rows["attention_mask"].sum(1).tolist() == [4 + len(texts.llm(p.instruction)["input_ids"]) for p in PROMPTS]


def test_long_texts_are_cut_as_the_predecessor_cuts_them():
    _, texts = tiny_model(limits=Limits(qformer=6, instruction=5, answer=2))
    (row,) = texts.encode([Prompt("s/t/0", "x", "one two three four five six seven", "red green blue", ["a"])])
    whole = texts.llm("one two three four five six seven")["input_ids"]
    assert row.instruction == [1, *whole[-4:]]
    read = texts.qformer("one two three four five six seven")["input_ids"]
    assert row.qformer == [read[0], *read[-5:]]
    assert row.answer == texts.encode_answers(["red green blue"])[0][:2]


def test_answers_are_tokenised_as_they_stand_behind_an_instruction():
    _, texts = tiny_model()
    joined = texts.llm("what color? red", add_special_tokens=False)["input_ids"]
    apart = texts.llm("what color?", add_special_tokens=False)["input_ids"] + texts.encode_answers(["red"])[0]
    assert apart == joined


def test_share_images_keeps_the_order_of_rows_and_frames():
    distinct, sharing = share_images([["v0", "v1"], ["b"], ["v1"]])
    assert distinct == ["v0", "v1", "b"]
    assert sharing["image_index"].tolist() == [0, 1, 2, 1]
    assert sharing["image_rows"].tolist() == [0, 0, 1, 2]


def test_padded():
    assert torch.equal(padded([[1], [2, 3]], 9), torch.tensor([[1, 9], [2, 3]]))
    assert torch.equal(padded([[1], [2, 3]], 9, left=True), torch.tensor([[9, 1], [2, 3]]))
