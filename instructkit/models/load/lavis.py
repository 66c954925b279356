"""Checkpoints of LAVIS, the predecessor's code (`instruct_blip_*_trimmed.pth`, `blip2_pretrained_*.pth`), read into an
`InstructBlip`.

Such a file holds what was trained: query tokens, Q-Former, projection and `ln_vision`; image encoder and LLM are those
of the published model of its size, or what `model.vision` and `model.llm` name. LAVIS's `ln_vision` computes with an
epsilon of 1e-5, transformers' last layer norm of the image encoder with 1e-6, so its epsilon is changed with the
weights. Finetuned BLIP-2 models hold their image encoder as well, made for larger pictures.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from instructkit.errors import UserError
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.resolution import set_image_size

LN_VISION_EPSILON = 1e-5

SUFFIXES = (".pth", ".pt")
"""Of a name that is such a file."""
BASES = {
    ("llm_proj", 4096): "vicuna-7b",
    ("llm_proj", 5120): "vicuna-13b",
    ("t5_proj", 2048): "flan-t5-xl",
    ("t5_proj", 4096): "flan-t5-xxl",
}
"""The published size that has the same projection to the LLM, by the projection's name and width."""
BLIP2_BASES = {
    ("opt_proj", 2560): "Salesforce/blip2-opt-2.7b",
    ("opt_proj", 4096): "Salesforce/blip2-opt-6.7b",
    ("t5_proj", 2048): "Salesforce/blip2-flan-t5-xl",
    ("t5_proj", 4096): "Salesforce/blip2-flan-t5-xxl",
}
"""The published BLIP-2 of the same projection, for a Q-Former that reads no text."""

_UNUSED = ("Qformer.cls.*", "*.position_ids", "*.rotary_emb.inv_freq")
_PREFIXES = {
    "Qformer.bert.": "qformer.",
    "ln_vision.": "vision_model.post_layernorm.",
    "query_tokens": "query_tokens",
    "llm_proj.": "language_projection.",
    "t5_proj.": "language_projection.",
    "opt_proj.": "language_projection.",
    "llm_model.": "language_model.",
    "opt_model.": "language_model.",
    "t5_model.": "language_model.",
}
_ENCODER = "visual_encoder."
_ENCODER_PARTS = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "blocks.": "encoder.layers.",
    ".norm": ".layer_norm",
    ".attn.proj.": ".self_attn.projection.",
    ".attn.qkv.": ".self_attn.qkv.",
}
"""EVA-CLIP's ViT in a model whose encoder was trained, too, as BLIP-2's finetuned ones."""
_QFORMER = {
    "embeddings.LayerNorm": "embeddings.layernorm",
    ".attention.self.": ".attention.attention.",
    ".crossattention.self.": ".crossattention.attention.",
}


def parameter_name(lavis: str) -> str | None:
    """Name in transformers of a parameter of LAVIS's, None for one that has no counterpart.

    Raises:
        UserError: no rule knows the name.
    """
    if any(fnmatchcase(lavis, pattern) for pattern in _UNUSED):
        return None
    for old, new in _PREFIXES.items():
        if lavis.startswith(old):
            name = new + lavis.removeprefix(old)
            if new == "qformer.":
                for part, other in _QFORMER.items():
                    name = name.replace(part, other)
            return name
    raise UserError(f"parameter {lavis}: not one of a checkpoint of LAVIS's InstructBLIP or BLIP-2")


def load_lavis(model: InstructBlip, path: Path) -> list[str]:
    """Read a checkpoint file into a model, in place.

    Args:
        model: with the image encoder and the LLM that the checkpoint was trained with.
        path: a `.pth` that `torch.save` wrote; only tensors are read from it, never code.

    Returns:
        Names of the parameters that were read.

    Raises:
        UserError: no such file, a file with more than tensors, or one that does not fit the model.
    """
    return load_lavis_state(model, read_lavis(path), str(path))


def is_lavis(name: str) -> bool:
    """Whether a model's name is a checkpoint file of LAVIS."""
    return Path(name).suffix in SUFFIXES


def read_lavis(path: Path, device: str = "cpu") -> Mapping[str, Tensor]:
    """The tensors of a checkpoint file by LAVIS's names; no code of it runs.

    Args:
        path: the file.
        device: where they are put; `meta` reads names and shapes alone.

    Raises:
        UserError: no such file, or a file with more than tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path}: no checkpoint of tensors alone ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a mapping of names to tensors")
    state: Mapping[str, Tensor] = content.get("model", content)
    return state


def base_of(state: Mapping[str, Tensor], where: str) -> str:
    """The published model whose image encoder and LLM a checkpoint was trained with.

    Raises:
        UserError: its projection is none of theirs.
    """
    reads_text = "Qformer.bert.embeddings.word_embeddings.weight" in state
    for (projection, width), base in (BASES if reads_text else BASES | BLIP2_BASES).items():
        weight = state.get(f"{projection}.weight")
        if weight is not None and len(weight) == width:
            return base
    raise UserError(
        f"{where}: no checkpoint of LAVIS's InstructBLIP or BLIP-2: it has no projection to the LLM of a published one"
    )


def load_lavis_state(model: InstructBlip, state: Mapping[str, Tensor], where: str) -> list[str]:
    """Read weights under LAVIS's names into a model, in place; see `load_lavis`."""
    renamed = encoder_state(state)
    for lavis, tensor in state.items():
        name = None if lavis.startswith(_ENCODER) else parameter_name(lavis)
        if name is not None:
            renamed[name] = tensor
    if (positions := renamed.get("vision_model.embeddings.position_embedding")) is not None:
        vision = model.config.vision_config
        size = math.isqrt(positions.shape[1] - 1) * vision.patch_size
        if size != vision.image_size:  # finetuned on larger pictures
            set_image_size(model.vision_model, vision, size)
    _untie_head(model, renamed)
    own = model.state_dict()
    for name, tensor in renamed.items():
        if name not in own:
            raise UserError(f"{where}: {name} is not in this model; was it made with another LLM or Q-Former?")
        if own[name].shape != tensor.shape:
            raise UserError(f"{where}: {name} is {list(tensor.shape)}, the model's {list(own[name].shape)}")
    missing = [name for name, _ in model.named_parameters() if _expected(name, model) and name not in renamed]
    if missing:
        raise UserError(f"{where}: lacks {len(missing)} parameters, among them {missing[0]}")
    model.load_state_dict(renamed, strict=False)
    if "vision_model.post_layernorm.weight" in renamed:
        model.vision_model.post_layernorm.eps = LN_VISION_EPSILON
        # The configuration has one epsilon for all of the image encoder's norms; this one is kept beside it.
        model.config.post_layernorm_eps = LN_VISION_EPSILON
    return sorted(renamed)


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder's weights under transformers' names, where a checkpoint has them.

    LAVIS keeps biases of queries and values alone: those of keys are zero, as they would change nothing.
    """
    found = {}
    for lavis, tensor in state.items():
        if not lavis.startswith(_ENCODER) or lavis.endswith((".attn.q_bias", ".attn.v_bias")):
            continue
        name = lavis.removeprefix(_ENCODER)
        for old, new in _ENCODER_PARTS.items():
            name = name.replace(old, new)
        found[f"vision_model.{name}"] = tensor
        stem = lavis.removesuffix(".qkv.weight")
        if stem != lavis and f"{stem}.q_bias" in state and f"{stem}.v_bias" in state:
            query, value = state[f"{stem}.q_bias"], state[f"{stem}.v_bias"]
            bias = torch.cat([query, torch.zeros_like(query), value])
            found[f"vision_model.{name.removesuffix('weight')}bias"] = bias
    return found


def _expected(name: str, model: InstructBlip) -> bool:
    """Whether every checkpoint holds a parameter; those of models that do not read instructions have no text side."""
    if not model.instruction_aware and name.startswith("qformer."):
        parts = set(name.split("."))
        return not parts & {"word_embeddings", "position_embeddings", "intermediate"} and not re.search(
            r"layer\.\d+\.output\.", name
        )
    return name.startswith(("query_tokens", "language_projection.", "qformer.", "vision_model.post_layernorm."))


def _untie_head(model: InstructBlip, state: Mapping[str, Tensor]) -> None:
    """Give the LLM's head a weight of its own where the checkpoint has two.

    A T5 that is built from a configuration (transformers 5) shares it with the embeddings, and loading would silently
    overwrite the one by the other.
    """
    head, embeddings = model.language_model.get_output_embeddings(), model.language_model.get_input_embeddings()
    if "language_model.lm_head.weight" in state and head.weight is embeddings.weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
