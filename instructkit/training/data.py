"""What a training step reads: positions of the mixture become one batch, whoever asks and in whatever order."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from instructkit.config.settings import Instructions, RunConfig, TrainingConfig
from instructkit.data.dataset import Examples
from instructkit.data.mixture import Mixture, image_numbers, picture_counts
from instructkit.errors import UserError
from instructkit.models.batches import FRAMES, Encoded, Picture, Texts, decode, pictures, share_images
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.positions import Positions, positions_of
from instructkit.prompts.own_prompt import wordings_of
from instructkit.prompts.templates import Prompt
from instructkit.runs.run import Run
from instructkit.training.features import FeatureCache, open_cache


class Batch(NamedTuple):
    """One micro-batch.

    Attributes:
        inputs: keyword arguments of the model.
        examples: id of each row's example.
        datasets: name of each row's dataset.
        cut: which of each row's texts lost tokens to a limit (`instructkit.models.batches.Encoded`).
        unkept: files that the features of `pixel_values` are to be kept in, where there is a cache.
    """

    inputs: dict[str, Tensor]
    examples: list[str]
    datasets: list[str]
    cut: Sequence[Sequence[str]] = ()
    unkept: Sequence[Path] = ()

    def to(self, device: torch.device) -> Batch:
        """The same with its inputs on a device."""
        return self._replace(inputs={name: part.to(device, non_blocking=True) for name, part in self.inputs.items()})


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

    @property
    def source(self) -> str:
        """Name of the dataset without its split."""
        return self.name.partition("/")[0]


class MixedData(Dataset[Batch]):
    """The batches of a run, by position.

    Item i is the i-th micro-batch of this rank: `groups` of the `groups` x `world` groups of the mixture that stand
    there. It depends on nothing but (datasets, seed, i, rank, world).

    Args:
        parts: the datasets.
        mixture: which of their groups comes when.
        groups: groups a micro-batch and rank.
        seed: of the run.
        augment: random crops and flips.
        rank: of this process.
        world: number of processes.
        cache: kept features of images.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        mixture: Mixture,
        *,
        groups: int,
        seed: int = 0,
        augment: bool = False,
        rank: int = 0,
        world: int = 1,
        cache: FeatureCache | None = None,
    ) -> None:
        self.parts, self.mixture = list(parts), mixture
        self.groups, self.rank, self.world = groups, rank, world
        self.seed, self.augment = seed, augment
        self.cache = cache

    @property
    def names(self) -> list[str]:
        """The datasets of the mixture."""
        return self.mixture.names

    @property
    def samples_per_group(self) -> float:
        """Examples that a group of the mixture holds, on average."""
        return self.mixture.examples_per_group

    def __getitem__(self, index: int) -> Batch:
        return self.batch(self.positions(index))

    def positions(self, index: int) -> Sequence[int]:
        """This rank's positions of the mixture in a micro-batch, which follow each other: rank 0 has the first."""
        first = (index * self.world + self.rank) * self.groups
        return range(first, first + self.groups)

    def batch(self, positions: Sequence[int]) -> Batch:
        """The batch of some positions of the mixture."""
        raise NotImplementedError

    def chance(self, picture: Picture, root: Path, epoch: int) -> str:
        """What a picture's crop and flip follow from; frames of a video are cropped alike. Empty without crops."""
        if not self.augment:
            return ""
        return f"{self.seed}/{epoch}/{PurePath(os.path.relpath(picture.path, root)).as_posix()}"

    def pixels(self, looks: Sequence[tuple[Picture, str]], size: int) -> tuple[dict[str, Tensor], Sequence[Path]]:
        """What the model reads of distinct pictures, those that a cache has left out.

        Args:
            looks: pictures, each with what its crop follows from (`chance`).
            size: pixels of a side.

        Returns:
            Inputs, and the files that the features of `pixel_values` are to be kept in.
        """
        inputs: dict[str, Tensor] = {}
        unkept: Sequence[Path] = ()
        if self.cache is not None:
            found = self.cache.find([picture for picture, _ in looks])
            looks, unkept = [looks[number] for number in found.missing], found.files
            inputs = {"image_patches": found.patches, "image_order": found.order}
        chances = [Random(chance) for _, chance in looks] if self.augment else None
        return {"pixel_values": decode([picture for picture, _ in looks], size, chances), **inputs}, unkept

    def loader(self, start: int, stop: int, workers: int = 0) -> Iterator[Batch]:
        """Micro-batches `start` to `stop` of this rank in order, made by `workers` processes ahead of time.

        Raises:
            UserError: a batch cannot be made.
        """
        loader: DataLoader[Any] = DataLoader(
            _Told(self),
            sampler=range(start, stop),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=_outlast_signals if workers else None,
            pin_memory=torch.cuda.is_available(),
        )
        for made in loader:
            if isinstance(made, UserError):
                raise made
            yield made


class TrainingData(MixedData):
    """Batches of instructions and answers; a group is some questions of one image.

    Args:
        parts: the datasets.
        texts: tokenisers.
        image_size: pixels of a side.
        overrides: factors on the datasets' weights.
        groups: groups a micro-batch and rank.
        group_size: maximum number of questions about one image in a group.
        seed: of the run.
        augment: random crops and flips.
        rank: of this process.
        world: number of processes.
        prompt: as `data.prompt`.
        prefix: as `data.prefix`.
        instructions: as `data.instructions`.
        cache: kept features of images.
        llm_positions: a row beyond the end of their table is refused.
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
        prompt: str | None = None,
        prefix: bool = False,
        instructions: Instructions = "full",
        rank: int = 0,
        world: int = 1,
        cache: FeatureCache | None = None,
        llm_positions: Positions | None = None,
    ) -> None:
        images = {part.name: image_numbers(part.examples.rows) for part in parts}
        mixture = Mixture(images, overrides, group_size, seed)
        super().__init__(parts, mixture, groups=groups, seed=seed, augment=augment, rank=rank, world=world, cache=cache)
        self.texts = texts
        self.image_size = image_size
        self.llm_positions = llm_positions or Positions()
        self._wordings = [wordings_of(part.task, part.source, prompt, prefix, instructions) for part in parts]

    @classmethod
    def for_run(cls, run: Run[RunConfig], parts: Sequence[Part], model: InstructBlip, texts: Texts) -> TrainingData:
        """The batches that a run trains on; the log says what may not fit.

        Raises:
            UserError: a batch cannot be split over the ranks, or a row can never fit.
        """
        config = run.config
        data = cls(
            parts,
            texts,
            model.config.vision_config.image_size,
            overrides=config.data.weights,
            groups=groups_of(config.training, run.world),
            group_size=config.data.group_size,
            seed=config.seed,
            augment=config.data.augment,
            prompt=config.data.prompt,
            prefix=config.data.prefix,
            instructions=config.data.instructions,
            rank=run.rank,
            world=run.world,
            cache=open_cache(config, model),
            llm_positions=positions_of(model.language_model),
        )
        for line in data.check_pictures():
            run.say(line)
        return data

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
        looks: list[list[tuple[Picture, str]]] = []
        datasets: list[str] = []
        for position in positions:
            draw = self.mixture[position]
            part = self.parts[draw.dataset]
            for example in part.examples.take(draw.rows.tolist()):
                prompt = self._wordings[draw.dataset].render(example, self.seed, draw.epoch)
                prompts.append(prompt)
                # A picture that comes twice is one picture only where it is cropped alike, as it is within an epoch.
                looks.append(
                    [(picture, self.chance(picture, part.root, draw.epoch)) for picture in pictures(prompt, part.root)]
                )
                datasets.append(part.name)
        distinct, sharing = share_images(looks)
        encoded = self.texts.encode(prompts)
        frames = [len(look) for look in looks]
        self._check_lengths(prompts, encoded, frames)
        seen, unkept = self.pixels(distinct, self.image_size)
        inputs = {**seen, **sharing, **self.texts.rows(encoded, frames)}
        return Batch(inputs, [prompt.example for prompt in prompts], datasets, [row.cut for row in encoded], unkept)

    def _check_lengths(self, prompts: Sequence[Prompt], encoded: Sequence[Encoded], frames: Sequence[int]) -> None:
        """Refuse a row that is longer than the LLM's table of positions."""
        if not self.llm_positions.table:
            return
        for prompt, row, pictures_of_row in zip(prompts, encoded, frames, strict=True):
            soft = self.texts.queries * pictures_of_row
            read = soft + len(row.instruction) + (len(row.answer) if self.texts.decoder_only else 0)
            for length, most in ((read, self.llm_positions.read), (len(row.answer), self.llm_positions.written)):
                if most is not None and length > most:
                    raise UserError(
                        f"{prompt.example}: the LLM has {most:,} positions, the row {length:,} tokens ({soft:,} soft "
                        f"prompts of {pictures_of_row} pictures, {len(row.instruction):,} of the instruction, "
                        f"{len(row.answer):,} of the answer); lower data.instruction_tokens or data.answer_tokens, "
                        "leave the example out, or take an LLM with more positions"
                    )

    def check_pictures(self) -> list[str]:
        """Look for rows that no LLM of these positions can take, before the first step.

        Returns:
            Lines for the log.

        Raises:
            UserError: the soft prompts of an example's pictures alone fill the LLM's positions.
        """
        positions, queries, limits = self.llm_positions, self.texts.queries, self.texts.limits
        if positions.read is None:
            return []
        most = 0
        for part in self.parts:
            counts = picture_counts(part.examples.rows, FRAMES)
            most = max(most, int(counts.max(initial=0)))
            # The shortest text has one token beside those around it, the shortest answer one and its end.
            text = len(self.texts.before) + len(self.texts.behind) + (3 if self.texts.decoder_only else 1)
            room = positions.read - queries * counts - text
            if positions.table and (room < 0).any():
                index = int((room < 0).argmax())
                (example,) = part.examples.take([index])
                raise UserError(
                    f"{example.id}: its {counts[index]} pictures are {queries * counts[index]:,} soft prompts, which "
                    f"leave no room for a text in the LLM's {positions.read:,} positions; leave the example out, or "
                    f"take an LLM with more ({int((room < 0).sum()):,} examples of {part.name} are like it)"
                )
        texts = [limit for limit in (limits.instruction, self.texts.decoder_only and limits.answer) if limit]
        longest = queries * most + sum(texts)
        if longest <= positions.read:
            return []
        how = (
            "a row beyond them ends the run" if positions.table else "it was made for no more; rows beyond are computed"
        )
        return [
            f"positions {positions.read:,} of the LLM; rows may have {longest:,} tokens ({queries * most:,} soft "
            f"prompts, {sum(texts):,} of text by data.instruction_tokens and data.answer_tokens): {how}"
        ]


def groups_of(training: TrainingConfig, world: int) -> int:
    """Image groups of a micro-batch and rank.

    Raises:
        UserError: the global batch cannot be split so.
    """
    parts = world * training.accumulation
    if training.batch_size % parts:
        raise UserError(
            f"batch_size={training.batch_size} cannot be split over {world} ranks and {training.accumulation} "
            f"micro-batches; make it a multiple of {parts}"
        )
    return training.batch_size // parts


def _outlast_signals(worker: int) -> None:
    """Let a worker end when its rank asks it to, not by a signal: launchers and terminals send theirs to all processes.

    The rank still needs batches to finish its step, and a worker that a signal ends is an error to it. Where the rank
    has ended, torch's worker does so within seconds.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class _Told(Dataset[Batch | UserError]):
    """Batches, or what is wrong with one: raised in a worker process it would come with that one's traceback."""

    def __init__(self, data: MixedData) -> None:
        self._data = data

    def __getitem__(self, index: int) -> Batch | UserError:
        try:
            return self._data[index]
        except UserError as error:
            return error
