"""Pairs of picture and caption, which a pre-training reads: one caption of a picture a step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random

import numpy as np
import torch

from instructkit.config.settings import RunConfig
from instructkit.data.examples import CAPTIONED, Example
from instructkit.data.mixture import Integers, Mixture, image_numbers
from instructkit.errors import UserError
from instructkit.models.batches import Captions, Picture
from instructkit.models.blip import Blip
from instructkit.models.blip2 import Blip2Pretraining
from instructkit.prompts.jinja import plain_caption
from instructkit.runs.run import Run
from instructkit.training.data import Batch, MixedData, Part, groups_of
from instructkit.training.datasets import open_parts
from instructkit.training.features import FeatureCache, open_cache


class PairData(MixedData):
    """Batches of pictures, each with one of its captions.

    The mixture draws pictures: one comes once an epoch of its dataset, with a caption that the seed and the epoch draw.
    A rank's pairs stand together in the step, the first rank's first. Beside the inputs of `Blip2Pretraining.pretrain`
    a batch has `image_ids`, equal where pairs show the same file, and `chances`, two numbers from 0 to 1 a pair that
    its negatives follow from; both follow from the pair's place in the run alone. `epochs` says how often the mixture's
    pictures were passed when the step begins, `[1]`. Where texts have a prompt, `given` is the number of tokens before
    the caption, `[CLS]` among them, `[pairs]`.

    Args:
        parts: the datasets; their examples are captions.
        captions: the tokeniser.
        image_size: pixels of a side.
        overrides: factors on the datasets' weights.
        groups: pairs a micro-batch and rank.
        seed: of the run.
        augment: random crops and flips.
        rank: of this process.
        world: number of processes.
        cache: kept features of images.
        prompt: what captions come behind, blank for nothing; None where nothing is said of prompts.
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
        cache: FeatureCache | None = None,
        prompt: str | None = None,
    ) -> None:
        self.captions, self.image_size, self.prompt = captions, image_size, prompt
        self._pictures = [Pictures(part) for part in parts]
        mixture = _mixture(self._pictures, overrides, seed)
        self._epoch = sum(size for name, size in mixture.sizes.items() if mixture.probabilities[name])
        super().__init__(parts, mixture, groups=groups, seed=seed, augment=augment, rank=rank, world=world, cache=cache)

    @classmethod
    def for_run(
        cls, run: Run[RunConfig], parts: Sequence[Part], model: Blip2Pretraining | Blip, captions: Captions
    ) -> PairData:
        """The batches that a run trains on.

        Raises:
            UserError: a batch cannot be split over the ranks, a dataset holds no captions, or features cannot be
                cached.
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
            cache=None if isinstance(model, Blip) else open_cache(config, model),
            prompt=(config.data.prompt or "") if isinstance(model, Blip) else None,
        )

    def batch(self, positions: Sequence[int]) -> Batch:
        """The batch of some positions of the mixture."""
        examples: list[str] = []
        datasets: list[str] = []
        texts: list[str] = []
        looks: list[tuple[Picture, str]] = []
        for position in positions:
            draw = self.mixture[position]
            part, (number,) = self.parts[draw.dataset], draw.rows.tolist()
            drawn = Random(f"{self.seed}/{draw.epoch}/caption/{part.name}/{number}")
            example = self._pictures[draw.dataset].caption(number, drawn)
            picture = Picture(part.root / example.images[0])
            examples.append(example.id)
            datasets.append(part.name)
            texts.append(" ".join([*(self.prompt or "").split(), plain_caption(drawn.choice(example.references))]))
            looks.append((picture, self.chance(picture, part.root, draw.epoch)))
        ids, cut = self.captions.encode(texts)
        chances = [Random(f"{self.seed}/negatives/{position}") for position in positions]
        seen, unkept = self.pixels(looks, self.image_size)
        inputs = {
            **seen,
            **self.captions.padded(ids),
            "image_ids": torch.tensor([_number(picture) for picture, _ in looks]),
            "chances": torch.tensor([[each.random(), each.random()] for each in chances], dtype=torch.float64),
            "epochs": torch.tensor([self._epochs(positions[0])], dtype=torch.float64),
        }
        if self.prompt is not None:
            inputs["given"] = torch.full((len(positions),), self._given())
        return Batch(inputs, examples, datasets, [("qformer",) if short else () for short in cut], unkept)

    def _given(self) -> int:
        """Tokens of a row before its caption."""
        (bare,), (prompt,) = (self.captions.encode([text])[0] for text in ("", self.prompt or ""))
        return 1 + len(prompt) - len(bare)

    def _epochs(self, position: int) -> float:
        """Passes over the pictures before the step in which a position stands."""
        step = position // (self.groups * self.world)
        return step * self.groups * self.world / self._epoch


class Pictures:
    """The pictures of a dataset, each with the examples that hold its captions.

    Raises:
        UserError: the dataset's examples are no captions.
    """

    def __init__(self, part: Part) -> None:
        if part.task not in CAPTIONED:
            raise UserError(
                f"data.train: {part.name} holds no captions, its task is {part.task}; a pre-training reads "
                "pictures with captions, such as coco_caption, or your own as web_capfilt reads them"
            )
        self.name, self._examples = part.name, part.examples
        numbers = image_numbers(part.examples.rows)
        self._rows: Integers = np.argsort(numbers, kind="stable")
        self._counts: Integers = np.bincount(numbers) if len(numbers) else np.zeros(0, np.int64)
        self._ends: Integers = self._counts.cumsum()

    def __len__(self) -> int:
        return len(self._counts)

    def caption(self, number: int, drawn: Random) -> Example:
        """One of the examples of a picture.

        Raises:
            UserError: it shows other than one picture.
        """
        row = self._rows[self._ends[number] - 1 - drawn.randrange(int(self._counts[number]))]
        (example,) = self._examples.take([int(row)])
        if example.video is not None or len(example.images) != 1:
            shown = "a video" if example.video is not None else f"{len(example.images)} pictures"
            raise UserError(f"{example.id}: shows {shown}; a pre-training reads one picture with its caption")
        return example


def pair_mixture(config: RunConfig) -> Mixture:
    """The mixture of a run's pictures, its datasets opened."""
    return _mixture(
        [Pictures(part) for part in open_parts(config, config.data.train)], config.data.weights, config.seed
    )


def _mixture(pictures: Sequence[Pictures], overrides: dict[str, float] | None, seed: int) -> Mixture:
    return Mixture({each.name: np.arange(len(each)) for each in pictures}, overrides, 1, seed)


def _number(picture: Picture) -> int:
    """A number that stands for a file."""
    digest = hashlib.blake2b(str(picture.path.absolute()).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
