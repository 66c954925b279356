"""One raw release in the making: its files, its pictures and films, and a ledger of the facts behind its questions."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from instructkit.conversion.miniatures import MINIATURE
from instructkit.world.draw import draw_frames, draw_picture, draw_strip, save_film, save_picture
from instructkit.world.flaws import FLAWS, SHARE, Flaw
from instructkit.world.questions import NEGATIVE, Question
from instructkit.world.scene import Digested, Film, Scene, Side, draw

PLANTED = "planted.json"
"""Which bad records a release has, by split, with what is wrong with each and why it must be rejected."""

T = TypeVar("T", bound=Digested)


class Size(NamedTuple):
    """How large a world is.

    Attributes:
        factor: on the numbers of training examples.
        benchmark: examples of each split that a benchmark scores.
        other: examples of each other split.
    """

    factor: float
    benchmark: int
    other: int

    def training(self, tiny: int) -> int:
        """Number of training records of a release that has so many in the tiny world; two at least."""
        return max(2, round(tiny * self.factor))


SIZES = {"tiny": Size(1, 12, 4), "small": Size(6, 100, 8), "full": Size(40, 500, 16)}


class Release:
    """A release below `root`; pictures and films are drawn when `finish` is called.

    Args:
        root: its folder.
        name: of its source.
        seed: of the world.
        size: of the world.
    """

    def __init__(self, root: Path, name: str, seed: int, size: Size) -> None:
        self.root, self.name, self.seed, self.size = root, name, seed, size
        self.pictures: dict[str, Scene | Film] = {}
        self.films: dict[str, Film] = {}
        self.ledger: dict[str, dict[str, str]] = {}
        self.planted: list[tuple[str, Flaw]] = []
        self.spoilt: dict[str, str] = {}
        self.write_json(MINIATURE, {})

    def draw(self, stream: str, number: int, side: Side, make: Callable[[random.Random], T]) -> T:
        """The `number`-th scene, film or question of one of the release's streams."""
        return draw(self.seed, f"{self.name}/{stream}", number, side, make)

    def rng(self, stream: str, number: int) -> random.Random:
        """Chance for what is no scene, such as annotators' errors."""
        return random.Random(f"{self.seed}/{self.name}/{stream}/{number}/else")

    def picture(self, path: str, scene: Scene | Film) -> None:
        """Have a picture drawn; of a film its beginning and end side by side."""
        self.pictures[path] = scene

    def spoil(self, path: str, scene: Scene | Film, how: str) -> None:
        """Have a picture planted that cannot be used: `missing`, or `broken`, as of a download that broke off."""
        self.picture(path, scene)
        self.spoilt[path] = how

    def film(self, path: str, film: Film) -> None:
        """Have a film drawn."""
        self.films[path] = film

    def note(self, example: str, question: Question, form: str) -> None:
        """Enter into the ledger what an example asks for; the conversion adds it to the example's `meta`.

        Args:
            example: its id without the source.
            question: what it asks.
            form: in which form.
        """
        self.ledger[f"{self.name}/{example}"] = {
            "fact": question.fact,
            "form": form,
            "told": "told" if question.told else "untold",
            "among": str(len(question.values)),
        }

    def plant(self, split: str, count: int) -> Iterator[Flaw]:
        """What is to be wrong with further records of a split, one for each hundred good ones; kept in `planted`."""
        for number in range(count // SHARE):
            flaw = FLAWS[self.name][number % len(FLAWS[self.name])]
            self.planted.append((split, flaw))
            yield flaw

    def flawed(self, split: str, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Bad copies of some of a split's records, which belong beside them."""
        return [{**records[number], **flaw.change} for number, flaw in enumerate(self.plant(split, len(records)))]

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file."""
        self._write(name, json.dumps(content))

    def write_lines(self, name: str, records: Sequence[Any]) -> None:
        """Write a JSON-lines file."""
        self._write(name, "".join(json.dumps(record) + "\n" for record in records))

    def write_text(self, name: str, lines: Sequence[str]) -> None:
        """Write a text file."""
        self._write(name, "".join(f"{line}\n" for line in lines))

    def finish(self, pictures: bool = True) -> None:
        """Write the ledger, which marks the release as a miniature, and what was planted; draw pictures and films."""
        self.write_json(MINIATURE, self.ledger)
        if self.planted:
            self.write_json(PLANTED, [{"split": split, **flaw._asdict()} for split, flaw in self.planted])
        if not pictures:
            return
        for name, scene in self.pictures.items():
            image = draw_strip(scene) if isinstance(scene, Film) else draw_picture(scene)
            save_picture(self.root / name, image)
        for name, film in self.films.items():
            save_film(self.root / name, draw_frames(film))
        for name, how in self.spoilt.items():
            path = self.root / name
            if how == "missing":
                path.unlink()
            else:
                os.truncate(path, path.stat().st_size // 2)

    def _write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def side_of(split: str) -> Side:
    """Training splits show training scenes, all others test scenes."""
    return "train" if split == "train" or split.endswith("-train") or split.endswith("_train") else "test"


def ten_answers(rng: random.Random, question: Question, count: int = 10) -> list[str]:
    """Answers of annotators: most agree, at most three in ten err, leave a blank or cannot answer."""
    answers = [question.answer] * count
    for place in rng.sample(range(count), rng.randint(0, 3 * count // 10)):
        answers[place] = rng.choice([*question.values, "", NEGATIVE])
    return answers
