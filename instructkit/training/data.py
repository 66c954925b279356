"""What a training step reads: positions of the mixture become one batch, whoever asks and in whatever order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from instructkit.batches import Picture, Texts, decode, pictures, share_images
from instructkit.examples import Examples
from instructkit.mixture import Mixture, image_numbers
from instructkit.prompts import Prompt, train_templates
from instructkit.training.features import FeatureCache


class Batch(NamedTuple):
    """One micro-batch.

    Attributes:
        inputs: keyword arguments of `InstructBlip.answer_loss`.
        examples: id of each row's example.
        datasets: name of each row's dataset.
        unkept: files that the features of `pixel_values` are to be kept in, where there is a cache.
    """

    inputs: dict[str, Tensor]
    examples: list[str]
    datasets: list[str]
    unkept: Sequence[Path] = ()

    @property
    def targets(self) -> int:
        """Number of target tokens."""
        labels = self.inputs["labels"]
        return int((labels >= 0).sum())


class Part(NamedTuple):
    """One dataset of the mixture.

    Attributes:
        name: in the mixture.
        examples: its examples.
        task: whose templates it is put into words with.
        root: folder that its media paths start from.
    """

    name: str
    examples: Examples
    task: str
    root: Path


class TrainingData(Dataset[Batch]):
    """The batches of a run, by position.

    Item i is the i-th micro-batch of this rank: `groups` of the `groups` x `world` groups of the mixture that stand
    there. It depends on nothing but (datasets, seed, i, rank, world).

    Args:
        parts: the datasets.
        texts: tokenisers.
        image_size: pixels of a side.
        overrides: factors on the datasets' weights.
        groups: groups a micro-batch and rank.
        group_size: at most so many questions of one image a group.
        seed: of the run.
        augment: random crops and flips.
        rank: of this process.
        world: number of processes.
        cache: kept features of images.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        texts: Texts,
        image_size: int,
        *,
        overrides: dict[str, float] | None = None,
        groups: int,
        group_size: int = 1,
        seed: int = 0,
        augment: bool = False,
        rank: int = 0,
        world: int = 1,
        cache: FeatureCache | None = None,
    ) -> None:
        self.parts = list(parts)
        self.texts = texts
        self.image_size = image_size
        self.groups, self.rank, self.world = groups, rank, world
        self.seed, self.augment = seed, augment
        self.cache = cache
        images = {part.name: image_numbers(part.examples.rows) for part in parts}
        self.mixture = Mixture(images, overrides, group_size, seed)
        self._templates = [train_templates(part.task) for part in parts]

    def __getitem__(self, index: int) -> Batch:
        return self.batch(self.positions(index))

    def positions(self, index: int) -> Sequence[int]:
        """This rank's positions of the mixture; groups of many questions are dealt out evenly, so that no rank waits.

        Where all groups are as large, the ranks take every `world`-th.
        """
        first = index * self.groups * self.world
        together = range(first, first + self.groups * self.world)
        if self.world == 1:
            return together
        largest_first = sorted(together, key=lambda position: -len(self.mixture[position].rows))
        return sorted(largest_first[self.rank :: self.world])

    def batch(self, positions: Sequence[int]) -> Batch:
        """The batch of some positions of the mixture."""
        prompts: list[Prompt] = []
        looks: list[list[tuple[Picture, int]]] = []
        datasets: list[str] = []
        for position in positions:
            draw = self.mixture[position]
            part = self.parts[draw.dataset]
            for example in part.examples.take(draw.rows.tolist()):
                prompt = self._templates[draw.dataset].render(example, self.seed, draw.epoch)
                # A picture that comes twice is one picture only where it is cropped alike, as it is within an epoch.
                epoch = draw.epoch if self.augment else 0
                prompts.append(prompt)
                looks.append([(picture, epoch) for picture in pictures(prompt, part.root)])
                datasets.append(part.name)
        distinct, sharing = share_images(looks)
        unkept: Sequence[Path] = ()
        if self.cache is not None:
            found = self.cache.find([picture for picture, _ in distinct])
            distinct, unkept = [distinct[number] for number in found.missing], found.files
            sharing |= {"image_patches": found.patches, "image_order": found.order}
        chances = [Random(f"{self.seed}/{epoch}/{picture.path.name}") for picture, epoch in distinct]
        inputs = {
            "pixel_values": decode(
                [picture for picture, _ in distinct], self.image_size, chances if self.augment else None
            ),
            **sharing,
            **self.texts.rows(self.texts.encode(prompts), [len(look) for look in looks]),
        }
        return Batch(inputs, [prompt.example for prompt in prompts], datasets, unkept)

    def loader(self, start: int, stop: int, workers: int = 0) -> DataLoader[Any]:
        """Micro-batches `start` to `stop` of this rank in order, made by `workers` processes ahead of time."""
        return DataLoader(
            self,
            sampler=range(start, stop),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            multiprocessing_context="fork" if workers else None,
            pin_memory=torch.cuda.is_available(),
        )
