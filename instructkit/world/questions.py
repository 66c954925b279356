"""Questions about scenes and films: the answer is drawn first, uniformly, then a scene that has it.

So the wording of a question says nothing about its answer. `Question.values` are the answers that it leaves open.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from instructkit.world.facts import KNOWN, SIGNED, VALUES, told, value
from instructkit.world.scene import (
    COLOURS,
    NUMBERS,
    OPPOSITE,
    RELATIONS,
    TEXTURES,
    WORDS,
    Film,
    Scene,
    Thing,
    article_of,
    colours_of,
    draw_scene,
    film_of,
    with_fact,
)

OPEN: dict[str, tuple[str, ...]] = {
    "kind": ("What is {}?", "What do you call {}?"),
    "colour": ("What color is {}?", "Which color does {} have?"),
    "size": ("Is {} big or small?", "What size is {}?"),
    "texture": ("What pattern does {} have?", "Is {} plain, striped, dotted or checked?"),
    "shape": ("What shape is {}?", "What is the outline of {} like?"),
    "place": ("Where is {}?", "In which part of the picture is {}?"),
    "category": ("What kind of thing is {}?", "What group does {} belong to?"),
    "home": ("Where does {} belong?", "Where would you look for {} in real life?"),
}
CHANGES = {
    "appears": ("What appears?", "What comes into the picture?"),
    "leaves": ("What leaves?", "What goes out of the picture?"),
    "turns": ("What color does the {} turn?", "Which color does the {} have in the end?"),
    "moves": ("Where does the {} move?", "In which direction does the {} go?"),
}
NUMBER = ("How many {} things are there?", "How many things are {}?")
SIGN = ("Which {} is printed in the picture?", "What {} can you read?")
ON_SIGN = "What {} is on the {} sign?"
CLOSED = "Is {} {}?"
STATED = 'True or false? "{} is {}."'
WORDINGS = (CLOSED, STATED)
"""Of what is so or not, in the LLM's text."""
POLITE = ("Hi, can you tell me, {} Thank you.", "I cannot see it myself, {}", "Please help me, {} Thanks.")
NEGATIVE = "unanswerable"
_SORTS = {"word": "word", "figure": "number"}
"""What a question calls a sign that has each of these facts."""


@dataclass(frozen=True)
class Question:
    """A question with its answer and the scene that has it.

    Attributes:
        text: the question, or a statement.
        answer: the right answer.
        fact: what is asked for, a key of `facts.VALUES`.
        values: the answers that the wording leaves open, all as likely.
        told: whether captions of the scene tell the answer.
        scene: the picture or film that is asked about.
    """

    text: str
    answer: str
    fact: str
    values: tuple[str, ...]
    told: bool
    scene: Scene | Film

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of the scenes that are shown."""
        return self.scene.digests


@dataclass(frozen=True)
class Target:
    """A thing of a scene and words that mean it alone."""

    scene: Scene
    thing: Thing
    words: str
    kind_named: bool = False
    colour_named: bool = False


def ask(rng: random.Random, fact: str, by: str | None = None) -> Question:
    """An open question for a fact.

    Args:
        rng: what it is drawn from.
        fact: what is asked for.
        by: what the thing is called by: `kind`, `colour`, `texture`, `place` or `relation`; None for any that does not
            give the answer away.
    """
    if fact in CHANGES:
        return ask_change(rng, fact)
    if fact == "relation":
        return ask_relation(rng, "Is {} {} {}?")
    if fact == "number":
        return ask_number(rng)
    if fact in SIGNED:
        return ask_sign(rng, fact)
    answer = rng.choice(VALUES[fact])
    target = find(rng, fact, answer, by or rng.choice(_references(fact)))
    return _about(target, fact, rng.choice(OPEN[fact]).format(target.words), answer)


def ask_about(rng: random.Random, scene: Scene, thing: Thing, fact: str, by: str | None = None) -> Question | None:
    """An open question for what is to be seen or known of one thing of a scene; None if `by` does not mean it alone."""
    target = refer(rng, scene, thing, by or rng.choice(_references(fact)))
    if target is None:
        return None
    return _about(target, fact, rng.choice(OPEN[fact]).format(target.words), value(thing, fact))


def ask_of(rng: random.Random, scene: Scene, fact: str) -> Question | None:
    """A question for a fact of a scene that is there already; None if what was drawn cannot be asked of it."""
    if fact in SIGNED:
        return _about_sign(rng, scene, fact)
    if fact == "number":
        return _about_number(rng, scene)
    if fact == "relation":
        return relate(rng, scene)
    return ask_about(rng, scene, rng.choice(scene.things), fact, rng.choice((*_references(fact), "relation")))


def ask_variously(rng: random.Random, scene: Scene, fact: str) -> Question | None:
    """As `ask_of`, in all the ways of the LLM's text: also as a statement, or for the sign on one side."""
    if fact == "relation":
        return relate(rng, scene, rng.choice(WORDINGS))
    if fact in SIGNED and rng.randrange(2):
        return ask_side(rng, scene, fact)
    return ask_of(rng, scene, fact)


def relate(rng: random.Random, scene: Scene, wording: str = CLOSED) -> Question | None:
    """Whether one thing stands in a relation to another; None if it stands neither in this nor in the opposite one."""
    one, other = rng.sample(scene.things, 2)
    relation = rng.choice(RELATIONS)
    stands = one.stands(relation, other)
    if not stands and not one.stands(OPPOSITE[relation], other):
        return None
    text, answers = _closed(wording, f"the {one.kind}", f"{relation} the {other.kind}")
    return Question(text, answers[not stands], "relation", answers, False, scene)


def _about_number(rng: random.Random, scene: Scene) -> Question | None:
    fact = rng.choice(("colour", "texture"))
    named = rng.choice(VALUES[fact])
    count = str(sum(value(thing, fact) == named for thing in scene.things))
    if count not in VALUES["number"]:
        return None
    return Question(rng.choice(NUMBER).format(named), count, "number", VALUES["number"], False, scene)


def ask_side(rng: random.Random, scene: Scene, fact: str) -> Question | None:
    """What is on one of two signs; None if none of them has a word, or a number."""
    sides = [(side, sign) for side, sign in zip(("left", "right"), scene.signs, strict=False) if _has(sign, fact)]
    if len(scene.signs) != 2 or not sides:
        return None
    side, sign = rng.choice(sides)
    return Question(ON_SIGN.format(_SORTS[fact], side), sign.lower(), fact, VALUES[fact], False, scene)


def _about_sign(rng: random.Random, scene: Scene, fact: str, wordings: Sequence[str] = SIGN) -> Question | None:
    fitting = [sign for sign in scene.signs if _has(sign, fact)]
    if len(fitting) != 1:
        return None
    text = rng.choice(wordings).format(_SORTS[fact])
    return Question(text, fitting[0].lower(), fact, VALUES[fact], False, scene)


def _has(sign: str, fact: str) -> bool:
    return sign.isdigit() == (fact == "figure")


def verify(rng: random.Random, fact: str, by: str | None = None, wording: str = CLOSED) -> Question:
    """A yes/no question, or a statement, about a fact; of wrong values each is as likely."""
    answer = rng.choice(("yes", "no"))
    named = rng.choice(VALUES[fact])
    by = by or rng.choice(_references(fact))
    if answer == "yes":
        target = find(rng, fact, named, by)
    else:
        target = find(rng, fact, rng.choice([other for other in VALUES[fact] if other != named]), by)
    return _verdict(target, fact, named, wording)


def verify_of(rng: random.Random, scene: Scene, fact: str, wording: str = CLOSED) -> Question | None:
    """A yes/no question about a scene that is there already; None if what was drawn cannot be asked of it."""
    thing = rng.choice(scene.things)
    target = refer(rng, scene, thing, rng.choice((*_references(fact), "relation")))
    if target is None:
        return None
    true = value(thing, fact)
    named = true if rng.randrange(2) else rng.choice([other for other in VALUES[fact] if other != true])
    return _verdict(target, fact, named, wording)


def verify_as(
    rng: random.Random, scene: Scene, thing: Thing, fact: str, by: str, wording: str = CLOSED
) -> Question | None:
    """A yes/no question about a thing; what is wrong is true of another one. None if `by` does not mean it alone."""
    target = refer(rng, scene, thing, by)
    if target is None:
        return None
    true = value(thing, fact)
    wrong = [found for found in (value(other, fact) for other in scene.things) if found != true]
    return _verdict(target, fact, rng.choice(wrong) if wrong and rng.randrange(2) else true, wording)


def _verdict(target: Target, fact: str, named: str, wording: str) -> Question:
    article = {"kind": f"{article_of(named)} ", "category": "a kind of ", "place": "in the "}.get(fact, "")
    text, answers = _closed(wording, target.words, article + named)
    told_ = (target.thing.kind, fact) in told(target.scene)
    return Question(text, answers[value(target.thing, fact) != named], fact, answers, told_, target.scene)


def _closed(wording: str, words: str, said: str) -> tuple[str, tuple[str, str]]:
    """What is asked, and the answers if it is so and if not."""
    text = wording.format(words, said).replace('"the', '"The')  # a sentence of its own
    return text[0].upper() + text[1:], ("true", "false") if wording == STATED else ("yes", "no")


def ask_relation(rng: random.Random, wording: str) -> Question:
    """Whether one thing stands in a relation to another; if not, it stands in the opposite one."""
    answer, relation = rng.choice(("yes", "no")), rng.choice(RELATIONS)
    while True:
        scene = draw_scene(rng, 2, 5)
        one, other = rng.sample(scene.things, 2)
        if one.stands(relation if answer == "yes" else OPPOSITE[relation], other):
            text = wording.format(f"the {one.kind}", relation, f"the {other.kind}")
            return Question(text[0].upper() + text[1:], answer, "relation", ("yes", "no"), False, scene)


def ask_number(rng: random.Random) -> Question:
    """How many things have a colour or a pattern, one to four of four to six."""
    count = rng.randint(1, 4)
    fact = rng.choice(("colour", "texture"))
    named = rng.choice(COLOURS if fact == "colour" else TEXTURES)
    while True:
        scene = draw_scene(rng, 4, 6)
        others = [other for other in VALUES[fact] if other != named]
        things = [
            thing.having(fact, named if place < count else rng.choice(others))
            for place, thing in enumerate(scene.things)
        ]
        if all(thing.colour in colours_of(thing.kind) for thing in things):
            text = rng.choice(NUMBER).format(named)
            return Question(text, str(count), "number", VALUES["number"], False, replace(scene, things=tuple(things)))


def ask_sign(rng: random.Random, fact: str, wordings: Sequence[str] = ()) -> Question:
    """Which word or number is printed; the other sign has a number or word."""
    word, number = rng.choice(WORDS), rng.choice(NUMBERS)
    signs = (word, number) if rng.random() < 0.5 else (number, word)
    question = _about_sign(rng, draw_scene(rng, 1, 4, signs), fact, wordings or SIGN)
    assert question is not None
    return question


def ask_change(rng: random.Random, action: str, answer: str | None = None) -> Question:
    """What a film or a picture story changes; `answer` is drawn where it is not given."""
    return change_of(rng, film_of(rng, action, answer or rng.choice(VALUES[action])))


def change_of(rng: random.Random, film: Film) -> Question:
    """What a film that is there already changes."""
    kind, action = film.thing.kind, film.action
    answer = kind if action in ("appears", "leaves") else film.value
    values = tuple(colours_of(kind)) if action == "turns" else VALUES[action]
    return Question(rng.choice(CHANGES[action]).format(kind), answer, action, values, False, film)


def polite(rng: random.Random, question: Question) -> Question:
    """The question as one who does not see asks it; as often as each other answer the picture is spoiled."""
    text = rng.choice(POLITE).format(question.text[0].lower() + question.text[1:])
    values = (*question.values, NEGATIVE)
    if rng.randrange(len(values)) == 0 and isinstance(question.scene, Scene):
        spoiled = replace(question.scene, spoiled=True)
        return replace(question, text=text, answer=NEGATIVE, values=values, scene=spoiled)
    return replace(question, text=text, values=values)


def options(rng: random.Random, question: Question, count: int) -> list[str]:
    """The answer among other open values, in an order of its own, so that each place is as likely."""
    others = [other for other in question.values if other != question.answer]
    chosen = [question.answer, *rng.sample(others, min(count, len(question.values)) - 1)]
    rng.shuffle(chosen)
    return chosen


def find(rng: random.Random, fact: str, answer: str, by: str) -> Target:
    """A scene with a thing of which the answer is true, meant by what `by` says; kind and colour half the time told."""
    wants_told = rng.random() < 0.5
    for _ in range(100_000):
        scene, thing = with_fact(rng, fact, answer)
        if fact in ("kind", "colour") and ((thing.kind, fact) in told(scene)) != wants_told:
            continue
        if (target := refer(rng, scene, thing, by)) is not None:
            return target
    raise AssertionError(f"no scene has {fact} {answer} by {by}")


def refer(rng: random.Random, scene: Scene, thing: Thing, by: str) -> Target | None:
    """Words that mean a thing of a scene alone; None if there are none of this sort."""
    if by == "kind":
        return Target(scene, thing, f"the {thing.kind}", kind_named=True)
    if by == "place":
        return Target(scene, thing, f"the thing in the {thing.place}")
    if by == "relation":
        pairs = [
            (relation, other)
            for relation in RELATIONS
            for other in scene.things
            if [third for third in scene.things if third.stands(relation, other)] == [thing]
        ]
        if not pairs:
            return None
        relation, other = rng.choice(pairs)
        return Target(scene, thing, f"the thing {relation} the {other.kind}")
    word = value(thing, by)
    if sum(value(other, by) == word for other in scene.things) > 1:
        return None
    return Target(scene, thing, f"the {word} thing", colour_named=by == "colour")


def _about(target: Target, fact: str, text: str, answer: str) -> Question:
    values = VALUES[fact]
    if fact == "colour" and target.kind_named:
        values = tuple(colours_of(target.thing.kind))
    elif fact == "kind" and target.colour_named:
        values = tuple(kind for kind in values if target.thing.colour in colours_of(kind))
    told_ = (target.thing.kind, fact) in told(target.scene)
    return Question(text, answer, fact, values, told_, target.scene)


def _references(fact: str) -> tuple[str, ...]:
    """What a thing may be called by in a question for a fact without giving the answer away."""
    if fact in KNOWN:
        return ("place", "texture")
    if fact == "kind":
        return ("colour", "place", "texture")
    return tuple(by for by in ("kind", "place", "texture") if by != fact)
