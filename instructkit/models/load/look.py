"""Whether the model of a run can be there, before data are converted: configurations are read, weights are not."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedConfig

from instructkit.config.settings import ModelConfig, WholeModelConfig
from instructkit.errors import UserError
from instructkit.models.load.bases import lying
from instructkit.models.load.blip_tasks import blip_tasks
from instructkit.models.load.find import find_model
from instructkit.models.load.join import base_config
from instructkit.models.load.lavis import is_lavis
from instructkit.models.load.llm import check_quantiser, llm_config
from instructkit.models.load.packages import PACKAGE
from instructkit.models.load.parts import has_qformer, read_config
from instructkit.models.load.trained import Facts, facts_of


def look_for_model(settings: WholeModelConfig) -> None:
    """Look for a model, its parts and what a trained part stands on.

    Args:
        settings: of a training run (`ModelConfig`), where `nano` and parts can be named, or of an evaluation.

    Raises:
        UserError: one is not there, or is of a kind that cannot be taken.
    """
    parts = settings if isinstance(settings, ModelConfig) else None
    if parts is None and blip_tasks(settings.name):
        return
    joined = parts is not None and parts.joined
    if parts is None or settings.name != "nano":
        _look_for_whole(settings.name, joined, ())
    if parts is None:
        return
    for part in ("vision", "qformer", "llm"):
        name = getattr(parts, part)
        if name is not None and (facts := facts_of(Path(name))) is not None:
            _look_for_bases(Path(name), facts, ())
        elif name is not None:
            _ = llm_config(name) if part == "llm" else read_config(name, part)
    if parts.llm_bits is not None:
        check_quantiser(parts.llm_bits)


def whole_config(name: str) -> PreTrainedConfig:
    """The configuration of a whole model.

    Raises:
        UserError: nothing can be read there, or it is no InstructBLIP and no BLIP-2.
    """
    config = read_config(name, "name")
    if not has_qformer(config):
        raise UserError(
            f"model.name={name}: a {config.model_type}, no InstructBLIP or BLIP-2; its parts are taken by "
            "model.vision, model.qformer and model.llm, such as model.name=nano model.qformer=..."
        )
    return config


def _look_for_whole(name: str, joined: bool, above: tuple[Path, ...]) -> None:
    """`above` are the folders that led here by their bases; one that is its own is told where it is loaded."""
    here = Path(name)
    if is_lavis(name) and here.is_file():
        return
    facts = None if joined else facts_of(here)
    if facts is not None:
        _look_for_bases(here, facts, above)
    else:
        _ = base_config(name) if joined else whole_config(name)


def _look_for_bases(folder: Path, facts: Facts, above: tuple[Path, ...]) -> None:
    if folder.resolve() in above:
        return
    for part, base in facts.bases.items():
        if base.relative is not None:
            place = lying(base, folder)[0]
            if part == "name" and place.is_dir() and not facts.model.joined:
                _look_for_whole(str(place), False, (*above, folder.resolve()))
        elif not base.place.startswith(PACKAGE):
            find_model(base.place, part, f"{folder}: the base {base.place}")
