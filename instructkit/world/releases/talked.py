"""Visual Dialog, LLaVA-Instruct and Hateful Memes in miniature."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import Any

from instructkit.world.captions import caption, describe, listed, short
from instructkit.world.facts import ACTIONS, HELD_IN, salient, told
from instructkit.world.questions import Question, ask, ask_change, refer
from instructkit.world.release import Release, side_of
from instructkit.world.remarks import PRINTED, Remark
from instructkit.world.scene import KINDS, Film, Scene, article_of, colours_of, draw_scene, with_fact

ROUNDS = 10
BY_COLOUR = 2
"""Rounds that ask for a colour; all others ask what a thing is."""

DESCRIPTIONS = [f"a {colour} {kind}" for kind in KINDS for colour in colours_of(kind)]
COLOUR_ANSWERS = ["red", "green", "blue", "yellow", "orange", "purple", "black", "white"]
STOCK = ["yes", "no", "i can't tell", "not really", "maybe", "there are none", "it is dark", "only one"]
ANSWERS = [text.replace("a orange", "an orange") for text in DESCRIPTIONS] + COLOUR_ANSWERS + STOCK
"""The candidates of every round: exactly 100."""


def write_visdial(release: Release) -> None:
    """Ten rounds a picture, all 100 answers as candidates in an order of its own, relevances for one round of val."""
    size = release.size
    names = {"train": "train", "val": "val2018", "test": "test2018"}
    counts = {"train": size.other, "val": max(size.other, size.benchmark // 5), "test": size.other}
    for split, count in counts.items():
        questions: dict[str, int] = {}
        dialogs, dense = [], []
        for number in range(count):
            scene, asked = (found := release.draw(split, number, side_of(split), talk)).scene, found.questions
            rng = release.rng(split, number)
            rounds = [_round(rng, question, questions) for question in asked]
            image_id = 1 + number
            if split == "test":
                asked = asked[: 1 + number % ROUNDS]
                kept = [{key: entry[key] for key in ("question", "answer")} for entry in rounds[: len(asked) - 1]]
                last = rounds[len(asked) - 1]
                rounds = [*kept, {key: last[key] for key in ("question", "answer_options")}]
            dialogs.append({"image_id": image_id, "dialog": rounds, "caption": caption(scene).rstrip(".").lower()})
            for place, question in enumerate(asked, 1):
                if split != "test" or place == len(asked):
                    release.note(f"{split}/{image_id}/{place}", question, "dialog")
            if split == "val":
                dense.append(_relevances(image_id, rng.randint(1, ROUNDS), rounds))
            release.picture(_dialog_picture(split, image_id), scene)
        dialogs += release.flawed(split, dialogs)
        data = {"questions": list(questions), "answers": ANSWERS, "dialogs": dialogs}
        release.write_json(f"visdial_1.0_{split}.json", {"version": "1.0", "split": names[split], "data": data})
        if split == "val":
            release.write_json("visdial_1.0_val_dense_annotations.json", dense)


@dataclass(frozen=True)
class Talk:
    """A scene and the questions of its dialog."""

    scene: Scene
    questions: tuple[Question, ...]

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of the scenes that are shown."""
        return self.scene.digests


def talk(rng: random.Random) -> Talk:
    """Ten different questions about a scene: what a thing is, as "a red ball", and two for a colour."""
    while True:
        scene = draw_scene(rng, 5, 6)
        facts = told(scene)
        what: dict[str, Question] = {}
        for thing in scene.things:
            is_told = (thing.kind, "kind") in facts
            for by in ("place", "relation", "texture"):
                if (target := refer(rng, scene, thing, by)) is not None:
                    text = f"what is {target.words}"
                    what[text] = Question(text, short(thing), "kind", tuple(ANSWERS[:84]), is_told, scene)
        if len(what) >= ROUNDS - BY_COLOUR:
            break
    asked = rng.sample(list(what.values()), ROUNDS - BY_COLOUR)
    for thing in rng.sample(scene.things, BY_COLOUR):
        values = tuple(colours_of(thing.kind))
        is_told = (thing.kind, "colour") in facts
        asked.append(Question(f"what color is the {thing.kind}", thing.colour, "colour", values, is_told, scene))
    return Talk(scene, tuple(rng.sample(asked, ROUNDS)))


def write_llava_conversation(release: Release) -> None:
    """Conversations of one to three turns, answered in sentences."""
    records = []
    for number in range(release.size.training(8)):
        count = 1 + number % 3
        question = release.draw("train", number, "train", lambda rng: ask(rng, rng.choice(("kind", "colour"))))
        scene = question.scene
        assert isinstance(scene, Scene)
        turns = [(question.text, sentence(question))]
        for thing in scene.things[: count - 1]:
            turns.append((f"Where is the {thing.kind}?", f"The {thing.kind} is in the {thing.place} of the picture."))
            turns.append((f"Which pattern does the {thing.kind} have?", f"The {thing.kind} is {thing.texture}."))
        records.append(_conversation(number, turns[:count]))
        release.note(f"train/{records[-1]['id']}/{number}/1", question, "conversation")
        release.picture(f"train2017/{records[-1]['image']}", scene)
    release.write_json("conversation_58k.json", [*records, *release.flawed("train", records)])


def write_llava_detail(release: Release) -> None:
    """Whole descriptions."""
    wordings = ("Describe the picture in detail.", "What is in this picture? Tell everything.")
    records = []
    for number in range(release.size.training(4)):
        scene = release.draw("train", number, "train", lambda rng: draw_scene(rng, 1, 4))
        records.append(_conversation(number, [(wordings[number % 2], describe(scene))]))
        release.picture(f"train2017/{records[-1]['image']}", scene)
    release.write_json("detail_23k.json", [*records, *release.flawed("train", records)])


def write_llava_reasoning(release: Release) -> None:
    """Explanations: what a picture story changes, and what follows from the kind of a thing."""
    records = []
    for number in range(release.size.training(6)):
        fact = HELD_IN["llava_reasoning"].facts[number % len(HELD_IN["llava_reasoning"].facts)]
        make = partial(ask_change, action=fact) if fact in ACTIONS else partial(ask, fact=fact)
        question = release.draw("train", number, "train", make)
        records.append(_conversation(number, [(question.text, explanation(question))]))
        release.note(f"train/{records[-1]['id']}/{number}/1", question, "explanation")
        release.picture(f"train2017/{records[-1]['image']}", question.scene)
    release.write_json("complex_reasoning_77k.json", [*records, *release.flawed("train", records)])


def write_memes(release: Release) -> None:
    """Memes of both phases: a remark above one thing."""
    size = release.size
    first = 1
    for split in ("train", "dev_seen", "dev_unseen", "test_seen", "test_unseen"):
        lines = []
        for number in range(size.benchmark if split == "dev_seen" else size.other):
            remark = PRINTED[release.rng(split, number).randrange(len(PRINTED))]
            question = release.draw(split, number, side_of(split), partial(judge, remark=remark))
            line = {"id": first, "img": f"img/{first:05}.png", "text": remark.text}
            if not split.startswith("test"):
                line["label"] = int(question.answer == "yes")
            lines.append(line)
            release.note(f"{split}/{first}", question, "remark")
            release.picture(str(line["img"]), question.scene)
            first += 1
        lines += release.flawed(split, lines)
        release.write_lines(f"{split}.jsonl", lines)


def judge(rng: random.Random, remark: Remark) -> Question:
    """Whether a remark is unkind above the only thing of a scene."""
    answer = rng.choice(("yes", "no"))
    named = remark.unkind if answer == "yes" else remark.harmless
    scene, thing = with_fact(rng, remark.fact, named, 1, 1)
    meme = Scene((thing,), scene.background, (remark.text,))
    return Question(remark.text, answer, remark.fact, ("yes", "no"), (thing.kind, remark.fact) in told(meme), meme)


def sentence(question: Question) -> str:
    """The answer to a question for a kind, colour, pattern or place as a sentence."""
    where = {"kind": f"{article_of(question.answer)} ", "place": "in the "}.get(question.fact, "")
    return f"It is {where}{question.answer}{' of the picture' * (question.fact == 'place')}."


def explanation(question: Question) -> str:
    """The answer to a question, with what it follows from."""
    if isinstance(question.scene, Film):
        first, last = (
            listed([short(thing) for thing in scene.things]) for scene in (question.scene.first, question.scene.last)
        )
        return f"At first there is {first}. In the end there is {last}. So the answer is {question.answer}."
    mentioned = listed([short(thing) for thing in salient(question.scene)])
    return f"The picture shows {mentioned} among others. One knows such things. So the answer is {question.answer}."


def _round(rng: random.Random, question: Question, pool: dict[str, int]) -> dict[str, Any]:
    order = rng.sample(range(len(ANSWERS)), len(ANSWERS))
    answer = ANSWERS.index(question.answer)
    place = pool.setdefault(question.text, len(pool))
    return {"question": place, "answer": answer, "answer_options": order, "gt_index": order.index(answer)}


def _relevances(image_id: int, number: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The right answer counts whole, one that shares its kind or colour in part."""
    entry = rounds[number - 1]
    right = ANSWERS[entry["answer"]].split()[-2:]
    values = []
    for option in entry["answer_options"]:
        words = ANSWERS[option].split()[-2:]
        shared = sum(word in words for word in right) if len(words) == len(right) else 0
        values.append(1.0 if option == entry["answer"] else 0.2 * shared)
    return {"image_id": image_id, "round_id": number, "gt_relevance": values}


def _dialog_picture(split: str, image_id: int) -> str:
    if split == "train":  # every second one from COCO's val2014, as in the release
        folder = "val2014" if image_id % 2 else "train2014"
        return f"{folder}/COCO_{folder}_{image_id:012}.jpg"
    folder = f"VisualDialog_{split}2018"
    return f"{folder}/{folder}_{image_id:012}.jpg"


def _conversation(number: int, turns: list[tuple[str, str]]) -> dict[str, Any]:
    values = [text for turn in turns for text in turn]
    values[0] = f"{values[0]}\n<image>" if number % 2 else f"<image>\n{values[0]}"
    return {
        "id": f"{number:012}",
        "image": f"{number:012}.jpg",
        "conversations": [
            {"from": "gpt" if place % 2 else "human", "value": value} for place, value in enumerate(values)
        ],
    }
