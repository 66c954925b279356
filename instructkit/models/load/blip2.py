"""A BLIP-2 (arXiv 2301.12597) as what it is here: an InstructBLIP whose Q-Former reads no text.

transformers' `Blip2ForConditionalGeneration` has the same parameters under the same names, but for one layer norm, and
no place for the text side of the Q-Former: embeddings of words and positions, and the feed-forwards of text. Where a
run had them, they lie beside its weights in `qformer_text.safetensors`, under the names that they have here.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    InstructBlipConfig,
    InstructBlipVisionConfig,
)

from instructkit.errors import UserError
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.parts import failing, place_of, quiet
from instructkit.models.load.qformer import SHAPE, copy_feed_forwards, qformer_config
from instructkit.models.load.qformer_text import TEXT, is_text, put_text, text_of

_OURS, _THEIRS = "qformer.embeddings.layernorm.", "qformer.layernorm."
_NORM = {r"^qformer\.layernorm\.": "qformer.embeddings.layernorm."}


def as_instructblip(name: str, config: Blip2Config) -> InstructBlipConfig:
    """The configuration of the same model under InstructBLIP's class.

    Args:
        name: of the checkpoint, for messages.
        config: of it.
    """
    vision = config.vision_config
    whole = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig.from_dict(vision.to_dict()),
        qformer_config=qformer_config(name, config, vision.hidden_size),
        text_config=config.text_config,
        num_query_tokens=config.num_query_tokens,
        image_token_index=config.image_token_index,
        initializer_range=config.initializer_range,
    )
    whole.instruction_aware = False
    for key in ("post_layernorm_eps", "llm_rows"):
        if (value := getattr(config, key, None)) is not None:
            setattr(whole, key, value)
    return whole


def blip2_config(config: InstructBlipConfig, end: int) -> Blip2Config:
    """The configuration of an `InstructBlip` under BLIP-2's class.

    Args:
        config: of a model whose image encoder is BLIP's.
        end: token that ends an answer.
    """
    shape, vision = config.qformer_config, config.vision_config.to_dict()
    vision.pop("model_type")
    whole = Blip2Config(
        vision_config=Blip2VisionConfig.from_dict(vision),
        qformer_config=Blip2QFormerConfig(
            **{key: getattr(shape, key) for key in SHAPE.split()},
            cross_attention_frequency=shape.cross_attention_frequency,
            use_qformer_text_input=False,
        ),
        text_config=deepcopy(config.text_config),
        num_query_tokens=config.num_query_tokens,
        image_token_index=config.image_token_index,
        initializer_range=config.initializer_range,
    )
    whole.text_config.eos_token_id = end
    if (epsilon := getattr(config, "post_layernorm_eps", None)) is not None:
        whole.post_layernorm_eps = epsilon
    return whole


def save_weights(config: Blip2Config, state: Mapping[str, Tensor], folder: Path, words: bool) -> None:
    """Write the weights of an `InstructBlip` as transformers' BLIP-2, and what that lacks beside them.

    Args:
        config: from `blip2_config`; its LLM has as many words as `state` has rows of embeddings.
        state: weights under the names that they have in an `InstructBlip`.
        folder: made if missing.
        words: whether the text side of the Q-Former is worth keeping.
    """
    with torch.device("meta"):
        plain = Blip2ForConditionalGeneration(config)
    plain.config.dtype = plain.config.text_config.dtype = next(iter(state.values())).dtype
    text = {name: tensor.contiguous() for name, tensor in state.items() if is_text(name)}
    own = {_THEIRS + name.removeprefix(_OURS) if name.startswith(_OURS) else name: state[name] for name in state}
    plain.save_pretrained(folder, state_dict={name: own[name] for name in own.keys() - text.keys()})
    if words:
        save_file(text, folder / TEXT)


def load_blip2(name: str, config: Blip2Config, **options: Any) -> InstructBlip:
    """A BLIP-2 with its LLM.

    Args:
        name: folder or hub name.
        config: of it.
        **options: for `from_pretrained`, such as dtype.

    Raises:
        UserError: it cannot be loaded, or lacks weights: a model of BLIP-2's first stage has no LLM.
    """
    whole = as_instructblip(name, config)
    with failing(f"model.name={name}", "no BLIP-2 can be loaded from there"), quiet():
        model, info = InstructBlip.from_pretrained(
            place_of(name), config=whole, key_mapping=_NORM, output_loading_info=True, **options
        )
    model._weight_conversions = None  # or save_pretrained would turn the names back
    if lost := [key for key in info["missing_keys"] if not is_text(key)]:
        raise UserError(
            f"model.name={name}: lacks {len(lost)} tensors, among them {min(lost)}; a model of BLIP-2's first stage "
            "has no LLM and is taken as model.qformer"
        )
    if (text := text_of(name)) is not None:
        put_text(model.qformer, text, name)
    else:  # nothing reads them
        copy_feed_forwards(model.qformer, [key.removeprefix("qformer.") for key in info["missing_keys"]])
        for table in (model.qformer.embeddings.word_embeddings, model.qformer.embeddings.position_embeddings):
            torch.nn.init.zeros_(table.weight)
    return model
