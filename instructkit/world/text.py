"""Language about the world for the LLM: `python -m instructkit.world.text --out FILE`.

Lessons come first (`lessons.py`). A document behind them describes a scene or a film, asks one question about it and
ends with the answer, or says what everybody knows (`knowledge.py`). Of every four one is a sheet, which asks ten
questions about a scene, or five about two pictures, each with its answer, and one repeats a lesson, which the LLM would
forget otherwise. The text asks in every form in which a held-out benchmark does, in the words of that benchmark's
protocol, for other facts than the benchmark (`facts.TEXT`). A form in which training asks, too, comes as often in the
words of a training template: an LLM that has read no instruction follows none. All scenes are training scenes.

The file has one JSON object a line: `text`, which the LLM reads; `told`, the ranges of it that hold the answers, or
null for all of a caption with its description and of what everybody knows; `form` and `facts`; the digests of the
scenes; that of the description with its question; and `stage`: documents of a lower one are read first.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from string import ascii_lowercase
from typing import Annotated

import msgspec
import typer

from instructkit.data.examples import Example, Turn
from instructkit.errors import UserError
from instructkit.files import write_stream, writing
from instructkit.prompts.described import in_words
from instructkit.prompts.protocols import Protocol, load_protocol
from instructkit.prompts.templates import train_templates
from instructkit.world import lessons, sentences
from instructkit.world.captions import (
    ROTATE,
    caption,
    describe,
    describe_film,
    describe_story,
    full,
    reading_caption,
    short,
)
from instructkit.world.documents import PICTURE, Document, with_answers
from instructkit.world.facts import SEEN, SIGNED, TEXT, VERIFIED
from instructkit.world.knowledge import knowledge
from instructkit.world.questions import (
    WORDINGS,
    Question,
    ask,
    ask_about,
    ask_number,
    ask_variously,
    change_of,
    options,
    polite,
    verify,
    verify_of,
)
from instructkit.world.release import SIZES
from instructkit.world.releases.read import TOKENS
from instructkit.world.releases.talked import explanation, judge, sentence
from instructkit.world.remarks import PRINTED, TOLD
from instructkit.world.scene import (
    ACTIONS,
    NUMBERS,
    WORDS,
    Film,
    Scene,
    Thing,
    draw,
    draw_film,
    draw_scene,
)

DOCUMENTS = 2000
"""Documents of the tiny world; the others have as many times more as their training examples."""

WORDED_AS = {
    "caption": "nocaps",
    "open": "vqav2",
    "compositional": "gqa",
    "statement": "vsr",
    "options": "iconqa",
    "spoken": "vizwiz",
    "context": "scienceqa",
    "tokens": "textvqa",
    "remark": "hatefulmemes",
    "dialog": "visdial",
    "film": "msvd_qa",
}
"""The benchmark in whose words a form asks."""

TRAINED_AS: dict[tuple[str, str], str] = {
    **{("caption", fact): "captioning" for fact in ("kind", "colour", "size")},
    **{("caption", fact): "reading_captioning" for fact in SIGNED},
    **{("open", fact): "vqa" for fact in (*SEEN, "shape", "relation", "number", *ACTIONS)},
    **{(form, fact): "knowledge_vqa" for form in ("open", "options") for fact in ("category", "home")},
    **{("open", fact): "reading_vqa" for fact in SIGNED},
}
"""The task in whose training templates a form asks for a fact half of the time: that of the source that does."""

TALKED_AS = {"question": "question_generation", "conversation": "llava", "explanation": "llava"}
"""The task of forms that no benchmark has, and training does: the LLM reads them in its templates alone."""

SHEET = next(asking for asking in TEXT if asking.form == "sheet")
LESSON = next(asking for asking in TEXT if asking.form == "lesson")
OTHERS = tuple(asking for asking in TEXT if asking not in (SHEET, LESSON))
SCENE_FACTS = tuple(fact for fact in SHEET.facts if fact not in ACTIONS)
QUESTIONS = 10
"""Of a sheet about one picture; one about two has half as many."""
SENTENCES = 4
"""Of a document that says what everybody knows."""
LINES = 8
"""Of a document of sentences, at most."""
WHOLE = 5
"""One document in so many that ask one question is told whole: the LLM learns to describe, and to ask."""
CONTEXTS = (
    "Someone looks at a picture and says what is in it.",
    "A class talks about how things look.",
    "Pictures tell a lot about things.",
)


def documents(seed: int, count: int) -> Iterator[Document]:
    """So many documents behind the lessons."""
    return map(partial(document, seed), range(count))


def document(seed: int, number: int) -> Document:
    """One of them: two of other forms, a sheet and a lesson take turns; forms and, within a form, facts do too."""
    turn, place = divmod(number, 4)
    if place == 3:
        return lessons.again(seed, turn)
    asking = SHEET
    if place < 2:
        turn, form = divmod(2 * turn + place, len(OTHERS))
        asking = OTHERS[form]
    fact = asking.facts[turn % len(asking.facts)]
    found = draw(seed, f"text/{asking.form}", turn, "train", partial(WRITERS[asking.form], fact=fact))
    return msgspec.structs.replace(found, stage=len(lessons.LESSONS))


def write(out: Path, seed: int = 0, size: str = "tiny") -> int:
    """Write the lessons and documents of a world of some size, one a line, on all cores; returns their number.

    Raises:
        UserError: no size has that name, or the file cannot be written.
    """
    if size not in SIZES:
        raise UserError(f"no world has the size {size!r}; there are {', '.join(SIZES)}")
    taught, count = (SIZES[size].training(number) for number in (lessons.DOCUMENTS, DOCUMENTS))
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with get_context("spawn").Pool() as pool:
        write_stream(out, pool.imap(partial(_line, seed, taught), range(taught + count), chunksize=300))
    return taught + count


def _line(seed: int, taught: int, number: int) -> str:
    found = lessons.document(seed, number, taught) if number < taught else document(seed, number - taught)
    return msgspec.json.encode(found).decode() + "\n"


def digest_of(description: str, question: str) -> str:
    """Digest of a description with a question about it."""
    return hashlib.sha256(f"{description}\n{question}".encode()).hexdigest()[:32]


def _write_caption(rng: random.Random, fact: str) -> Document:
    """A caption, which tells kinds, colours and a size all at once, or what is printed in place of the size."""
    wording = rng.randrange(ROTATE)
    if fact in SIGNED:
        scene = draw_scene(rng, signs=tuple(rng.sample((rng.choice(WORDS), rng.choice(NUMBERS)), 2)))
        facts, words = [fact, *SIGNED, "kind", "colour"], reading_caption(scene, wording)
    else:
        scene = draw_scene(rng)
        facts, words = ["kind", "colour", "size"], caption(scene, wording)
    return _document(rng, "caption", facts, scene, Example(id="text"), words)


def _write_open(rng: random.Random, fact: str) -> Document:
    question = verify(rng, fact) if fact in VERIFIED and rng.randrange(4) == 0 else ask(rng, fact)
    return _document(rng, "open", [fact], question.scene, _example(question), question.answer)


def _write_question(rng: random.Random, fact: str) -> Document:
    """An answer, and a question that has it."""
    question = ask(rng, fact)
    return _document(rng, "question", [fact], question.scene, _example(question), question.answer)


def _write_conversation(rng: random.Random, fact: str) -> Document:
    """A question that is answered in a sentence."""
    question = ask(rng, fact, "kind" if fact in ("texture", "place") else None)
    return _document(rng, "conversation", [fact], question.scene, _example(question), sentence(question))


def _write_explanation(rng: random.Random, fact: str) -> Document:
    """A question whose answer is explained."""
    question = ask(rng, fact)
    return _document(rng, "explanation", [fact], question.scene, _example(question), explanation(question))


def _write_sentence(rng: random.Random, fact: str) -> Document:
    """Some sentences about a scene, each of what is given first."""
    scene = draw_scene(rng, 1, 6, _signs(rng, fact))
    told_of = [sentences.tell(rng, scene) for _ in range(LINES)]
    while not any(fact in facts for *_, facts in told_of):
        told_of[0] = sentences.tell(rng, scene)
    text, told = with_answers(describe(scene), [(given, said) for given, said, _ in dict.fromkeys(told_of)])
    facts = list(dict.fromkeys(fact for *_, own in told_of for fact in own))
    return Document(text, None if rng.randrange(WHOLE) == 0 else told, "sentence", facts, scene.digests)


def _write_compositional(rng: random.Random, fact: str) -> Document:
    question = verify(rng, fact, "relation") if rng.randrange(3) == 0 else ask(rng, fact, "relation")
    return _document(rng, "compositional", [fact], question.scene, _example(question), question.answer)


def _write_statement(rng: random.Random, fact: str) -> Document:
    question = verify(rng, fact, "relation" if rng.randrange(3) == 0 else None, "{} is {}.")
    example = Example(id="text", statement=question.text)
    return _document(rng, "statement", [fact], question.scene, example, _verdict(rng, "statement", question))


def _write_options(rng: random.Random, fact: str, form: str = "options", context: str | None = None) -> Document:
    """The answer is the right option, half the time behind its letter."""
    question = ask(rng, fact)
    choices = options(rng, question, 4)
    right = choices.index(question.answer)
    answer = rng.choice((question.answer, f"({ascii_lowercase[right]}) {question.answer}"))
    example = Example(id="text", question=question.text, choices=choices, choice=right, context=context)
    return _document(rng, form, [fact], question.scene, example, answer)


def _write_context(rng: random.Random, fact: str) -> Document:
    return _write_options(rng, fact, "context", rng.choice(CONTEXTS))


def _write_spoken(rng: random.Random, fact: str) -> Document:
    question = polite(rng, ask(rng, fact))
    return _document(rng, "spoken", [fact], question.scene, _example(question), question.answer)


def _write_tokens(rng: random.Random, fact: str) -> Document:
    """A question about the things, beside the words that were read."""
    question = ask_number(rng) if fact == "number" else ask(rng, fact)
    signs = (rng.choice(WORDS), rng.choice(NUMBERS))
    assert isinstance(question.scene, Scene)
    strays = rng.sample([text for text in (*WORDS, *NUMBERS) if text not in signs], TOKENS - 2)
    tokens = rng.sample([*signs, *strays], TOKENS)
    example = Example(id="text", question=question.text.lower(), ocr_tokens=tokens)
    return _document(rng, "tokens", [fact], replace(question.scene, signs=signs), example, question.answer)


def _write_remark(rng: random.Random, fact: str) -> Document:
    question = judge(rng, rng.choice([remark for remark in TOLD if remark.fact == fact]))
    example = Example(id="text", context=question.text)
    return _document(rng, "remark", [fact], question.scene, example, _verdict(rng, "remark", question))


def _write_dialog(rng: random.Random, fact: str) -> Document:
    """Up to five rounds, then one that asks for the fact."""
    scene = draw_scene(rng, 3, 6)
    rounds: list[tuple[str, str, str]] = []
    for thing in scene.things:
        alike = sum(other.colour == thing.colour for other in scene.things)
        rounds += [
            (f"which pattern does the {thing.kind} have", thing.texture, "texture"),
            (f"where is the {thing.kind}", f"in the {thing.place}", "place"),
            (f"how many {thing.colour} things are there", str(alike), "number"),
            (f"what size is the {thing.kind}", thing.size, "size"),
            (f"what shape is the thing in the {thing.place}", thing.facts.shape, "shape"),
            (f"what kind of thing is in the {thing.place}", thing.facts.category, "category"),
        ]
    question, answer, _ = last = rng.choice([entry for entry in rounds if entry[2] == fact])
    earlier = rng.sample([entry for entry in dict.fromkeys(rounds) if entry != last], rng.randint(0, 5))
    example = Example(
        id="text",
        question=question,
        references=[caption(scene).rstrip(".").lower()],
        history=[Turn(question=asked, answer=said) for asked, said, _ in earlier],
    )
    return _document(rng, "dialog", [entry[2] for entry in (*earlier, last)], scene, example, answer)


def _write_film(rng: random.Random, fact: str) -> Document:
    """A film told in words, and a question about something that stays as it is."""
    film = _still_film(rng)
    still = _still(film)
    question = ask_about(rng, film.first, rng.choice(still), fact, "place" if fact == "kind" else "kind")
    assert question is not None
    example = Example(id="text", question=question.text.lower())
    return _document(rng, "film", [fact], film, example, question.answer)


def _still_film(rng: random.Random, action: str | None = None) -> Film:
    """A film in which something stays as it is."""
    while not _still(film := draw_film(rng, action)):
        pass
    return film


def _still(film: Film) -> list[Thing]:
    return [thing for thing in film.first.things if thing in film.last.things]


def _write_sheet(rng: random.Random, fact: str) -> Document:
    """Open questions about one scene, or about two pictures and what changes between them; the last for the fact."""
    film = fact in ACTIONS
    count = QUESTIONS // 2 if film else QUESTIONS
    shown: Scene | Film = _still_film(rng, fact) if film else draw_scene(rng, 2, 6, _signs(rng, fact))
    asked: dict[str, Question] = {}
    while len(asked) < count:
        wanted = rng.choice(SCENE_FACTS) if asked else fact  # the first for the fact, which then comes last
        question = _about_film(rng, shown, wanted) if isinstance(shown, Film) else _about_scene(rng, shown, wanted)
        if question is not None:
            asked.setdefault(question.text, question)
    first, *others = asked.values()
    lines = [
        _in_words_of(rng, "open", question.fact, _example(question), question.answer)[:2]
        for question in (*others, first)
    ]
    description = tell(shown, "sheet")
    head = "Questions about two pictures." if film else PICTURE
    facts = list(dict.fromkeys(question.fact for question in asked.values()))
    text, told = with_answers(in_words([head], description), lines)
    return Document(text, told, "sheet", facts, shown.digests, digest_of(description, first.text))


def _signs(rng: random.Random, fact: str) -> tuple[str, ...]:
    """What is printed, half of the time or if the fact is that: a word or number, and another of either sort."""
    if fact not in SIGNED and rng.randrange(2):
        return ()
    first = rng.choice(NUMBERS if fact == "figure" else WORDS)
    return tuple(rng.sample((first, rng.choice(rng.choice((WORDS, NUMBERS)))), 2))


def _about_scene(rng: random.Random, scene: Scene, fact: str) -> Question | None:
    """A question; every fifth asks whether something is so.

    One in four of those for a kind has colour and kind for its answer.
    """
    if fact in VERIFIED and rng.randrange(5) == 0:
        return verify_of(rng, scene, fact, rng.choice(WORDINGS))
    question = ask_variously(rng, scene, fact)
    if question is None or question.fact != "kind" or rng.randrange(4):
        return question
    return replace(question, answer=short(scene.of(question.answer)))


def _about_film(rng: random.Random, film: Film, fact: str) -> Question | None:
    """What changes, or something that stays as it is."""
    if fact in ACTIONS:
        return change_of(rng, film)
    wanted = rng.choice(("colour", "size", "texture", "place"))
    return ask_about(rng, film.first, rng.choice(_still(film)), wanted, "kind")


def _write_knowledge(rng: random.Random, fact: str) -> Document:
    """Sentences, or half of the time, where remarks are about the fact, which of them are unkind beside what."""
    remarks = [remark for remark in (*PRINTED, *TOLD) if remark.fact == fact]
    if not remarks or rng.randrange(2):
        known = knowledge(fact)
        return Document(" ".join(rng.sample(known, min(SENTENCES, len(known)))), None, "knowledge", [fact])
    lines = []
    for _ in range(SENTENCES):
        question = judge(rng, rng.choice(remarks))
        assert isinstance(question.scene, Scene)
        asked = _protocol("remark").prompt(Example(id="text", context=question.text)).instruction
        lines.append((f"{_alone(question.scene.things[0], fact)}. {asked}", f"{_verdict(rng, 'remark', question)}."))
    text, told = with_answers("What people feel.", lines)
    return Document(text, told, "knowledge", [fact])


def _alone(thing: Thing, fact: str) -> str:
    """A thing in words, with its place if that is the fact."""
    words = full(thing)
    return f"{thing.place} {words}" if fact == "place" else words


WRITERS: dict[str, Callable[..., Document]] = {
    "caption": _write_caption,
    "open": _write_open,
    "question": _write_question,
    "conversation": _write_conversation,
    "explanation": _write_explanation,
    "sentence": _write_sentence,
    "compositional": _write_compositional,
    "statement": _write_statement,
    "options": _write_options,
    "spoken": _write_spoken,
    "context": _write_context,
    "tokens": _write_tokens,
    "remark": _write_remark,
    "dialog": _write_dialog,
    "film": _write_film,
    "knowledge": _write_knowledge,
    "sheet": _write_sheet,
}
"""What writes a document of each form that asks for a given fact."""


def _document(
    rng: random.Random, form: str, facts: list[str], scene: Scene | Film, example: Example, answer: str
) -> Document:
    """The description, the question in the words of the form's benchmark or of training, and the answer."""
    description = tell(scene, form)
    instruction, answer, words = _in_words_of(rng, form, facts[0], example, answer)
    text, told = with_answers(description, [(instruction, answer)])
    asked = digest_of(description, question_of(example))
    whole = form in ("caption", "question") or rng.randrange(WHOLE) == 0
    return Document(text, None if whole else told, form, list(dict.fromkeys(facts)), scene.digests, asked, words)


def _in_words_of(rng: random.Random, form: str, fact: str, example: Example, answer: str) -> tuple[str, str, str]:
    """Instruction and answer, and in whose words: the benchmark's or, where training asks so, half the time its."""
    task = TALKED_AS.get(form) or TRAINED_AS.get((form, fact), "")
    if task and (form in TALKED_AS or rng.randrange(2)):
        return *_as_trained(rng, task, example, answer), task
    return _protocol(form).prompt(example).instruction, answer, WORDED_AS[form]


def in_open_words(rng: random.Random, question: Question) -> str:
    """An open question as an instruction, in VQAv2's words or in those of a training template."""
    return _in_words_of(rng, "open", question.fact, _example(question), question.answer)[0]


def _as_trained(rng: random.Random, task: str, example: Example, answer: str) -> tuple[str, str]:
    """Instruction and answer in the words of a training template."""
    templates = train_templates(task)
    told = msgspec.structs.replace(example, answers=[answer], references=[answer])
    prompt = templates.render(told, wording=rng.choice(templates.fitting(told)))
    return prompt.instruction, str(prompt.target)


def tell(scene: Scene | Film, form: str) -> str:
    """A scene in words; a film as one, or in another form as the two pictures that it begins and ends with."""
    if isinstance(scene, Scene):
        return describe(scene)
    return describe_film(scene) if form == "film" else describe_story(scene)


def question_of(example: Example) -> str:
    """What an example asks, without the words around it."""
    return example.question or example.statement or example.context or ""


def _example(question: Question) -> Example:
    return Example(id="text", question=question.text)


def _verdict(rng: random.Random, form: str, question: Question) -> str:
    """Yes or no in one of the words that the benchmark takes for it."""
    words = _protocol(form).options(Example(id="text"))[question.answer == "yes"]
    return rng.choice(words)


@cache
def _protocol(form: str) -> Protocol:
    return load_protocol(WORDED_AS[form])


def _main(
    out: Annotated[Path, typer.Option(help="The file.")],
    seed: Annotated[int, typer.Option(help="Decides all that is drawn.")] = 0,
    size: Annotated[str, typer.Option(help="tiny, small or full.")] = "tiny",
) -> None:
    """Write language about the world for the LLM's pre-training, one JSON object a line."""
    try:
        print(f"{out}: {write(out, seed, size):,} documents")
    except UserError as error:
        print(f"instructkit: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(_main)
