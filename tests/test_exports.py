import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from instructkit.data.examples import Example, Turn
from instructkit.errors import UserError
from instructkit.prompts.export import FORMATS, conversations, render
from instructkit.prompts.templates import train_templates
from tests.test_examples import write_dataset

QUESTION = Example(id="a/b/1", images=["1.png"], question="What is it?", answers=["cat"])
PAIR = Example(id="a/b/2", images=["1.png", "2.png"], question="Which is red?", answers=["first"])
CLIP = Example(id="a/b/3", video="v.mp4", start=1.0, end=2.5, question="Who runs?", answers=["man"])


def dialog(number: int, turns: int, images: list[str]) -> list[Example]:
    """The examples of one conversation, one a turn, as the LLaVA sources make them."""
    told = [Turn(f"q{number}.{turn}", f"a{number}.{turn}") for turn in range(turns)]
    return [
        Example(
            id=f"a/b/{number}/{turn}",
            images=images,
            question=told[turn].question,
            answers=[told[turn].answer],
            history=told[:turn],
        )
        for turn in range(turns)
    ]


def lines(folder: Path, format: str, task: str | None = None, limit: int | None = None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in FORMATS[format]([folder], task, 0, limit)]


def test_text_is_what_the_templates_say(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "a", [QUESTION, PAIR, CLIP])
    words = [train_templates("vqa").render(example, 0) for example in (QUESTION, PAIR, CLIP)]
    first, second, third = lines(folder, "text")
    assert first == {
        "id": "a/b/1",
        "template": words[0].template,
        "instruction": words[0].instruction,
        "target": "cat",
        "images": ["/media/1.png"],
    }
    assert second["images"] == ["/media/1.png", "/media/2.png"]
    assert "images" not in third
    assert (third["video"], third["start"], third["end"]) == ("/media/v.mp4", 1.0, 2.5)


def test_messages_of_one_turn(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "a", [PAIR, CLIP])
    words = [train_templates("vqa").render(example, 0) for example in (PAIR, CLIP)]
    assert lines(folder, "messages") == [
        {
            "id": "a/b/2",
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": words[0].instruction}],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "first"}]},
            ],
            "images": ["/media/1.png", "/media/2.png"],
        },
        {
            "id": "a/b/3",
            "messages": [
                {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": words[1].instruction}]},
                {"role": "assistant", "content": [{"type": "text", "text": "man"}]},
            ],
            "videos": ["/media/v.mp4"],
        },
    ]


def test_dialogs_become_turns_of_one_conversation(tmp_path: Path) -> None:
    # Two conversations about the same picture follow each other; the last has lost its first two turns.
    examples = [*dialog(1, 3, ["1.png"]), *dialog(2, 2, ["1.png"]), dialog(3, 3, ["2.png"])[2]]
    folder = write_dataset(tmp_path / "a", examples, task="llava")
    first, second, third = lines(folder, "messages")
    assert [first["id"], second["id"], third["id"]] == ["a/b/1/2", "a/b/2/1", "a/b/3/2"]
    for number, turns, chat in ((1, 3, first), (2, 2, second), (3, 3, third)):
        told = [(message["role"], message["content"][-1]["text"]) for message in chat["messages"]]
        assert told == [
            turn
            for index in range(turns)
            for turn in (("user", f"q{number}.{index}"), ("assistant", f"a{number}.{index}"))
        ]
        assert [len(message["content"]) for message in chat["messages"]] == [2, 1] + [1, 1] * (turns - 1)
        assert chat["messages"][0]["content"][0] == {"type": "image"}
        assert len(chat["images"]) == 1


def test_llava_is_one_json_list(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "a", [*dialog(1, 2, ["1.png"]), PAIR, CLIP], task="llava")
    one, two, three = json.loads("".join(FORMATS["llava"]([folder], None, 0, None)))
    assert one == {
        "id": "a/b/1/1",
        "image": "/media/1.png",
        "conversations": [
            {"from": "human", "value": "<image>\nq1.0"},
            {"from": "gpt", "value": "a1.0"},
            {"from": "human", "value": "q1.1"},
            {"from": "gpt", "value": "a1.1"},
        ],
    }
    assert two["image"] == ["/media/1.png", "/media/2.png"]
    assert two["conversations"][0]["value"] == "<image>\n<image>\nWhich is red?"
    assert three["video"] == "/media/v.mp4"
    assert three["conversations"][0]["value"] == "<video>\nWho runs?"
    empty = write_dataset(tmp_path / "empty", [])
    assert json.loads("".join(FORMATS["llava"]([empty], None, 0, None))) == []


def test_preview_shows_what_the_model_reads(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "a", [*dialog(1, 2, ["1.png"]), CLIP], task="llava")
    shown = "".join(FORMATS["preview"]([folder], None, 0, None))
    assert (
        "a/b/1/1   wording as_it_is\n  picture     /media/1.png\n  instruction q1.0 a1.0 q1.1\n  target      a1.1\n"
        in shown
    )
    assert "  video       /media/v.mp4 (1 to 2.5 s)\n" in shown
    assert "".join(FORMATS["preview"]([folder], None, 0, 1)).count("wording") == 1


def test_limit_counts_what_is_written(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "a", [*dialog(1, 3, ["1.png"]), *dialog(2, 3, ["2.png"])], task="llava")
    assert [line["id"] for line in lines(folder, "messages", limit=1)] == ["a/b/1/2"]
    assert len(lines(folder, "text", limit=2)) == 2


def test_the_seed_decides_the_wording_and_the_task_the_templates(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "a", [QUESTION])
    wordings = {next(render([folder], seed=seed)).prompt.template for seed in range(40)}
    assert len(wordings) > 5
    (line,) = lines(folder, "text", task="question_generation")
    assert line["target"] == "What is it?"
    assert "cat" in line["instruction"]
    with pytest.raises(UserError, match="no task is called 'quiz'"):
        list(render([folder], task="quiz"))
    with pytest.raises(UserError, match="no task is called 'quiz'"):
        list(conversations([folder], task="quiz"))


def test_messages_are_read_by_chat_templates_and_processors(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    examples = [*dialog(1, 2, ["1.png"]), *dialog(2, 1, ["1.png", "2.png"])]
    folder = write_dataset(tmp_path / "a", examples, task="llava", media_root=str(tmp_path))
    for name in ("1.png", "2.png"):
        Image.new("RGB", (30, 20), "red").save(tmp_path / name)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0, "<image>": 1, "[PAD]": 2}, "[UNK]")), unk_token="[UNK]"
    )
    tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<image>"]})
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for m in messages %}{{ m['role'] }}: {% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}|{% endfor %}",
    )
    for line, expected, pictures in zip(
        lines(folder, "messages"),
        [
            "user: <image>q1.0|assistant: a1.0|user: q1.1|assistant: a1.1|",
            "user: <image><image>q2.0|assistant: a2.0|",
        ],
        [1, 2],
        strict=True,
    ):
        text = processor.apply_chat_template(line["messages"], tokenize=False)
        assert text == expected
        made = processor(text=text, images=[Image.open(path) for path in line["images"]], return_tensors="pt")
        assert made["pixel_values"].shape == (pictures, 3, 28, 28)
        assert (made["input_ids"] == tokenizer.convert_tokens_to_ids("<image>")).sum() == 4 * pictures


def test_messages_load_as_a_dataset_with_an_image_column(tmp_path: Path) -> None:
    import datasets

    folder = write_dataset(tmp_path / "a", [*dialog(1, 2, ["1.png"]), PAIR], task="llava", media_root=str(tmp_path))
    for name in ("1.png", "2.png"):
        Image.new("RGB", (30, 20), "red").save(tmp_path / name)
    (tmp_path / "chat.jsonl").write_text("".join(FORMATS["messages"]([folder], None, 0, None)))
    data = datasets.load_dataset("json", data_files=str(tmp_path / "chat.jsonl"), cache_dir=str(tmp_path / "cache"))
    rows = data["train"].cast_column("images", datasets.List(datasets.Image()))
    assert [len(row["images"]) for row in rows] == [1, 2]
    assert rows[1]["images"][1].size == (30, 20)
    parts = [part["type"] for message in rows[1]["messages"] for part in message["content"]]
    assert parts == ["image", "image", "text", "text"]
    shutil.rmtree(tmp_path / "cache")


@pytest.mark.parametrize(
    "question", ["<image>\nWhat is it?", "What is it?\n<image>", "What <image> is it?", "What is it?"]
)
@pytest.mark.parametrize("example", [QUESTION, PAIR, CLIP])
def test_llava_has_a_mark_for_each_picture_and_no_other(
    question: str, example: Example, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data that was made for LLaVA has its marks in the texts already."""
    told = [Turn("q <image>", "a </s> <video>")]
    example = msgspec.structs.replace(example, question=question, answers=["a <image> tag"], history=told)
    (record,) = json.loads("".join(FORMATS["llava"]([write_dataset(tmp_path / "a", [example])], "llava", 0, None)))
    kind = "image" if example.video is None else "video"
    media = record[kind] if isinstance(record[kind], list) else [record[kind]]
    values = [message["value"] for message in record["conversations"]]
    assert values == [f"<{kind}>\n" * len(media) + "q", "a </s>", "What is it?", "a tag"]
    assert "texts of 1 conversations, the first of them a/b/" in capsys.readouterr().err


@pytest.mark.parametrize("format", FORMATS)
def test_examples_without_an_answer_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    asked = msgspec.structs.replace(QUESTION, id="a/b/9", answers=[])
    whole = write_dataset(tmp_path / "whole", [QUESTION])
    mixed = write_dataset(tmp_path / "mixed", [asked, QUESTION, asked])
    hidden = write_dataset(tmp_path / "hidden", [asked] * 4, split="test")
    caption = write_dataset(tmp_path / "captions", [asked], split="captions", task="captioning")
    expected = list(FORMATS[format]([whole], None, 0, None))
    assert capsys.readouterr().err == ""
    assert list(FORMATS[format]([hidden, mixed, caption], None, 0, None)) == expected
    assert capsys.readouterr().err.splitlines() == [
        "render: left out 4 examples of a/test that have no answer",
        "render: left out 2 examples of a/b that have no answer",
        "render: left out 1 examples of a/captions that have no answer",
    ]
