"""What of a model is trained: each tower frozen, by LoRA, or in full."""

from __future__ import annotations

import difflib
import re
from fnmatch import fnmatchcase

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from instructkit.config import TowersConfig
from instructkit.errors import UserError
from instructkit.models.instruct_blip import InstructBlip

TOWERS = ("vision_model", "qformer", "language_model")
"""The towers' names as parameters carry them; query tokens and projection belong to the Q-Former's training."""


def prepare_towers(model: InstructBlip, config: TowersConfig, seed: int = 0) -> None:
    """Set what is trained, in place; the same seed gives the same LoRA weights.

    A frozen tower needs no gradient and runs without dropout. The layer norm over the image features, the query tokens
    and the projection into the LLM are trained with the Q-Former, as the paper does (section 3.4).

    Raises:
        UserError: `lora_targets` do not fit the model.
    """
    settings = dict(zip(TOWERS, (config.vision, config.qformer, config.llm), strict=True))
    for name, setting in settings.items():
        getattr(model, name).requires_grad_(setting == "full")
    joints = config.qformer != "frozen"
    model.query_tokens.requires_grad_(joints)
    model.language_projection.requires_grad_(joints)
    if joints and config.vision != "lora":
        model.vision_model.post_layernorm.requires_grad_(True)
    targets = lora_targets(model, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layers in targets.items():
            _add_lora(getattr(model, name), config, layers)


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


def lora_targets(model: InstructBlip, config: TowersConfig) -> dict[str, set[str]]:
    """Linear layers that LoRA stands beside, by tower, with their names inside it.

    Raises:
        UserError: a pattern of `lora_targets` matches no layer of a LoRA tower, or a LoRA tower is left without.
    """
    settings = dict(zip(TOWERS, (config.vision, config.qformer, config.llm), strict=True))
    head = model.language_model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    chosen = [name for name in linear if settings.get(name.partition(".")[0]) == "lora"]
    if config.lora_targets:
        for pattern in config.lora_targets:
            _check_pattern(pattern, linear, chosen)
        chosen = [name for name in chosen if any(fnmatchcase(name, pattern) for pattern in config.lora_targets)]
    targets = {
        tower: {name.removeprefix(f"{tower}.") for name in chosen if name.startswith(f"{tower}.")}
        for tower, setting in settings.items()
        if setting == "lora"
    }
    for tower, names in targets.items():
        if not names:
            raise UserError(
                f"{tower} is to be trained by LoRA, but no pattern of towers.lora_targets matches a layer of it"
            )
    return targets


def _check_pattern(pattern: str, linear: list[str], chosen: list[str]) -> None:
    if any(fnmatchcase(name, pattern) for name in chosen):
        return
    elsewhere = next((name for name in linear if fnmatchcase(name, pattern)), None)
    if elsewhere is not None:
        raise UserError(f"towers.lora_targets: {pattern} matches {elsewhere}, but that tower is not trained by LoRA")
    kinds = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in chosen})
    near = difflib.get_close_matches(pattern, kinds, 3, cutoff=0.4) or kinds[:3]
    hint = f"near are {', '.join(near)}" if near else "no tower is trained by LoRA"
    raise UserError(f"towers.lora_targets: {pattern} matches no linear layer; {hint}")


def _add_lora(tower: nn.Module, config: TowersConfig, targets: set[str]) -> None:
    """Put LoRA beside some linear layers of a tower."""
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=sorted(targets))
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
