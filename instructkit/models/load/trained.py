"""What a run trained, on disk: the trained weights and the base model's name, instead of a copy of what stayed frozen.

model/instructkit.json            the base by place and digest, and what of it was trained
model/trained.safetensors         weights trained in full, under the model's own names
model/adapters/<tower>/           LoRA of a tower, as peft writes it: `PeftModel.from_pretrained(tower, folder)`
model/tokenizers/{llm,qformer}/   of a model joined from parts

Of a model joined from parts the weights that started at random are kept as well, trained or not: no checkpoint has
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import msgspec
import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from instructkit.config.settings import ModelConfig, TowersConfig
from instructkit.errors import UserError
from instructkit.files import write_atomically
from instructkit.models.batches import Texts
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.bases import Base, bases_of, find_base, with_places
from instructkit.models.load.packages import PACKAGE, shipped
from instructkit.models.load.tokenizer_files import open_tokenizer
from instructkit.models.resolution import set_image_size
from instructkit.models.towers import without_lora

FACTS = "instructkit.json"
TRAINED = "trained.safetensors"
ADAPTER = "adapter_model.safetensors"
TOKENIZERS = "tokenizers"
_PEFT = "base_model.model."
_PART_OF = {"vision_model": "vision", "qformer": "qformer", "language_model": "llm"}


class Facts(msgspec.Struct, forbid_unknown_fields=True):
    """What `instructkit.json` holds.

    Attributes:
        base: the model in words.
        model: settings of the run, with absolute paths.
        towers: settings of the run.
        bases: the checkpoints that the model was made of, by setting.
    """

    base: str
    model: ModelConfig
    towers: TowersConfig
    bases: dict[str, Base] = {}

    @property
    def package(self) -> str | None:
        """The Python package that would be imported for the LLM, if one is named that does not ship it as a file."""
        places = [self.model.llm or "", *(base.place for base in self.bases.values())]
        named = (place for place in places if place.startswith(PACKAGE) and shipped(place) is None)
        return next((place.removeprefix(PACKAGE) for place in named), None)

    def places(self, folder: Path) -> dict[str, str]:
        """Where the bases lie now, by setting.

        Raises:
            UserError: one is not there, or is another than the one that was trained on.
        """
        return {part: find_base(base, folder) for part, base in self.bases.items()}

    def found(self, places: dict[str, str]) -> ModelConfig:
        """The settings with the places where the bases lie now."""
        return with_places(self.model, places)


def save_trained(
    folder: Path,
    model: InstructBlip,
    state: Mapping[str, Tensor],
    settings: ModelConfig,
    towers: TowersConfig,
    texts: Texts | None = None,
) -> None:
    """Write the trained part of a model that came from `model.name`.

    Args:
        folder: made if missing.
        model: what was trained.
        state: its trained parameters, whole, under the names that they have in training, LoRA's among them.
        settings: which model.
        towers: what of it was trained.
        texts: tokenisers, kept where the model was joined from parts.
    """
    bases = bases_of(settings, folder)
    settings = with_places(settings, {part: base.place for part, base in bases.items()})
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in without_lora(state).items()}, folder / TRAINED)
    for name, part in _PART_OF.items():
        own = {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
        if any(".lora_" in key for key in own):
            base = getattr(settings, part) or settings.name
            _save_adapter(folder / "adapters" / name, getattr(model, name), own, base)
    if settings.joined and texts is not None:
        texts.llm.save_pretrained(folder / TOKENIZERS / "llm")
        if texts.qformer is not None:
            texts.qformer.save_pretrained(folder / TOKENIZERS / "qformer")
    facts = Facts(settings.base, settings, towers, bases)
    write_atomically(folder / FACTS, msgspec.json.format(msgspec.json.encode(facts)) + b"\n")


def facts_of(folder: Path) -> Facts | None:
    """The facts of a folder that `save_trained` wrote, None for other folders.

    Raises:
        UserError: they cannot be read.
    """
    path = folder / FACTS
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Facts)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from error


def load_tokenizers(folder: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """The tokenisers of LLM and Q-Former in a folder that a run wrote.

    Raises:
        UserError: they cannot be read.
    """
    return load_tokenizer(folder / "llm"), load_tokenizer(folder / "qformer")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A tokeniser that a run wrote.

    Raises:
        UserError: it cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, where a tokeniser should lie")
    try:
        return open_tokenizer(str(folder))
    except Exception as error:  # the tokenizers package raises nothing more special
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: no tokeniser can be read there ({reason})") from error


def apply_trained(model: InstructBlip, folder: Path, facts: Facts) -> None:
    """Put what `save_trained` wrote into the base model, in place.

    LoRA is merged, except into quantised weights: rounded once more they would give other logits than in training, so
    there it stays beside them.

    Raises:
        UserError: a file is missing or torn, or does not fit the model.
    """
    model.config.instruction_aware = facts.model.instruction_aware
    if facts.model.image_size is not None:
        set_image_size(model.vision_model, model.config.vision_config, facts.model.image_size)
    own, kept = dict(model.named_parameters()), weights_of(folder)
    if lost := model.fresh - kept.keys():
        raise UserError(
            f"{folder / TRAINED}: lacks {len(lost)} weights that no part of {facts.base} has, among them {min(lost)}"
        )
    with torch.no_grad():
        for name, tensor in kept.items():
            if name not in own or own[name].shape != tensor.shape:
                raise UserError(f"{folder / TRAINED}: {name} does not fit the base {facts.base}")
            own[name].copy_(tensor)
    merge_adapters(model, folder, facts)


def weights_of(folder: Path) -> dict[str, Tensor]:
    """What a run trained in full, and what of its model no checkpoint has, by name.

    Raises:
        UserError: the file is missing or torn.
    """
    return _read(folder / TRAINED)


def merge_adapters(parts: Any, folder: Path, facts: Facts) -> None:
    """Merge LoRA into its towers, in place.

    Args:
        parts: what has towers under their names in a whole model; others are left out.
        folder: that `save_trained` wrote.
        facts: of the folder.

    Raises:
        UserError: a file is missing or torn, or does not fit.
    """
    for adapter in sorted(folder.glob("adapters/*")):
        if hasattr(parts, adapter.name):
            _load_adapter(parts, adapter, facts)


def _load_adapter(model: Any, adapter: Path, facts: Facts) -> None:
    tower, weights = getattr(model, adapter.name), _read(adapter / ADAPTER)
    try:
        lora = LoraConfig.from_pretrained(str(adapter))
        lora.exclude_modules = None
        wrapped = PeftModel(tower, lora, low_cpu_mem_usage=True)  # on the meta device nothing is drawn at random
        wide = {name: tensor.float() for name, tensor in weights.items()}
        unexpected = set_peft_model_state_dict(wrapped, wide, low_cpu_mem_usage=True).unexpected_keys
        if wrong := unexpected or [name for name, weight in wrapped.named_parameters() if weight.is_meta]:
            raise ValueError(f"{'unknown' if unexpected else 'missing'}: {wrong[0]}")
        if not getattr(tower, "is_quantized", False):
            setattr(model, adapter.name, wrapped.merge_and_unload().requires_grad_(True))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{adapter}: does not fit the base {facts.base} ({reason})") from error


def _save_adapter(folder: Path, tower: Any, state: Mapping[str, Tensor], base: str) -> None:
    """Write LoRA as peft does.

    Args:
        folder: made if missing; has the tower's name.
        tower: that LoRA was put into.
        state: trained parameters under their names in the tower.
        base: name of the checkpoint that the tower came from.
    """
    lora = copy(tower.peft_config["default"])
    lora.base_model_name_or_path, lora.inference_mode = base, True
    lora.target_modules = sorted({name.split(".lora_")[0] for name in state if ".lora_" in name})
    # In the whole model peft would find these layers as well, by the ends of their names, but none of their weights.
    lora.exclude_modules = rf"(.*\.)?{folder.name}\..*"
    lora.save_pretrained(str(folder))
    weights = get_peft_model_state_dict(tower, dict(state), save_embedding_layers=False)
    save_file({_PEFT + name: tensor.contiguous() for name, tensor in weights.items()}, folder / ADAPTER)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); the run that wrote it goes on with resume=true") from error
