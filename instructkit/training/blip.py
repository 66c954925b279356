"""What BLIP is pre-trained for (arXiv 2201.12086, section 3.2): three losses over pairs of image and text.

itc  which text belongs to an image, and which image to a text, among the pairs of the step and those of a queue, with
     soft targets from a momentum encoder
itm  whether an image and a text belong together, beside the pairs such as ITC takes for one
lm   the text, told token by token from the image

And what it is finetuned for, to answer:

vqa  the answers of a question, told token by token from what the encoder makes of image and question
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from instructkit.config.settings import PairsConfig
from instructkit.models.blip import Followed
from instructkit.models.blip2 import Candidates, Pretraining
from instructkit.training.data import Batch
from instructkit.training.objectives import Loss, LossSum, Work
from instructkit.training.pretraining import COMPARED, Comparison, draw_by_share, gathered

SMOOTHING = 0.1
"""Label smoothing of LM (paper, section 3.2); ITC and ITM have none."""
RAMP = 2
"""Epochs in which the weight of the soft targets rises from 0 (LAVIS)."""
FLOOR = 1e-4
"""Added to the share of a wrong image or text (LAVIS), where the momentum encoder's similarity decides."""


class BlipObjective:
    """The losses of `Blip` with the weight 1 each.

    Args:
        settings: which losses, and how pairs are compared.
    """

    def __init__(self, settings: PairsConfig) -> None:
        self.settings = settings
        units = {"itc": "pairs", "itm": "pairs", "lm": "tokens", "vqa": "questions"}
        self.losses: Mapping[str, Loss] = {name: Loss(unit=units[name]) for name in settings.losses}
        self.contrastive = settings.compares

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """One of each pair for ITC and ITM, and of each question; for LM the tokens behind `[DEC]` and the prompt."""
        if "vqa" in self.losses:
            return {"vqa": torch.ones(len(batch.examples), dtype=torch.long)}
        tokens = batch.inputs["attention_mask"].sum(1) - batch.inputs["given"]
        every = {"itc": torch.ones_like(tokens), "itm": torch.ones_like(tokens), "lm": tokens}
        return {name: every[name] for name in self.losses}

    def work(self, model: Any) -> Callable[[Batch], Work] | None:
        """Nothing counts it."""
        return None

    def __call__(self, model: Callable[..., Any], batch: Batch) -> dict[str, LossSum]:
        """The sums of this rank's pairs or questions."""
        if "vqa" in self.losses:
            rows = self._answers(model, batch)
            return {"vqa": LossSum(rows.sum(), len(rows), rows.detach())}
        inputs: dict[str, Any] = {name: part for name, part in batch.inputs.items() if name not in COMPARED}
        comparison = None
        if self.settings.compares:
            comparison = MomentumComparison(batch.inputs, self.settings)
            inputs["candidates"] = comparison.candidates
        if "lm" not in self.losses:
            inputs["given"] = None
        found: Pretraining = model(**inputs)
        sums: dict[str, LossSum] = {}
        if comparison is not None:
            for name, rows in (("itc", comparison.itc()), ("itm", comparison.itm(found.matches))):
                sums[name] = LossSum(rows.sum(), len(rows), rows.detach())
        if "lm" in self.losses:
            words = nn.functional.cross_entropy(found.words, found.targets, reduction="none", label_smoothing=SMOOTHING)
            rows = words.new_zeros(len(batch.examples)).index_add(0, found.owners, words.detach())
            sums["lm"] = LossSum(words.sum(), len(words), rows)
        return sums

    def _answers(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """What the answers of each question cost: the sum over their tokens, times their weights, `[questions]`."""
        inputs = dict(batch.inputs)
        weights = inputs.pop("weights")
        words, targets, answers = model(**inputs)
        tokens = nn.functional.cross_entropy(words, targets, reduction="none", label_smoothing=SMOOTHING)
        costs = torch.zeros_like(weights).index_add(0, answers, tokens) * weights
        return costs.new_zeros(len(batch.examples)).index_add(0, inputs["answered"], costs)


class MomentumComparison(Comparison):
    """How the pairs of a rank are compared with the momentum encoder's view of all ranks' pairs and of the queue.

    Pairs that show the same image, in the step or the queue, are right for each other, as in BLIP's finetuning for
    retrieval; where all images differ, as in its pre-training, a pair is right for itself alone.

    Args:
        inputs: of a batch, on the model's device.
        settings: how they are compared.
    """

    def __init__(self, inputs: Mapping[str, Tensor], settings: PairsConfig) -> None:
        super().__init__(inputs, alone=settings.negatives == "rank")
        self.settings = settings
        self.alpha = settings.alpha * (inputs["epochs"] / RAMP).clamp(max=1).float()
        self.text_targets: Tensor
        self.image_targets: Tensor
        self.shares: tuple[Tensor, Tensor]

    def candidates(self, followed: Followed) -> Candidates:
        """What ITM judges; the pairs are in the queue then.

        Its images and texts are of this rank and, unless `negatives` is `rank`, of the others.
        """
        online, queue = followed.online, followed.momentum
        images = torch.cat([self.everyones(followed.images), queue.images])
        texts = torch.cat([self.everyones(followed.texts), queue.texts])
        ids = torch.cat([self.everyones(self.image_ids), queue.ids])
        heat = online.temperature
        self.to_texts, self.to_images = online.images[:, 0] @ texts.T / heat, online.texts @ images.T / heat
        with torch.no_grad():
            right = (self.image_ids[:, None] == ids).float()
            right /= right.sum(1, keepdim=True)
            soft = (followed.images @ texts.T / heat).softmax(1), (followed.texts @ images.T / heat).softmax(1)
            self.text_targets, self.image_targets = (self.alpha * each + (1 - self.alpha) * right for each in soft)
            self.shares = self._shares(followed)
            queue.push(*(gathered(mine) for mine in (followed.images, followed.texts, self.image_ids)))
        return self.chosen(online.features)

    def negatives(self) -> tuple[Tensor, Tensor]:
        """A wrong image for each text and a wrong text for each image, `[pairs]` each."""
        image, text = (
            draw_by_share(share, chance) for share, chance in zip(self.shares, self.chances.unbind(1), strict=True)
        )
        return image, text

    def itc(self) -> Tensor:
        """Cross entropy of image to texts and of text to images with the soft targets, their mean, `[pairs]`."""
        both = ((self.to_texts, self.text_targets), (self.to_images, self.image_targets))
        one, other = (-(scores.log_softmax(1) * targets).sum(1) for scores, targets in both)
        return (one + other) / 2

    def _shares(self, followed: Followed) -> tuple[Tensor, Tensor]:
        """Shares of the step's images for each text, and of its texts for each image, `[pairs, pairs of the step]`."""
        online, count = followed.online, self.same.shape[1]
        if self.settings.similarity == "momentum":
            every = (scores[:, :count].double().softmax(1) + FLOOR for scores in (self.to_images, self.to_texts))
            image, text = (shares.masked_fill(self.same, 0) for shares in every)
            return image, text
        images, texts = self.everyones(online.images[:, 0]), self.everyones(online.texts)
        both = (online.texts @ images.T, online.images[:, 0] @ texts.T)
        image, text = (
            (scores / online.temperature).double().masked_fill(self.same, -torch.inf).softmax(1) for scores in both
        )
        return image, text
