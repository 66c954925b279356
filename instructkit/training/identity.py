"""What a run is recognised by: whether its folder holds the same result already, and what may go on from where."""

from __future__ import annotations

from typing import Any

from instructkit.config.settings import RunConfig, to_dict
from instructkit.training.datasets import Say, data_digest, media_digests, splits_of, training_splits
from instructkit.training.deepspeed_config import users_settings


def identity(config: RunConfig, say: Say) -> dict[str, Any]:
    """What a run's result follows from: settings, converted data, pictures; call on one rank."""
    return {
        "config": settings_of(config),
        "data": data_digest(config, splits_of(config)),
        "media": media_digests(config, say),
    }


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The settings that a result depends on; a DeepSpeed file counts by its content."""
    settings = {key: value for key, value in to_dict(config).items() if key not in ("output", "resume", "project")}
    settings["training"]["deepspeed"] = users_settings(config.training)
    del settings["training"]["epochs"]  # max_steps says it
    return settings


def checkpoint_facts(config: RunConfig, world: int) -> dict[str, Any]:
    """What a checkpoint and a run that goes on from it must agree on: all that a step's loss depends on."""
    free = {
        "training": ("log_every", "checkpoint_every", "keep_checkpoints", "activation_checkpointing"),
        "data": ("root", "raw", "workers", "text"),
    }
    settings = {name: value for name, value in settings_of(config).items() if name != "evaluation"}
    for group, names in free.items():
        settings[group] = {name: value for name, value in settings[group].items() if name not in names}
    return {"settings": settings, "data": data_digest(config, training_splits(config)), "ranks": world}
