"""What happens before a model is built: the settings are checked, and the data converted and looked at.

What can be wrong with a run before its data are there is said before they are converted, which may take hours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from instructkit.config.settings import ModelConfig, RunConfig
from instructkit.data.mixture import Mixture
from instructkit.models.load.look import look_for_model
from instructkit.models.recompute import check_compiler
from instructkit.runs.run import Run
from instructkit.runs.waiting import on_first_rank
from instructkit.training.data import groups_of
from instructkit.training.datasets import check_media, prepare_data
from instructkit.training.deepspeed_config import users_settings
from instructkit.training.length import mixture_of, with_steps


def prepare_run(
    run: Run[RunConfig],
    mixture: Callable[[RunConfig], Mixture] = mixture_of,
    look: Callable[[ModelConfig], None] = look_for_model,
) -> RunConfig:
    """Check the settings, convert what is not converted yet, and look for the media; call on every rank.

    Args:
        run: the run; its settings get `max_steps` where they say `epochs`.
        mixture: gives the run's mixture of its converted datasets.
        look: looks for the model, by its settings.

    Returns:
        The run's settings.

    Raises:
        UserError: the model is not there, settings cannot be honoured, or data are missing.
    """
    on_first_rank(lambda: _check(run.config, run.world, look))
    on_first_rank(lambda: prepare_data(run.config, run.say))
    run.config = with_steps(run.config, mixture)
    on_first_rank(lambda: check_media(run.config, run.say))
    return run.config


def _check(config: RunConfig, world: int, look: Callable[[ModelConfig], None]) -> None:
    groups_of(config.training, world)
    if config.training.epochs is None:  # the file may name the steps, which are known when the data are
        users_settings(config.training)
    if config.training.compile:
        check_compiler("cuda" if torch.cuda.is_available() else "cpu")
    look(config.model)
