"""What turns gradients into steps: AdamW, or Muon for the matrices of models that start from random weights.

AdamW scales every number of a gradient by itself; directions of a matrix along which the gradient is weak still move
little beside the strong ones. In towers that all start from nothing the strong ones (a picture's colour) win, and the
readers learn to do without what the weak ones would bring (its shape). Muon moves all directions of a matrix alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from instructkit.config.settings import Tower, TrainingConfig
from instructkit.errors import UserError

MOMENTUM = 0.95
_QUINTIC = (3.4445, -4.7750, 2.0315)


def build_optimizer(model: nn.Module, config: TrainingConfig, offloaded: bool = False) -> torch.optim.AdamW:
    """The optimizer of a run over the model's trained parameters.

    Args:
        model: with `requires_grad` set on what is trained.
        config: settings.
        offloaded: whether its state and step are on the CPU.
    """
    kind = Muon if optimizer_name(config) == "Muon" else torch.optim.AdamW
    groups = parameter_groups(model, config)
    return kind(groups, lr=config.learning_rate, betas=config.betas, eps=1e-8, fused=offloaded or None)


def optimizer_name(config: TrainingConfig) -> Literal["AdamW", "Muon"]:
    """The optimizer that a run uses, by PyTorch's name.

    Raises:
        UserError: Muon, which needs whole matrices, under ZeRO 1 to 3 or in bf16: DeepSpeed then hands them over end to
            end as one vector.
    """
    if config.optimizer == "adamw":
        return "AdamW"
    if config.zero_stage or config.precision != "fp32":
        setting = f"zero_stage={config.zero_stage}" if config.zero_stage else f"precision={config.precision}"
        raise UserError(
            f"training.optimizer=muon cannot be used with training.{setting}: Muon needs whole matrices, which "
            "DeepSpeed keeps in ZeRO 0 and fp32 alone; set zero_stage=0 and precision=fp32, or optimizer=adamw with a "
            "learning_rate for it"
        )
    return "Muon"


def parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """Trained parameters by what the optimizer does to them.

    Matrices decay; vectors (biases, norms), embeddings and query tokens do not. Under Muon the matrices between hidden
    states are orthogonalized; the LLM's output head and that of matching, whose rows stand for words and answers, are
    not. A group with a `scale` has the run's learning rate times that (`rate_scales`).

    Raises:
        UserError: `layer_decay` is set for an image encoder without layers.
    """
    scales = rate_scales(model, config)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    muon = optimizer_name(config) == "Muon"
    groups: dict[tuple[float, bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            vector = parameter.ndim < 2 or id(parameter) in embeddings or "embedding" in name or "query_tokens" in name
            orthogonal = muon and parameter.ndim == 2 and not vector and not re.search("lm_head|itm_head", name)
            key = (0.0 if vector else config.weight_decay, orthogonal, scales.get(name, 1.0))
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": decay,
            **({"orthogonal": True} if orthogonal else {}),
            **({"scale": scale} if scale != 1 else {}),
        }
        for (decay, orthogonal, scale), parameters in groups.items()
    ]


def rate_scales(model: nn.Module, config: TrainingConfig) -> dict[str, float]:
    """What the learning rate of a trained parameter is multiplied by, by its name, where that is not 1.

    `rates` gives a tower its own; `layer_decay` lowers those of the image encoder from its last layer down. The layer
    norm over the image features belongs to neither: it is trained with the Q-Former.

    Raises:
        UserError: `layer_decay` is set for an image encoder without layers.
    """
    by_tower = {tower: rate / config.learning_rate for tower, rate in config.rates.items()}
    depths = _depths(model) if config.layer_decay < 1 else {}
    scales = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = by_tower.get(_tower_of(name), 1.0) * config.layer_decay ** depths.get(name, 0)
            if scale != 1:
                scales[name] = scale
    return scales


def _tower_of(name: str) -> Tower:
    if name.startswith("vision_model.") and not name.startswith("vision_model.post_layernorm."):
        return "vision"
    return "llm" if name.startswith("language_model.") else "qformer"


def _depths(model: nn.Module) -> dict[str, int]:
    """How many layers of the image encoder a parameter stands below its end, by name: 1 for the last layer.

    What comes before the first layer, the embeddings, stands one below it (LAVIS: `get_optimizer_params`).
    """
    lists = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    stem, layers = max(
        ((name, part) for name, part in lists if name.startswith("vision_model.")),
        key=lambda pair: len(pair[1]),
        default=("", []),
    )
    if len(layers) < 2:
        raise UserError("training.layer_decay: this image encoder is no row of layers; leave it out (1)")
    depths, below = {}, True
    for name, _ in model.named_parameters():
        if _tower_of(name) == "vision":
            inside = name.startswith(f"{stem}.")
            below = below and not inside
            number = int(name.removeprefix(f"{stem}.").partition(".")[0]) if inside else -1
            depths[name] = len(layers) - number if inside or below else 1
    return depths


class Muon(torch.optim.AdamW):
    """AdamW, but for groups marked `orthogonal`: these step along the nearest orthogonal matrix to their momentum.

    As in K. Jordan's Muon (2024) with Nesterov momentum, the step scaled to the root mean square of AdamW's, 0.2
    sqrt(longer side), as in "Muon is scalable for LLM training" (arXiv 2502.16982), so that one learning rate and one
    decay serve both kinds. `torch.optim.Muon` is the same with bfloat16 in the orthogonalization, whose rounding would
    part the losses of one rank and of two; here it is float32, and matrices of one shape go through it together.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the gradients stay."""
        groups = self.param_groups
        for group in groups:
            if group.get("orthogonal"):
                self._step_matrices(group)
        self.param_groups = [group for group in groups if not group.get("orthogonal")]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    def _step_matrices(self, group: dict[str, Any]) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                shapes.setdefault(parameter.shape, []).append(parameter)
        for shape, parameters in shapes.items():
            steps = orthogonalize(torch.stack([self._momentum(parameter) for parameter in parameters]))
            for parameter, step in zip(parameters, steps, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(step, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if not state:
            # AdamW looks for the step when it loads a state.
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(parameter))
        state["step"] += 1
        gradient = parameter.grad
        assert gradient is not None
        average: Tensor = state["exp_avg"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(average, MOMENTUM)


def orthogonalize(matrices: Tensor, iterations: int = 3) -> Tensor:
    """Matrices of the same singular vectors with singular values near 1, by quintic Newton-Schulz iterations.

    Args:
        matrices: `[matrices, rows, columns]`.
        iterations: three bring singular values from 1.8% of the Frobenius norm on into 0.68 to 1.21, five from 0.15%.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT.contiguous() if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = _QUINTIC
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
