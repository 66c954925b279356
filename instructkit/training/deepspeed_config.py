"""The DeepSpeed configuration of a run: what its settings come to, with the user's own file over it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
from deepspeed.runtime.config_utils import dict_raise_error_on_duplicate_keys

from instructkit.config.settings import TrainingConfig
from instructkit.errors import UserError
from instructkit.training.optimizers import optimizer_name

Tree = dict[str, Any]
AUTO = "auto"


def deepspeed_settings(config: TrainingConfig, width: int | None) -> Tree:
    """What `deepspeed.initialize` gets; call when the ranks have started.

    Args:
        config: settings of the run.
        width: of the model's hidden states, from which transformers derives bucket sizes that a file leaves to it as
            "auto"; None where the model has none, so that the file must give numbers.

    Raises:
        UserError: the settings or the user's file contradict each other, or DeepSpeed does not take the file.
    """
    merged = merged_settings(config, width)
    if config.deepspeed is not None:
        _check_by_deepspeed(merged, config.deepspeed)
    return merged


def merged_settings(config: TrainingConfig, width: int | None) -> Tree:
    """As `deepspeed_settings`, for as many ranks as WORLD_SIZE says, without asking DeepSpeed; no rank need run."""
    offload = {"device": "cpu"}
    zero: Tree = {"stage": config.zero_stage}
    if config.offload != "none":
        zero["offload_optimizer"] = offload
    if config.offload == "parameters":
        zero["offload_param"] = offload
    own = {
        "train_micro_batch_size_per_gpu": _groups(config),
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.gradient_clipping,
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own Adam for offloading is compiled at first use; torch's needs no compiler.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    theirs = {key: part for key, part in users_settings(config).items() if key not in ("optimizer", "scheduler")}
    return _over(own, _filled(theirs, config, width))


def users_settings(config: TrainingConfig) -> Tree:
    """What the user's own DeepSpeed file says, checked against the run's settings; nothing where there is no file.

    Raises:
        UserError: the file is missing or no JSON, or it contradicts a setting; an offload that the ZeRO stage lacks.
    """
    theirs = {} if config.deepspeed is None else _read(Path(config.deepspeed))
    agreed = _agreed(config)
    for key, value in _leaves(theirs):
        if key in ("optimizer", "scheduler") and value not in (AUTO, {}):
            raise UserError(f"{config.deepspeed}: {key} = {json.dumps(value)}, which is no object with a type")
        if value == AUTO:
            continue
        if key in agreed and not _same(value, agreed[key][0]):
            raise UserError(
                f"{config.deepspeed}: {key} = {json.dumps(value)}, but {agreed[key][1]}; change one of the two, or "
                f'write "auto" in the file'
            )
        if key not in agreed and key.startswith(("optimizer.", "scheduler.")):
            raise UserError(
                f"{config.deepspeed}: {key} = {json.dumps(value)}, but the run's {key.split('.')[0]} "
                f"({agreed[key.split('.')[0] + '.type'][1]}) has no such setting; remove it from the file"
            )
    for name, part, least in (("optimizer", "offload_optimizer", 1), ("parameters", "offload_param", 3)):
        device = _get(theirs, f"zero_optimization.{part}.device")
        asked = f"zero_optimization.{part} in {config.deepspeed}"
        if config.offload == "parameters" or config.offload == name:
            asked = f"training.offload={config.offload}"
            if device == "none":
                raise UserError(
                    f'{config.deepspeed}: zero_optimization.{part}.device = "none", but {asked}; change one of the two'
                )
        elif device in (None, "none", AUTO):
            continue
        if config.zero_stage < least:
            raise UserError(
                f"{asked} needs training.zero_stage={least}{' or more' if least < 3 else ''}, which is "
                f"{config.zero_stage}"
            )
    return theirs


def offloads_optimizer(settings: Tree) -> bool:
    """Whether the optimizer works on the CPU under a DeepSpeed configuration."""
    return _get(settings, "zero_optimization.offload_optimizer.device") not in (None, "none")


def _agreed(config: TrainingConfig) -> dict[str, tuple[Any, str]]:
    """Keys of a DeepSpeed file that settings of the run decide: the value, and the setting in words."""
    peak, ranks = config.learning_rate, _ranks()
    name = optimizer_name(config)
    precision = f"training.precision = {config.precision}"
    no_fp16 = f"{precision}, which is fp32 or bf16: no run computes in fp16 or by autocast"
    schedule = "a warm-up and a cosine, training.warmup_steps, warmup_from and min_learning_rate"
    return {
        "train_batch_size": (config.batch_size, f"training.batch_size = {config.batch_size}"),
        "train_micro_batch_size_per_gpu": (
            _groups(config),
            f"training.batch_size = {config.batch_size} over {ranks} rank{'s' if ranks > 1 else ''} and "
            f"training.accumulation = {config.accumulation} is {_groups(config)}",
        ),
        "gradient_accumulation_steps": (config.accumulation, f"training.accumulation = {config.accumulation}"),
        "gradient_clipping": (config.gradient_clipping, f"training.gradient_clipping = {config.gradient_clipping}"),
        "bf16.enabled": (config.precision == "bf16", precision),
        "fp16.enabled": (False, no_fp16),
        "amp.enabled": (False, no_fp16),
        "torch_autocast.enabled": (False, no_fp16),
        "zero_optimization.stage": (config.zero_stage, f"training.zero_stage = {config.zero_stage}"),
        "zero_allow_untested_optimizer": (True, "the run's optimizer is PyTorch's"),
        "zero_force_ds_cpu_optimizer": (False, "the run's optimizer is PyTorch's"),
        "optimizer.type": (name, f"the run's optimizer is {name}"),
        "optimizer.params.lr": (peak, f"training.learning_rate = {peak}"),
        "optimizer.params.betas": (list(config.betas), f"training.betas = {list(config.betas)}"),
        "optimizer.params.eps": (1e-8, "the run's is 1e-08"),
        "optimizer.params.weight_decay": (config.weight_decay, f"training.weight_decay = {config.weight_decay}"),
        "scheduler.type": ("WarmupCosineLR", f"the run's schedule is {schedule}"),
        "scheduler.params.warmup_type": ("linear", "the run's warm-up is linear"),
        "scheduler.params.total_num_steps": (config.max_steps, f"training.max_steps = {config.max_steps}"),
        "scheduler.params.warmup_num_steps": (config.warmup_steps, f"training.warmup_steps = {config.warmup_steps}"),
        "scheduler.params.warmup_min_ratio": (
            config.warmup_from / peak,
            f"training.warmup_from = {config.warmup_from}",
        ),
        "scheduler.params.cos_min_ratio": (
            config.min_learning_rate / peak,
            f"training.min_learning_rate = {config.min_learning_rate}",
        ),
    }


def _filled(theirs: Tree, config: TrainingConfig, width: int | None) -> Tree:
    """The user's settings with every "auto" replaced, bucket sizes as transformers does it."""
    values = {key: value for key, (value, _) in _agreed(config).items()}
    if width is not None:
        values |= {
            "zero_optimization.reduce_bucket_size": width * width,
            "zero_optimization.stage3_prefetch_bucket_size": int(0.9 * width * width),
            "zero_optimization.stage3_param_persistence_threshold": 10 * width,
        }
    values |= {
        "zero_optimization.offload_optimizer.device": "none" if config.offload == "none" else "cpu",
        "zero_optimization.offload_param.device": "cpu" if config.offload == "parameters" else "none",
    }

    def fill(part: Any, name: str) -> Any:
        if isinstance(part, dict):
            return {key: fill(value, f"{name}.{key}" if name else key) for key, value in part.items()}
        if part != AUTO:
            return part
        if name not in values:
            raise UserError(f'{config.deepspeed}: {name} = "auto", but nothing in a run says what it is; write a value')
        return values[name]

    filled: Tree = fill(theirs, "")
    return filled


def _read(path: Path) -> Tree:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=dict_raise_error_on_duplicate_keys)
    except OSError as error:
        raise UserError(f"training.deepspeed={path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: no DeepSpeed configuration can be read from it ({error})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a DeepSpeed configuration is a JSON object, not {json.dumps(tree)[:50]}")
    return tree


def _check_by_deepspeed(settings: Tree, file: str) -> None:
    try:
        DeepSpeedConfig(settings)
    except (ValueError, TypeError, AttributeError, AssertionError, DeepSpeedConfigError) as error:
        reason = " ".join(str(error).split("For further information")[0].split())
        raise UserError(f"{file}: DeepSpeed does not take it ({reason})") from error


def _groups(config: TrainingConfig) -> int:
    """Image groups a micro-batch and rank."""
    return max(1, config.batch_size // (_ranks() * config.accumulation))


def _ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _leaves(tree: Tree, name: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{name}{key}.")
        else:
            yield f"{name}{key}", value


def _get(tree: Any, name: str) -> Any:
    for key in name.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _over(tree: Tree, other: Tree) -> Tree:
    """Two trees as one; the other's leaves win."""
    both = dict(tree)
    for key, value in other.items():
        mine = both.get(key)
        both[key] = _over(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return both


def _same(value: Any, wanted: Any) -> bool:
    """Equal in type and, for floating-point numbers, to twelve digits: ratios are quotients."""
    if isinstance(value, bool) or isinstance(wanted, bool) or not isinstance(wanted, (int, float)):
        return type(value) is type(wanted) and bool(value == wanted)
    return isinstance(value, (int, float)) and abs(value - wanted) <= 1e-12 * abs(wanted)
