"""TextVQA, TextCaps and OCR-VQA in miniature: what is printed in pictures."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from instructkit.world.captions import reading_caption
from instructkit.world.facts import HELD_OUT
from instructkit.world.questions import ON_SIGN, Question, ask_sign
from instructkit.world.release import Release, side_of, ten_answers
from instructkit.world.scene import NAMES, NUMBERS, WORDS, Scene, draw_scene

TOKENS = 8
"""OCR tokens a picture: one of them is on the sign that is asked about, the others are misread or stray."""


def write_textvqa(release: Release) -> None:
    """Questions about one of two signs, and Rosetta's tokens, which say neither where they stand nor what is right."""
    size = release.size
    first = 0
    for split, count in {"train": size.other, "val": size.benchmark, "test": size.other}.items():
        records, read = [], []
        for number in range(count):
            question = release.draw(split, number, side_of(split), _ask_side)
            rng = release.rng(split, number)
            tokens = _tokens(rng, question)
            question = replace(question, values=tuple(token.lower() for token in tokens))
            image = f"{first:016x}"
            record: dict[str, Any] = {
                "question_id": first,
                "question": question.text.lower(),
                "image_id": image,
                "image_classes": ["Sign"],
                "image_width": 112,
                "image_height": 112,
                "set_name": split,
            }
            if split != "test":
                record["answers"] = ten_answers(rng, question)
            records.append(record)
            read.append(_rosetta(image, tokens))
            first += 1
            release.note(f"{split}/{record['question_id']}", question, "tokens")
            release.picture(f"{'test' if split == 'test' else 'train'}_images/{image}.jpg", question.scene)
        records += release.flawed(split, records)
        head = {"dataset_type": split, "dataset_name": "textvqa", "dataset_version": "0.5.1"}
        release.write_json(f"TextVQA_0.5.1_{split}.json", {**head, "data": records})
        name = f"TextVQA_Rosetta_OCR_v0.2_{split}.json"
        release.write_json(name, {"dataset_type": split, "dataset_version": "0.2", "data": read})


def write_textcaps(release: Release) -> None:
    """Captions that mention the signs, five a picture, with Rosetta's tokens."""
    size = release.size
    for place, (split, count) in enumerate(
        {"train": size.training(16), "val": size.benchmark, "test": size.other}.items(), 1
    ):
        entries: list[dict[str, Any]] = []
        tokens = []
        for number in range(count):
            scene = release.draw(split, number, side_of(split), _signed)
            image = f"{place}{number:015x}"
            captions = [reading_caption(scene, number + wording) for wording in range(5)]
            entry = {"image_id": image, "image_classes": ["Sign"], "set_name": split, "image_name": image}
            if split == "test":
                entries.append(entry)
            for text in captions if split != "test" else []:
                caption = {"caption_id": place * 100_000_000 + len(entries), "caption_str": text}
                entries.append({**entry, **caption, "reference_strs": captions})
            tokens.append(_rosetta(image, list(scene.signs)))
            release.picture(f"{'test' if split == 'test' else 'train'}_images/{image}.jpg", scene)
        bad = release.flawed(split, entries if split == "train" else entries[::5])  # read one a picture
        entries += bad
        head = {"dataset_type": split, "dataset_name": "textcaps", "dataset_version": 0.1}
        release.write_json(f"TextCaps_0.1_{split}.json", {**head, "data": entries})
        name = f"TextVQA_Rosetta_OCR_v0.2_{split}.json"
        release.write_json(name, {"dataset_type": split, "dataset_version": "0.2", "data": tokens})


def write_ocrvqa(release: Release) -> None:
    """Covers with a title and an author or a number, three questions each."""
    size = release.size
    counts = {"train": size.training(40), "val": size.other, "test": max(1, size.benchmark // 3)}
    books: dict[str, Any] = {}
    for code, (split, count) in enumerate(counts.items(), 1):
        for number in range(count):
            scene = release.draw(split, number, side_of(split), _cover)
            rng = release.rng(split, number)
            asin = f"{code}{number:09}"
            asked = _ask_cover(rng, scene)
            books[asin] = {
                "imageURL": f"http://pictures.example/images/I/{asin}.jpg",
                "questions": [question.text for question in asked],
                "answers": [question.answer for question in asked],
                "title": scene.signs[0].title(),
                "authorName": scene.signs[1].title(),
                "genre": "Picture books",
                "split": code,
            }
            for place, question in enumerate(asked):
                release.note(f"{split}/{asin}/{place}", question, "open")
            release.picture(f"images/{asin}.jpg", scene)
        own = [book for book in books.values() if book["split"] == code]
        books |= {f"{code}9{place:08}": book for place, book in enumerate(release.flawed(split, own))}
    release.write_json("dataset.json", books)


def _ask_side(rng: random.Random) -> Question:
    """What one of two signs says; both say a word, or both a number."""
    fact = rng.choice(HELD_OUT["textvqa"].facts)
    pool = WORDS if fact == "word" else NUMBERS
    question = ask_sign(rng, fact, (ON_SIGN.format("{}", "left" if (first := rng.random() < 0.5) else "right"),))
    answer = question.answer.upper()
    other = rng.choice([text for text in pool if text != answer])
    assert isinstance(question.scene, Scene)
    return replace(question, scene=replace(question.scene, signs=(answer, other) if first else (other, answer)))


def _tokens(rng: random.Random, question: Question) -> list[str]:
    """Both signs and strays, in an order that says nothing."""
    assert isinstance(question.scene, Scene)
    pool = WORDS if question.fact == "word" else NUMBERS
    strays = [text for text in pool if text not in question.scene.signs]
    tokens = [*question.scene.signs, *rng.sample(strays, TOKENS - 2)]
    rng.shuffle(tokens)
    return tokens


def _rosetta(image: str, tokens: list[str]) -> dict[str, Any]:
    return {"image_id": image, "ocr_tokens": tokens, "ocr_info": [{"word": word} for word in tokens]}


def _signed(rng: random.Random) -> Scene:
    signs = (rng.choice(WORDS), rng.choice(NUMBERS))
    return draw_scene(rng, 1, 4, signs if rng.random() < 0.5 else signs[::-1])


def _cover(rng: random.Random) -> Scene:
    return draw_scene(rng, 1, 3, (rng.choice(WORDS), rng.choice((rng.choice(NAMES), rng.choice(NUMBERS)))))


def _ask_cover(rng: random.Random, scene: Scene) -> list[Question]:
    """Title, author or number, and whether the title is a certain one."""
    title, other = scene.signs
    asked = [Question("What is the title of this book?", title.title(), "word", WORDS, False, scene)]
    if other.isdigit():
        asked.append(Question("What is the number of this book?", other, "figure", NUMBERS, False, scene))
    else:
        asked.append(Question("Who wrote this book?", other.title(), "word", NAMES, False, scene))
    answer = rng.choice(("Yes", "No"))
    named = title if answer == "Yes" else rng.choice([word for word in WORDS if word != title])
    text = f"Is this book called {named.title()}?"
    asked.append(Question(text, answer, "word", ("Yes", "No"), False, scene))
    return asked
