"""What can be wrong with a run before its data are there: said before they are converted, which may take hours."""

from __future__ import annotations

import torch

from instructkit.config import RunConfig
from instructkit.models.load.look import look_for_model
from instructkit.models.recompute import check_compiler
from instructkit.runs.run import Run
from instructkit.runs.waiting import on_first_rank
from instructkit.training.data import groups_of
from instructkit.training.deepspeed_config import users_settings


def check_before_data(run: Run[RunConfig]) -> None:
    """Look for the model, and compare the settings with the ranks and with this machine; call on every rank.

    Raises:
        UserError: the model is not there, or settings cannot be honoured.
    """
    on_first_rank(lambda: _check(run.config, run.world))


def _check(config: RunConfig, world: int) -> None:
    groups_of(config.training, world)
    if config.training.epochs is None:  # the file may name the steps, which are known when the data are
        users_settings(config.training)
    if config.training.compile:
        check_compiler("cuda" if torch.cuda.is_available() else "cpu")
    look_for_model(config.model)
