"""What BLIP-2's first stage is trained for (arXiv 2301.12597, section 3.1): three losses over pairs of image and text.

itc  which text belongs to an image, and which image to a text, among all pairs of the step, of all ranks
itm  whether an image and a text belong together, beside the pairs such as ITC takes for one
itg  the text, told token by token from the image
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from instructkit.models.blip2 import Candidates, Embedded, Pretraining, similarity
from instructkit.training.data import Batch
from instructkit.training.features import keep
from instructkit.training.objectives import Loss, LossSum, Work

SMOOTHING = 0.1
"""Label smoothing of ITC and ITG (LAVIS; the paper does not state it)."""


class PretrainingObjective:
    """The losses of `Blip2Pretraining` with the weight 1 each.

    ITC and ITM compare the pairs of all ranks: every rank has as many.
    """

    losses: Mapping[str, Loss] = {"itc": Loss(unit="pairs"), "itm": Loss(unit="pairs"), "itg": Loss(unit="tokens")}
    contrastive = True

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """One of each pair for ITC and ITM; for ITG the tokens behind `[DEC]`."""
        tokens = batch.inputs["attention_mask"].sum(1) - 1
        return {"itc": torch.ones_like(tokens), "itm": torch.ones_like(tokens), "itg": tokens}

    def work(self, model: Any) -> Callable[[Batch], Work] | None:
        """Nothing counts it."""
        return None

    def __call__(self, model: Callable[..., Any], batch: Batch) -> dict[str, LossSum]:
        """The sums of this rank's pairs; features of images that a cache lacks are written to it."""
        comparison = StepComparison(batch.inputs)
        inputs = {name: part for name, part in batch.inputs.items() if name not in COMPARED}
        found: Pretraining = model(candidates=comparison.candidates, **inputs)
        if batch.unkept and found.patches is not None:
            keep(batch.unkept, found.patches)
        itc, itm = comparison.itc(), comparison.itm(found.matches)
        words = nn.functional.cross_entropy(found.words, found.targets, reduction="none", label_smoothing=SMOOTHING)
        itg = torch.zeros_like(itc).index_add(0, found.owners, words.detach())
        return {
            "itc": LossSum(itc.sum(), len(itc), itc.detach()),
            "itm": LossSum(itm.sum(), len(itm), itm.detach()),
            "itg": LossSum(words.sum(), len(words), itg),
        }


COMPARED = ("image_ids", "chances", "epochs")
"""Inputs of a batch that say how pairs are compared: no model reads them."""


class Comparison(ABC):
    """How the pairs of a rank are compared with those of all ranks.

    Pairs that show the same image are no negatives of each other: in ITC each is right for the others' image or text,
    as much as its own, and ITM does not draw it. Where all pairs of the step show one image, as where there is but one
    pair, ITM has no negatives and judges the pairs alone.

    Args:
        inputs: of a batch (`instructkit.training.pairs.PairData`), on the model's device; read are `input_ids`,
            `attention_mask`, `image_ids` and `chances`.
        alone: compare the pairs of this rank with each other only.
    """

    def __init__(self, inputs: Mapping[str, Tensor], alone: bool = False) -> None:
        self.input_ids, self.attention_mask = inputs["input_ids"], inputs["attention_mask"]
        self.image_ids, self.chances = inputs["image_ids"], inputs["chances"]
        self.alone, self.pairs = alone or _world() == 1, len(self.input_ids)
        self.first = 0 if self.alone else _rank() * self.pairs
        self.same = self.image_ids[:, None] == self.everyones(self.image_ids)
        self.to_texts: Tensor
        self.to_images: Tensor

    @abstractmethod
    def negatives(self) -> tuple[Tensor, Tensor]:
        """A wrong image for each text and a wrong text for each image, among those compared, `[pairs]` each."""

    @abstractmethod
    def itc(self) -> Tensor:
        """Cross entropy of image to texts and of text to images, their mean, `[pairs]`."""

    def everyones(self, mine: Tensor) -> Tensor:
        """Rows of all ranks with which those of this one are compared, without gradient."""
        return mine if self.alone else gathered(mine)

    def chosen(self, features: Tensor) -> Candidates:
        """What ITM judges once similarities are known; `features` are those of this rank's images."""
        own = torch.arange(self.pairs, device=self.same.device)
        everyone = None if self.alone else gathered_with_gradient(features)
        if self.same.all():
            # The gathered features belong to the loss all the same: every rank waits for it when it goes backward.
            return Candidates(None if everyone is None else everyone[:0], own, self.input_ids, self.attention_mask)
        image, text = self.negatives()
        others, image = (None, image) if everyone is None else self._others(everyone, image)
        ids, mask = self._texts(text)
        return Candidates(others, torch.cat([own, image, own]), ids, mask)

    def itm(self, matches: Tensor) -> Tensor:
        """Cross entropy of matching: of each pair the mean over its rows, the right one and the wrong ones, `[pairs]`.

        Args:
            matches: logits of what `candidates` gave, `[rows, 2]`.
        """
        labels = torch.zeros(len(matches), dtype=torch.long, device=matches.device)
        labels[: self.pairs] = 1
        return nn.functional.cross_entropy(matches, labels, reduction="none").view(-1, self.pairs).mean(0)

    def _others(self, everyone: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features of other ranks' images among some, and where each of the images stands behind this rank's own."""
        mine = (image >= self.first) & (image < self.first + self.pairs)
        others = image[~mine].unique()
        place = self.pairs + torch.searchsorted(others, image)
        return everyone[others], torch.where(mine, image - self.first, place)

    def _texts(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Text and mask of all rows that ITM judges; `chosen` are the wrong texts."""
        width = torch.tensor(self.input_ids.shape[1], device=chosen.device)
        if not self.alone:
            dist.all_reduce(width, op=dist.ReduceOp.MAX)
        room = (0, int(width) - self.input_ids.shape[1])
        ids, mask = (nn.functional.pad(part, room) for part in (self.input_ids, self.attention_mask))
        wrong = self.everyones(torch.stack([ids, mask], dim=1))[chosen]
        return torch.cat([ids, ids, wrong[:, 0]]), torch.cat([mask, mask, wrong[:, 1]])


class StepComparison(Comparison):
    """How the first stage compares: the pairs of the step with each other, by what the trained model makes of them."""

    def candidates(self, embedded: Embedded) -> Candidates:
        """What ITM judges: the pairs, each text with an image that it does not belong to, each image with such a text.

        Negatives are drawn by multinomial from the softmax over the similarities with all ranks' texts or images. What
        other ranks hold is compared with without gradient; images that ITM reads have it.
        """
        texts, images = self.everyones(embedded.texts.detach()), self.everyones(embedded.images.detach())
        self.to_texts = similarity(embedded.images, texts) / embedded.temperature
        self.to_images = similarity(images, embedded.texts).T / embedded.temperature
        return self.chosen(embedded.features)

    def negatives(self) -> tuple[Tensor, Tensor]:
        """A wrong image for each text and a wrong text for each image, among those of all ranks, `[pairs]` each."""
        image = draw(self.to_images, self.same, self.chances[:, 0])
        return image, draw(self.to_texts, self.same, self.chances[:, 1])

    def itc(self) -> Tensor:
        """Cross entropy of image to texts and of text to images, their mean, `[pairs]`."""
        share = self.same.float()
        share = (1 - SMOOTHING) * share / share.sum(1, keepdim=True) + SMOOTHING / share.shape[1]
        both = [-(scores.log_softmax(1) * share).sum(1) for scores in (self.to_texts, self.to_images)]
        return (both[0] + both[1]) / 2


def draw(scores: Tensor, excluded: Tensor, chances: Tensor) -> Tensor:
    """One column of each row, by multinomial from the softmax over the columns that are not excluded, `[rows]`.

    Args:
        scores: `[rows, columns]`.
        excluded: True for columns that are never drawn, `[rows, columns]`; not all of a row.
        chances: where in the distribution the column lies, from 0 to 1, float64, `[rows]`.
    """
    return draw_by_share(scores.detach().double().masked_fill(excluded, -torch.inf).softmax(1), chances)


def draw_by_share(shares: Tensor, chances: Tensor) -> Tensor:
    """One column of each row, by multinomial from shares `[rows, columns]`, which need not sum to 1: `[rows]`."""
    ends = shares.cumsum(1)
    places = torch.searchsorted(ends, chances[:, None] * ends[:, -1:], right=True)[:, 0]
    return places.clamp(max=shares.shape[1] - 1)  # of scores that are no numbers


def gathered(mine: Tensor) -> Tensor:
    """Rows of all ranks in the order of the ranks, without gradient; every rank has as many."""
    if _world() == 1:
        return mine
    parts = [torch.empty_like(mine) for _ in range(_world())]
    dist.all_gather(parts, mine.contiguous())
    return torch.cat(parts)


def gathered_with_gradient(mine: Tensor) -> Tensor:
    """As `gathered`; what a rank's rows did to the losses of all ranks comes back to it as gradient."""
    rows: Tensor = _Gather.apply(mine)
    return rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        ctx.rows = len(mine)
        return gathered(mine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        first = _rank() * int(ctx.rows)
        return total[first : first + int(ctx.rows)]


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
