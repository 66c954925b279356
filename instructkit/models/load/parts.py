"""What the parts of a joined model have in common: a name that is read, and what of it starts from random weights."""

from __future__ import annotations

import pickle
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    Blip2Config,
    BlipConfig,
    InstructBlipConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from instructkit.errors import UserError
from instructkit.models.load.find import find_model, place_of
from instructkit.models.load.tokenizer_files import open_tokenizer

JOINED = "instructkit"
"""`model_type` on disk of a model that plain transformers cannot build: its image encoder is not InstructBLIP's, or it
is a BLIP whose encoder and decoder share tensors."""

M = TypeVar("M", bound=PreTrainedModel)
_FAILURES = (
    pickle.UnpicklingError,
    struct.error,
    SafetensorError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    ImportError,
    RuntimeError,
    AttributeError,
)


class Loaded(NamedTuple):
    """A part of a model that came from a checkpoint.

    Attributes:
        module: the part.
        fresh: names of its parameters that the checkpoint lacks, or has in another shape.
    """

    module: Any
    fresh: frozenset[str]


def read_config(name: str, part: str) -> PreTrainedConfig:
    """The configuration of a checkpoint.

    Args:
        name: folder, published size or hub name.
        part: setting that named it, for the message.

    Raises:
        UserError: nothing can be read there, or only the trained part of a model lies there.
    """
    place = place_of(name)
    if (Path(place) / "instructkit.json").is_file():
        raise UserError(
            f"model.{part}={name}: that folder holds only what a run trained; name its parts as model.vision, "
            "model.qformer and model.llm, or write it whole first (instructkit export)"
        )
    find_model(name, part)
    with failing(f"model.{part}={name}", "no model can be read from there"), quiet():
        content, _ = PreTrainedConfig.get_config_dict(place)
        if content.get("model_type") == JOINED:
            return joined_config(content)
        return AutoConfig.from_pretrained(place)


def joined_config(content: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a saved model that plain transformers cannot build."""
    kinds = {"Blip": BlipConfig, "Blip2Pretraining": Blip2Config}
    kind = kinds.get("".join(content.get("architectures") or ()), InstructBlipConfig)
    config: PreTrainedConfig = kind.from_dict({**content, "model_type": kind.model_type})
    return config


def has_qformer(config: PreTrainedConfig) -> bool:
    """Whether a checkpoint holds image encoder, Q-Former and LLM, as BLIP-2's and InstructBLIP's do."""
    return config.model_type in ("blip-2", "instructblip")


def read_part(kind: type[M], name: str, part: str, **options: Any) -> Loaded:
    """Load a module by `from_pretrained`; tensors of other shapes, like missing ones, start from random weights.

    Raises:
        UserError: it cannot be loaded.
    """
    with failing(f"model.{part}={name}", f"no {part} can be loaded from there"), quiet():
        module, info = kind.from_pretrained(
            place_of(name), output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    lost = {*info["missing_keys"], *(key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"])}
    own = {key for key, _ in module.named_parameters()}
    return Loaded(module, frozenset(lost & own))


@contextmanager
def failing(where: str, what: str) -> Iterator[None]:
    """One line for people instead of what transformers raises on a model that it cannot load."""
    try:
        yield
    except _FAILURES as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())[:300] or error.__class__.__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "its weights are pickled and hold more than tensors, which could run code; ask for safetensors"
        raise UserError(f"{where}: {what} ({reason})") from error


def read_tokenizer(name: str, part: str, folder: str = "") -> PreTrainedTokenizerBase:
    """The tokeniser of a checkpoint.

    Args:
        name: as for `read_config`.
        part: likewise.
        folder: where it lies below the checkpoint's.

    Raises:
        UserError: none can be read there.
    """
    with failing(f"model.{part}={name}", "its tokenizer cannot be loaded"), quiet():
        return open_tokenizer(place_of(name), subfolder=folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' report on tensors it did not need to itself: the parts' own lines say what matters."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def summary(fresh: Iterable[str]) -> str:
    """Names of parameters in one line: layers together, weight and bias together, each with its number of tensors."""
    stems = (re.sub(r"\.\d+(?=\.)", ".*", name) for name in sorted(fresh))
    counts = Counter(re.sub(r"\.(weight|bias)$", "", stem) for stem in stems)
    return ", ".join(f"{stem} ({count})" if count > 1 else stem for stem, count in counts.items())


def seeded(seed: int) -> Any:
    """A context in which random weights follow from the seed, and nothing outside changes."""

    @contextmanager
    def fixed() -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield

    return fixed()
