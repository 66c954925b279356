"""A BLIP-2 (arXiv 2301.12597) as what it is here: an InstructBLIP whose Q-Former reads no text.

transformers' `Blip2ForConditionalGeneration` has the same parameters under the same names, but for one layer norm, and
no place for the text side of the Q-Former: embeddings of words and positions, and the feed-forwards of text. Where a
run had them, they lie beside its weights in `qformer_text.safetensors`, under the names that they have here.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Blip2Config, InstructBlipConfig, InstructBlipVisionConfig

from instructkit.errors import UserError
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.parts import failing, place_of, quiet
from instructkit.models.load.qformer import copy_feed_forwards, qformer_config
from instructkit.models.load.qformer_text import is_text, put_text, text_of

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
