"""What a model is trained for: the losses of a micro-batch as named sums.

The engine divides each sum by its count over all ranks and micro-batches of a step. So a loss does not depend on how a
global batch is split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from instructkit.models.instruct_blip import IGNORED, AnswerLoss
from instructkit.training.data import Batch
from instructkit.training.features import keep
from instructkit.training.flops import FlopCount, llm_work


@dataclass(frozen=True)
class LossSum:
    """One loss of a micro-batch.

    Attributes:
        total: sum over what is counted, float32, a scalar that carries the gradient.
        count: number of terms in the sum, such as target tokens or pairs of image and text.
        rows: what each row adds to the sum, without gradient, `[rows]`.
    """

    total: Tensor
    count: int
    rows: Tensor


class Loss(NamedTuple):
    """What the engine must know of a loss before it is computed.

    Attributes:
        weight: factor on its mean in the loss that is minimised.
        unit: name of what is counted, for the log.
    """

    weight: float = 1.0
    unit: str = "tokens"


class Work(NamedTuple):
    """What a model computes of a micro-batch, for the log.

    Attributes:
        useful: tokens that the rows hold.
        computed: positions that the LLM computes, padding included.
        flops: floating-point operations, forward and backward.
    """

    useful: int
    computed: int
    flops: float


class Objective(Protocol):
    """Maps (model, batch) to named sums. The model is called as it stands in the engine, by keyword arguments.

    Attributes:
        losses: the losses by name.
        contrastive: whether rows are compared with each other. Such a loss sees one micro-batch, so a step cannot be
            accumulated from several.
    """

    losses: Mapping[str, Loss]
    contrastive: bool

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Number of terms of each loss in each row, `[rows]`, on the CPU; known before the model is called."""

    def work(self, model: Any) -> Callable[[Batch], Work] | None:
        """What counts the work that this model has with a batch; None where nothing can count it."""

    def __call__(self, model: Callable[..., Any], batch: Batch) -> dict[str, LossSum]:
        """The sums of a micro-batch whose inputs are on the model's device."""


class AnswerObjective:
    """Instruction tuning: the negative log-likelihood of the answers' tokens (InstructBLIP, section 3)."""

    losses: Mapping[str, Loss] = {"nll": Loss()}
    contrastive = False

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Target tokens of each row."""
        return {"nll": (batch.inputs["labels"] != IGNORED).sum(1)}

    def work(self, model: Any) -> Callable[[Batch], Work]:
        """Counts the work of an `InstructBlip`, with `requires_grad` set on what is trained."""
        flops = FlopCount(model)

        def count(batch: Batch) -> Work:
            llm = llm_work(model, batch.inputs)
            return Work(llm.held, llm.read + llm.written, flops.count(batch.inputs, llm))

        return count

    def __call__(self, model: Callable[..., Any], batch: Batch) -> dict[str, LossSum]:
        """The answers' loss; features of images that a cache lacks are written to it."""
        answer: AnswerLoss = model(**batch.inputs)
        if batch.unkept and answer.patches is not None:
            keep(batch.unkept, answer.patches)
        return {"nll": LossSum(answer.total, answer.tokens, answer.rows)}
