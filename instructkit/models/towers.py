"""What of a model is trained: each tower frozen, by LoRA, or in full."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from transformers.pytorch_utils import Conv1D

from instructkit.config.settings import TowersConfig
from instructkit.errors import UserError
from instructkit.models.blip import Blip
from instructkit.models.blip2 import Blip2Pretraining
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.qformer_text import is_text

LINEAR = (nn.Linear, Conv1D)
"""Layers that multiply by a matrix; GPT-2's kind keeps it transposed."""

TOWERS = ("vision_model", "qformer", "language_model")
"""The towers' names as parameters carry them; what belongs to none is trained with the Q-Former."""


def prepare_towers(model: InstructBlip | Blip2Pretraining | Blip, config: TowersConfig, seed: int = 0) -> None:
    """Set what is trained, in place; the same seed gives the same LoRA weights.

    A frozen tower needs no gradient and runs without dropout. What a Q-Former needs to read text stays as it is where
    it reads none. The layer norm over the image features and all that stands outside the towers (query tokens, the
    projection into the LLM, heads of BLIP-2's first stage) are trained with the Q-Former, as the paper does (section
    3.4), whatever is trained of the image encoder.

    Raises:
        UserError: `lora_targets` do not fit the model.
    """
    for name, setting in _settings(model, config).items():
        getattr(model, name).requires_grad_(setting == "full")
    if not model.instruction_aware:
        for name, parameter in model.named_parameters():
            if is_text(name):
                parameter.requires_grad_(False)
    joints = config.qformer != "frozen"
    for name, weight in model.named_parameters():
        if name.partition(".")[0] not in TOWERS:
            weight.requires_grad_(joints)
    targets = lora_targets(model, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layers in targets.items():
            _add_lora(getattr(model, name), config, layers)
    if joints:  # behind LoRA, which freezes all else in its tower
        model.vision_model.post_layernorm.requires_grad_(True)


def _settings(model: nn.Module, config: TowersConfig) -> dict[str, str]:
    """What is trained of each tower that a model has."""
    settings = zip(TOWERS, (config.vision, config.qformer, config.llm), strict=True)
    return {name: setting for name, setting in settings if hasattr(model, name)}


def trained_and_frozen(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Numbers of trained and frozen parameters by tower; what belongs to none is called joints."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        tower = next((tower for tower in TOWERS if f"{tower}." in name), "joints")
        trained, frozen = counts.get(tower, (0, 0))
        size = getattr(parameter, "ds_numel", parameter.numel())
        counts[tower] = (trained + size, frozen) if parameter.requires_grad else (trained, frozen + size)
    return counts


def set_modes(model: nn.Module, training: bool) -> None:
    """Training mode for what is trained, evaluation mode for what is frozen, whatever stands beside it.

    A frozen module has no dropout, drop path or drawn noise. The layer norm over the image features is trained with the
    Q-Former, so it makes no trained tower of a frozen image encoder. Normalisation by running statistics (BatchNorm)
    keeps those of the checkpoint even where its weights are trained: each rank would gather others.
    """
    model.train(training)
    for tower in (part for name, part in model.named_children() if name in TOWERS):
        trained = {part for part, weight in tower.named_parameters() if weight.requires_grad}
        if all(part.startswith("post_layernorm.") for part in trained):
            tower.eval()
    for module in model.modules():
        weights = list(module.parameters())
        frozen = bool(weights) and not any(weight.requires_grad for weight in weights)
        if frozen or (isinstance(module, _NormBase) and module.track_running_stats):
            module.eval()


def lora_targets(model: InstructBlip | Blip2Pretraining | Blip, config: TowersConfig) -> dict[str, set[str]]:
    """Linear layers that get LoRA adapters, by tower, with their names inside it; GPT-2's Conv1D counts as one.

    Raises:
        UserError: a pattern of `lora_targets` matches no layer of a LoRA tower, or a LoRA tower is left without.
    """
    settings = _settings(model, config)
    head = model.language_model.get_output_embeddings() if isinstance(model, InstructBlip) else None
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, LINEAR) and module is not head and (model.instruction_aware or not is_text(f"{name}."))
    ]
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
            setting = {"vision_model": "vision", "qformer": "qformer", "language_model": "llm"}[tower]
            reason = (
                "no pattern of towers.lora_targets matches a layer of it"
                if config.lora_targets
                else f"it has no linear layer; set towers.{setting}=frozen or full"
            )
            raise UserError(f"{tower} is to be trained by LoRA, but {reason}")
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
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=sorted(targets),
        fan_in_fan_out=any(isinstance(tower.get_submodule(name), Conv1D) for name in targets),
    )
    inject_adapter_in_model(lora, tower)


def merge_lora(model: nn.Module) -> None:
    """Merge LoRA into the weights, in place; call on every rank, since ZeRO 3 shards them.

    The model computes what it computed before; LoRA stays beside the weights, without effect.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            with _gathered(list(module.parameters())):
                module.merge()


def _gathered(weights: list[nn.Parameter]) -> AbstractContextManager[Any]:
    """Weights that ZeRO 3 shards are whole in here, and what the first rank makes of them stays."""
    if not any(hasattr(weight, "ds_id") for weight in weights):
        return nullcontext()
    import deepspeed  # here, as a model that is only asked needs none of it

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(weights, modifier_rank=0)
    return gathered


def without_lora(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that they have in a model without LoRA; LoRA's own are left out."""
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}
