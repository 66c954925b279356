"""`InstructBlip` against transformers' own class, row by row."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, InstructBlipForConditionalGeneration, InstructBlipProcessor

from instructkit.models.batches import IGNORED, share_images
from instructkit.models.save import load_model, save_model
from instructkit.prompts.templates import Prompt
from tests.tiny import LLMS, tiny_model

PROMPTS = [
    Prompt("a/b/0", "t", "what color is the shape?", "red", ["0"]),
    Prompt("a/b/1", "t", "is there a triangle in the picture? Short answer:", "no", ["0"]),
    Prompt("a/b/2", "t", "Describe the image.", "a red circle", ["1"]),
    Prompt("a/b/3", "t", "is there a circle?", "yes", ["0"]),
]


def batch(texts, prompts=PROMPTS):
    distinct, sharing = share_images([prompt.images for prompt in prompts])
    torch.manual_seed(1)
    pixels = torch.randn(len(distinct), 3, 16, 16)
    rows = texts.rows(texts.encode(prompts), [len(prompt.images) for prompt in prompts])
    return {"pixel_values": pixels, **sharing, **rows}


def plain_loss(model, texts, inputs):
    """Sum of the target tokens' losses by transformers' own forward, one unshared image and one row at a time."""
    total = 0.0
    for row in range(len(inputs["input_ids"])):
        keep = inputs["attention_mask"][row].bool()
        mine = inputs["qformer_attention_mask"][row].bool()
        call = {
            "pixel_values": inputs["pixel_values"][inputs["image_index"][inputs["image_rows"] == row]],
            "qformer_input_ids": inputs["qformer_input_ids"][row : row + 1, mine],
            "input_ids": inputs["input_ids"][row : row + 1, keep],
        }
        labels = inputs["labels"][row]
        if texts.decoder_only:
            labels = labels[keep]
            logits = model(**call).logits[0, :-1]
            labels = labels[1:]
        else:
            labels = labels[labels != IGNORED]
            start = torch.tensor([[model.language_model.config.decoder_start_token_id, *labels[:-1].tolist()]])
            logits = model(**call, decoder_input_ids=start).logits[0]
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)
    return total


@pytest.mark.parametrize("llm", LLMS)
def test_loss_of_a_shared_batch_is_that_of_plain_transformers_row_by_row(llm):
    model, texts = tiny_model(llm)
    model.eval()
    inputs = batch(texts)
    answer = model(**inputs)
    plain = InstructBlipForConditionalGeneration(model.config).eval()
    plain.load_state_dict(model.state_dict())
    expected = plain_loss(plain, texts, inputs)
    assert answer.tokens == sum(len(row.answer) for row in texts.encode(PROMPTS))
    torch.testing.assert_close(answer.total, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(answer.rows.sum(), answer.total.detach(), atol=1e-4, rtol=1e-5)


def test_one_vision_pass_for_an_image_whatever_the_number_of_questions():
    model, texts = tiny_model()
    seen = []
    model.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"].shape[0]), with_kwargs=True
    )
    model(**batch(texts))
    assert seen == [2]


def test_several_images_of_a_row_follow_each_other_in_front_of_its_text():
    model, texts = tiny_model()
    model.eval()
    prompts = [Prompt("a/b/0", "t", "what color?", "red", ["x", "y"]), Prompt("a/b/1", "t", "what?", "blue", ["y"])]
    inputs = batch(texts, prompts)
    soft = model.query_images(
        model.encode_images(inputs["pixel_values"]),
        inputs["image_index"],
        inputs["image_rows"],
        inputs["qformer_input_ids"],
        inputs["qformer_attention_mask"],
    )
    names = ("pixel_values", "image_index", "image_rows", "qformer_input_ids", "qformer_attention_mask", "input_ids")
    embeds = model.prefix(**{name: inputs[name] for name in names})
    torch.testing.assert_close(embeds[0, :8], torch.cat([soft[0], soft[1]]))
    torch.testing.assert_close(embeds[1, :4], soft[2])
    assert (inputs["input_ids"][1, :5] == 3).tolist() == [True] * 4 + [False]


@pytest.mark.parametrize("llm", ["llama", "t5"])
def test_saved_model_loads_in_plain_transformers_with_the_same_logits(llm, tmp_path):
    model, texts = tiny_model(llm)
    model.eval()
    save_model(model, texts, tmp_path)
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(plain) is InstructBlipForConditionalGeneration
    processor = InstructBlipProcessor.from_pretrained(tmp_path)
    text = processor(text=["what color is the shape?"], return_tensors="pt")
    image = [3] * 4
    call = {
        "pixel_values": torch.randn(1, 3, 16, 16),
        "qformer_input_ids": text["qformer_input_ids"],
        "input_ids": torch.tensor([image + text["input_ids"][0].tolist()]),
    }
    if not texts.decoder_only:
        call["decoder_input_ids"] = torch.tensor([[0, 7, 9]])
    with torch.no_grad():
        torch.testing.assert_close(plain(**call).logits, model(**call).logits, atol=1e-5, rtol=0)
    again, tokenisers = load_model(str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**call).logits, model(**call).logits, atol=1e-5, rtol=0)
    assert tokenisers.encode(PROMPTS) == texts.encode(PROMPTS)


@pytest.mark.parametrize("llm", ["llama", "t5"])
def test_without_instruction_awareness_the_qformer_ignores_the_text_and_the_llm_does_not(llm):
    model, texts = tiny_model(llm)
    model.eval()
    first = batch(texts)
    other = dict(first, qformer_input_ids=first["qformer_input_ids"].flip(0))
    assert not torch.allclose(model(**first).rows, model(**other).rows)
    model.config.instruction_aware = False
    torch.testing.assert_close(model(**first).rows, model(**other).rows)
    changed = dict(first, input_ids=torch.where(first["input_ids"] > 10, first["input_ids"] - 1, first["input_ids"]))
    assert not torch.allclose(model(**first).rows, model(**changed).rows)
    plain = model(
        pixel_values=first["pixel_values"][:1],
        qformer_input_ids=first["qformer_input_ids"][:1],
        input_ids=first["input_ids"][:1, :9],
        **({} if texts.decoder_only else {"decoder_input_ids": torch.tensor([[0]])}),
    )
    assert plain.logits.shape[0] == 1
