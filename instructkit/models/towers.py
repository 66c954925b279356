"""What of a model is trained: each tower frozen, by LoRA, or in full."""

from __future__ import annotations

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from instructkit.config import TowersConfig
from instructkit.models.instruct_blip import InstructBlip

TOWERS = ("vision_model", "qformer", "language_model")
"""The towers' names as parameters carry them; query tokens and projection belong to the Q-Former's training."""


def prepare_towers(model: InstructBlip, config: TowersConfig, seed: int = 0) -> None:
    """Set what is trained, in place; the same seed gives the same LoRA weights.

    A frozen tower needs no gradient and runs without dropout. The layer norm over the image features, the query tokens
    and the projection into the LLM are trained with the Q-Former, as the paper does (section 3.4).
    """
    settings = dict(zip(TOWERS, (config.vision, config.qformer, config.llm), strict=True))
    for name, setting in settings.items():
        getattr(model, name).requires_grad_(setting == "full")
    joints = config.qformer != "frozen"
    model.query_tokens.requires_grad_(joints)
    model.language_projection.requires_grad_(joints)
    if joints and config.vision != "lora":
        model.vision_model.post_layernorm.requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, setting in settings.items():
            if setting == "lora":
                _add_lora(getattr(model, name), config)


def trained_and_frozen(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Numbers of trained and frozen parameters by tower; what belongs to none is called joints."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        tower = next((tower for tower in TOWERS if f"{tower}." in name), "joints")
        trained, frozen = counts.get(tower, (0, 0))
        size = getattr(parameter, "ds_numel", parameter.numel())
        counts[tower] = (trained + size, frozen) if parameter.requires_grad else (trained, frozen + size)
    return counts


def set_modes(model: InstructBlip, training: bool) -> None:
    """Training mode for towers in which something is trained, evaluation mode for the others."""
    model.train(training)
    for name in TOWERS:
        tower = getattr(model, name)
        if not any(parameter.requires_grad for parameter in tower.parameters()):
            tower.eval()


def _add_lora(tower: nn.Module, config: TowersConfig) -> None:
    """Put LoRA beside every linear layer of a tower but its output head."""
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear")
    targets = [
        name for name, module in tower.named_modules() if isinstance(module, nn.Linear) and not name.endswith("lm_head")
    ]
    lora.target_modules = set(targets)
    inject_adapter_in_model(lora, tower)


def merge_lora(state: dict[str, Tensor], config: TowersConfig) -> dict[str, Tensor]:
    """Weights with every LoRA pair added to the matrix it stands beside, under the model's own names.

    Args:
        state: all weights of a model, with or without LoRA.
        config: holds the scale, lora_alpha / lora_rank.
    """
    merged = {}
    for name, weight in state.items():
        if ".lora_" in name:
            continue
        if name.endswith(".base_layer.weight"):
            stem = name.removesuffix(".base_layer.weight")
            up, down = state[f"{stem}.lora_B.default.weight"], state[f"{stem}.lora_A.default.weight"]
            weight = weight + (up.float() @ down.float() * (config.lora_alpha / config.lora_rank)).to(weight.dtype)
        merged[name.replace(".base_layer.", ".")] = weight
    return merged
