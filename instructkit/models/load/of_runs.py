"""Parts from a folder that holds only what a run trained: the base's part with the run's weights in it.

Everything else that names a part is read by `load_vision`, `load_qformer` and `load_llm`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig

from instructkit.config.settings import ModelConfig
from instructkit.errors import UserError
from instructkit.models.load.bases import find_base
from instructkit.models.load.lavis import is_lavis
from instructkit.models.load.llm import Llm, load_llm
from instructkit.models.load.nano import Nano
from instructkit.models.load.packages import PACKAGE
from instructkit.models.load.parts import Loaded, read_config
from instructkit.models.load.qformer import Queries, load_qformer, may_be_made_anew
from instructkit.models.load.trained import TOKENIZERS, Facts, facts_of, load_tokenizers, merge_adapters, weights_of
from instructkit.models.load.vision import Vision, load_vision, vision_shape
from instructkit.models.resolution import set_image_size


class _Run(NamedTuple):
    """Where a part of a run's model came from.

    Attributes:
        folder: of what the run trained.
        facts: of that folder.
        base: name of the checkpoint that the part came from; None for `nano`.
    """

    folder: Path
    facts: Facts
    base: str | None

    @property
    def model(self) -> ModelConfig:
        """The run's settings."""
        return self.facts.model

    def nano(self, dtype: torch.dtype) -> Nano:
        """The towers that the run drew at random, before its weights are put in."""
        return Nano(load_tokenizers(self.folder / TOKENIZERS), dtype, self.model.queries)


def vision_of(name: str, dtype: torch.dtype, layer: int | None = None) -> Vision:
    """`load_vision`, also of a folder that holds only what a run trained."""
    if (run := _run(name, "vision")) is None:
        return load_vision(name, dtype, layer)
    if layer not in (None, run.model.vision_layer):
        raise UserError(
            f"model.vision_layer={layer}: the encoder of {name} was trained on with layer {run.model.vision_layer}; "
            "name the encoder's own checkpoint as model.vision"
        )
    base = run.nano(dtype).vision(None) if run.base is None else vision_of(run.base, dtype, run.model.vision_layer)
    if (size := run.model.image_size) is not None:
        set_image_size(base.loaded.module, base.config, size)
    (loaded,) = _with_weights(run, "vision", {"vision_model": base.loaded})
    return base._replace(loaded=loaded)


def llm_of(name: str, dtype: torch.dtype, bits: int | None = None) -> Llm:
    """`load_llm`, also of a folder that holds only what a run trained."""
    if (run := _run(name, "llm")) is None:
        return load_llm(name, dtype, bits)
    if run.base is not None and run.base.startswith(PACKAGE):
        raise UserError(f"model.llm={name}: its LLM comes from {run.base}; name that as model.llm")
    base = run.nano(dtype).llm(bits) if run.base is None else llm_of(run.base, dtype, bits)
    (loaded,) = _with_weights(run, "llm", {"language_model": base.loaded})
    return base._replace(loaded=loaded)


def qformer_of(
    name: str, encoder_width: int, llm: PreTrainedConfig, queries: int, vocabulary: int, dtype: torch.dtype
) -> Queries:
    """`load_qformer`, also of a folder that holds only what a run trained."""
    if (run := _run(name, "qformer")) is None:
        return load_qformer(name, encoder_width, llm, queries, vocabulary, dtype)
    if run.base is None:
        base = run.nano(dtype).qformer(encoder_width, llm)
    else:
        kept = run.folder / TOKENIZERS / "qformer"
        words = len(load_tokenizers(run.folder / TOKENIZERS)[1]) if kept.is_dir() else vocabulary
        base = qformer_of(run.base, encoder_width, llm, run.model.queries or queries, words, dtype)
    adapter = run.folder / "adapters" / "qformer"
    if adapter.is_dir() and encoder_width != (made_for := _encoder_width(run)):
        raise UserError(
            f"model.qformer={name}: its LoRA belongs to an image encoder of width {made_for}, this one's is "
            f"{encoder_width}; name the run as model.vision, too, or write it whole first (instructkit export)"
        )
    loaded, joints = _with_weights(run, "qformer", {"qformer": base.loaded, "": base.joints})
    tokenizer = base.tokenizer
    if tokenizer is None and (run.folder / TOKENIZERS / "qformer").is_dir():
        tokenizer = load_tokenizers(run.folder / TOKENIZERS)[1]
    return base._replace(loaded=loaded, joints=joints, tokenizer=tokenizer)


def _encoder_width(run: _Run) -> int:
    """Width of the images that the run's Q-Former read."""
    if (whole := _run(str(run.folder), "vision")) is None or whole.base is None:
        return int(run.nano(torch.float32).config.vision_config.hidden_size)
    if (below := _run(whole.base, "vision")) is not None:
        return _encoder_width(below)
    return int(vision_shape(whole.base, run.model.vision_layer, read_config)[0].hidden_size)


def _run(name: str, part: str) -> _Run | None:
    folder = Path(name)
    if (facts := facts_of(folder)) is None:
        return None
    base = facts.bases.get(part) or facts.bases.get("name")
    place = None if base is None else find_base(base, folder)
    if place is not None and is_lavis(place):
        raise UserError(
            f"model.{part}={name}: stands on {place}, a file of LAVIS; write it whole first (instructkit export {name} "
            "OUT) and name that folder"
        )
    return _Run(folder, facts, place)


def _with_weights(run: _Run, part: str, parts: dict[str, Loaded]) -> list[Loaded]:
    """Parts of the base with what the run trained of them; tensors for another width stay as new as they are.

    Args:
        run: whose weights.
        part: setting that named it, for messages.
        parts: by their name in a whole model, '' for what belongs to no tower.
    """
    holder = nn.Module()
    fresh = set()
    for tower, loaded in parts.items():
        stem = f"{tower}." if tower else ""
        fresh |= {stem + name for name in loaded.fresh}
        if tower:
            holder.add_module(tower, loaded.module)
        else:
            for name, child in loaded.module.named_children():
                holder.add_module(name, child)
            for name, parameter in loaded.module.named_parameters(recurse=False):
                holder.register_parameter(name, parameter)
    own: dict[str, Any] = dict(holder.named_parameters())
    for name, tensor in weights_of(run.folder).items():
        if name not in own:
            continue
        if own[name].shape == tensor.shape:
            own[name].data.copy_(tensor)
            fresh.discard(name)
        elif name not in fresh or not may_be_made_anew(name):
            raise UserError(
                f"model.{part}={run.folder}: {name} is {list(tensor.shape)}, the base's {list(own[name].shape)}"
            )
    merge_adapters(holder, run.folder, run.facts)
    found = []
    for tower, loaded in parts.items():
        module = getattr(holder, tower) if tower else loaded.module
        stem = f"{tower}." if tower else ""
        names = {stem + name: name for name, _ in module.named_parameters()}
        found.append(Loaded(module, frozenset(names[name] for name in fresh & names.keys())))
    return found
