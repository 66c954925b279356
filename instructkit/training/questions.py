"""Questions about pictures with all their answers, which BLIP is finetuned on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from instructkit.config.settings import RunConfig
from instructkit.data.examples import Example
from instructkit.data.mixture import Mixture, image_numbers
from instructkit.errors import UserError
from instructkit.models.batches import Captions, Picture
from instructkit.models.blip import Blip
from instructkit.prompts.jinja import plain_question
from instructkit.runs.run import Run
from instructkit.training.data import Batch, MixedData, Part, groups_of

LONE = 0.2
"""Weight of the answer of a question that has but one, such as Visual Genome's (LAVIS)."""


class QuestionData(MixedData):
    """Batches of questions, each with its picture and all its answers.

    An answer weighs what share of the annotators gave it. A batch has the inputs of `Blip.answer` and `weights`, of
    each answer, `[answers]`.

    Args:
        parts: the datasets.
        captions: the tokeniser.
        image_size: pixels of a side.
        overrides: factors on the datasets' weights.
        groups: questions a micro-batch and rank.
        seed: of the run.
        augment: random crops and flips.
        rank: of this process.
        world: number of processes.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        captions: Captions,
        image_size: int,
        *,
        overrides: dict[str, float] | None = None,
        groups: int,
        seed: int = 0,
        augment: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.captions, self.image_size = captions, image_size
        images = {part.name: image_numbers(part.examples.rows) for part in parts}
        mixture = Mixture(images, overrides, 1, seed)
        super().__init__(parts, mixture, groups=groups, seed=seed, augment=augment, rank=rank, world=world)

    @classmethod
    def for_run(cls, run: Run[RunConfig], parts: Sequence[Part], model: Blip, captions: Captions) -> QuestionData:
        """The batches that a run trains on.

        Raises:
            UserError: a batch cannot be split over the ranks.
        """
        config = run.config
        return cls(
            parts,
            captions,
            model.config.vision_config.image_size,
            overrides=config.data.weights,
            groups=groups_of(config.training, run.world),
            seed=config.seed,
            augment=config.data.augment,
            rank=run.rank,
            world=run.world,
        )

    def batch(self, positions: Sequence[int]) -> Batch:
        """The batch of some positions of the mixture.

        Raises:
            UserError: an example is no question about one picture with answers.
        """
        examples: list[Example] = []
        datasets: list[str] = []
        looks: list[tuple[Picture, str]] = []
        for position in positions:
            draw = self.mixture[position]
            part = self.parts[draw.dataset]
            (example,) = part.examples.take(draw.rows)
            _check(example)
            picture = Picture(part.root / example.images[0])
            examples.append(example)
            datasets.append(part.name)
            looks.append((picture, self.chance(picture, part.root, draw.epoch)))
        answers = [
            (answer, weight, row)
            for row, example in enumerate(examples)
            for answer, weight in weighted(example.answers)
        ]
        ids, cut = self.captions.encode([plain_question(example.question or "") for example in examples])
        told, short = self.captions.encode([answer for answer, _, _ in answers])
        for (_, _, row), lost in zip(answers, short, strict=True):
            cut[row] = cut[row] or lost
        seen, _ = self.pixels(looks, self.image_size)
        rows = self.captions.padded(told)
        inputs = {
            **seen,
            **self.captions.padded(ids),
            "answer_ids": rows["input_ids"],
            "answer_mask": rows["attention_mask"],
            "answered": torch.tensor([row for _, _, row in answers]),
            "weights": torch.tensor([weight for _, weight, _ in answers]),
        }
        lost_any = [("qformer",) if lost else () for lost in cut]
        return Batch(inputs, [example.id for example in examples], datasets, lost_any)


def weighted(answers: Sequence[str]) -> list[tuple[str, float]]:
    """The distinct answers of a question, in their order, each with its share; blank ones do not count."""
    counts = Counter(answer.strip() for answer in answers if answer.strip())
    if counts.total() == 1:
        return [(answer, LONE) for answer in counts]
    return [(answer, count / counts.total()) for answer, count in counts.items()]


def _check(example: Example) -> None:
    if example.video is not None or len(example.images) != 1:
        shown = "a video" if example.video is not None else f"{len(example.images)} pictures"
        raise UserError(f"{example.id}: shows {shown}; BLIP is finetuned on questions about one picture")
    if example.question is None or not any(map(str.strip, example.answers)):
        missing = "question" if example.question is None else "answer"
        raise UserError(f"{example.id}: has no {missing}; pairs.losses=[vqa] trains on questions with answers")
