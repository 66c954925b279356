"""What a run trained, on disk: the trained weights and the base model's name, in place of a copy of what stayed frozen.

model/instructkit.json            the base by place and digest, and what of it was trained
model/trained.safetensors         weights trained in full, under the model's own names
model/adapters/<tower>/           LoRA of a tower, as peft writes it: `PeftModel.from_pretrained(tower, folder)`
model/tokenizers/{llm,qformer}/   of a model joined from parts

Of a model joined from parts the weights that started at random are kept as well, trained or not: no checkpoint has
them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from instructkit.config import ModelConfig, TowersConfig
from instructkit.errors import UserError
from instructkit.files import write_atomically
from instructkit.models.batches import Texts
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.bases import Base, bases_of, find_base, with_places
from instructkit.models.load.llm import PACKAGE
from instructkit.models.towers import TOWERS, lora_step

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
        """The Python package that the LLM is to come from, if one is named."""
        places = [self.model.llm or "", *(base.place for base in self.bases.values())]
        return next((place.removeprefix(PACKAGE) for place in places if place.startswith(PACKAGE)), None)

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
    state: Mapping[str, Tensor],
    model: ModelConfig,
    towers: TowersConfig,
    texts: Texts | None = None,
    transposed: Collection[str] = (),
) -> None:
    """Write the trained part of a model that came from `model.name`.

    Args:
        folder: made if missing.
        state: trained parameters under the names that they have in training, LoRA's among them.
        model: which model.
        towers: what of it was trained.
        texts: tokenisers, kept where the model was joined from parts.
        transposed: towers whose LoRA stands beside transposed matrices (`transposed_towers`).
    """
    bases = bases_of(model, folder)
    model = with_places(model, {part: base.place for part, base in bases.items()})
    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        name.replace(".base_layer.", "."): tensor.contiguous() for name, tensor in state.items() if ".lora_" not in name
    }
    save_file(plain, folder / TRAINED)
    for tower in TOWERS:
        pairs = {
            name.removeprefix(f"{tower}.").replace(".default.", "."): tensor.contiguous()
            for name, tensor in state.items()
            if ".lora_" in name and name.startswith(f"{tower}.")
        }
        if pairs:
            base = getattr(model, _PART_OF[tower]) or model.name
            _save_adapter(folder / "adapters" / tower, pairs, base, towers, tower in transposed)
    if model.joined and texts is not None:
        texts.llm.save_pretrained(folder / TOKENIZERS / "llm")
        texts.qformer.save_pretrained(folder / TOKENIZERS / "qformer")
    facts = Facts(model.base, model, towers, bases)
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
        UserError: they are not there.
    """
    try:
        return AutoTokenizer.from_pretrained(folder / "llm"), AutoTokenizer.from_pretrained(folder / "qformer")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: no tokenisers of LLM and Q-Former can be read there ({reason})") from error


def apply_trained(model: InstructBlip, folder: Path, facts: Facts) -> None:
    """Put what `save_trained` wrote into the base model, in place.

    LoRA is merged, except into quantised weights: rounded once more they would give other logits than in training, so
    there it stays beside them.

    Raises:
        UserError: a file is missing or torn, or does not fit the model.
    """
    model.config.instruction_aware = facts.model.instruction_aware
    own, kept = dict(model.named_parameters()), _read(folder / TRAINED)
    if lost := model.fresh - kept.keys():
        raise UserError(
            f"{folder / TRAINED}: lacks {len(lost)} weights that no part of {facts.base} has, among them {min(lost)}"
        )
    with torch.no_grad():
        for name, tensor in kept.items():
            if name not in own or own[name].shape != tensor.shape:
                raise UserError(f"{folder / TRAINED}: {name} does not fit the base {facts.base}")
            own[name].copy_(tensor)
        for adapter in sorted(folder.glob("adapters/*")):
            if getattr(getattr(model, adapter.name), "is_quantized", False):
                _attach(getattr(model, adapter.name), adapter)
            else:
                _merge(model, adapter, facts)


def _merge(model: InstructBlip, adapter: Path, facts: Facts) -> None:
    pairs = _read(adapter / ADAPTER)
    own = dict(model.named_modules())
    for name, down in pairs.items():
        stem, found, _ = name.partition(".lora_A.weight")
        if not found:
            continue
        layer = own.get(f"{adapter.name}.{stem.removeprefix(_PEFT)}")
        step = lora_step(layer, pairs[f"{stem}.lora_B.weight"], down, facts.towers) if layer is not None else None
        if layer is None or step is None or getattr(layer, "weight", step[:0]).shape != step.shape:
            raise UserError(f"{adapter / ADAPTER}: {name} does not fit the base {facts.base}")
        layer.weight += step.to(layer.weight.dtype)


def _attach(tower: nn.Module, adapter: Path) -> None:
    inject_adapter_in_model(LoraConfig.from_pretrained(str(adapter)), tower)
    own = dict(tower.named_parameters())
    for name, tensor in _read(adapter / ADAPTER).items():
        place = name.removeprefix(_PEFT).replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")
        if place not in own or own[place].shape != tensor.shape:
            raise UserError(f"{adapter / ADAPTER}: {name} does not fit the quantised LLM")
        own[place].copy_(tensor)


def _save_adapter(
    folder: Path, pairs: Mapping[str, Tensor], base: str, settings: TowersConfig, transposed: bool
) -> None:
    targets = sorted({name.split(".lora_")[0] for name in pairs})
    lora = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=targets,
        fan_in_fan_out=transposed,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    lora.save_pretrained(str(folder))
    # peft keeps them as a set, whose order is another in every process.
    config = folder / "adapter_config.json"
    content = {**json.loads(config.read_text()), "target_modules": targets}
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    save_file({_PEFT + name: tensor for name, tensor in pairs.items()}, folder / ADAPTER)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); the run that wrote it goes on with resume=true") from error
