"""BLIP's mixture of encoder and decoder: from parts, or from a folder.

    config.json, tokenizer and preprocessor files   as transformers writes them
    model.safetensors                               a tensor that encoder and decoder share stands in it once

What no checkpoint gives starts from random weights that follow from the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModel,
    BertForMaskedLM,
    BlipConfig,
    BlipTextConfig,
    BlipVisionConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from instructkit.errors import UserError
from instructkit.models.batches import DEC, Captions
from instructkit.models.blip import Blip, Shared
from instructkit.models.load.parts import failing, place_of, read_config, read_part, read_tokenizer, seeded, summary
from instructkit.models.load.presets import preset
from instructkit.models.load.pretraining import NANO_WIDTH, WIDTH

ENC = "[ENC]"
"""What a text begins with where it is read with an image, in the place of `[CLS]` (BLIP, section 3.1)."""
BLIP_TOKENS = 30
"""Tokens of a caption in BLIP's pre-training (LAVIS: `max_txt_len`)."""
WEIGHTS = "model.safetensors"
_TOWER = (  # what ViT and BLIP call alike
    "hidden_size intermediate_size num_hidden_layers num_attention_heads image_size patch_size hidden_act "
    "layer_norm_eps initializer_range"
)
_TEXT = (  # what BERT and BLIP call alike
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings hidden_act "
    "layer_norm_eps hidden_dropout_prob attention_probs_dropout_prob initializer_range"
)
_VIT = {
    "layernorm.": "post_layernorm.",
    "layers.": "encoder.layers.",
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding",
    "embeddings.patch_embeddings.projection.": "embeddings.patch_embedding.",
    ".layernorm_before.": ".layer_norm1.",
    ".layernorm_after.": ".layer_norm2.",
    ".attention.o_proj.": ".self_attn.projection.",
}
Say = Callable[[str], None]


def is_mixture(config: PreTrainedConfig) -> bool:
    """Whether a configuration is that of a folder that `save_blip` wrote, not of one of transformers' classes."""
    return config.model_type == "blip" and hasattr(config, "sharing")


def load_blip(name: str, limit: int = BLIP_TOKENS, dtype: torch.dtype = torch.float32) -> tuple[Blip, Captions]:
    """Load a model that `save_blip` wrote, and its tokeniser.

    Args:
        name: its folder, or name on the Hugging Face hub.
        limit: texts are cut to so many tokens.
        dtype: of the weights.

    Raises:
        UserError: there is no such model, or it is another.
    """
    config = _mixture_config(name)
    tokenizer = read_tokenizer(name, "name")
    with failing(f"model.name={name}", "no BLIP can be loaded from there"):
        with seeded(0):
            model = Blip(config)
        put(model, load_file(_weights(name)), f"model.name={name}")
    return model.to(dtype), Captions(tokenizer, min(limit, config.text_config.max_position_embeddings))


def _mixture_config(name: str) -> Any:
    config = read_config(name, "name")
    if not is_mixture(config):
        raise UserError(
            f"model.name={name}: a {config.model_type}, no mixture of encoder and decoder; name a folder that "
            "recipes/pretrain_blip.py wrote"
        )
    return config


def put(model: Blip, state: dict[str, Tensor], where: str) -> None:
    """Load all weights of a model; one that is shared is there under one of its names.

    Args:
        model: takes them, in place.
        state: by name.
        where: they come from, for the message.

    Raises:
        UserError: one is missing, too many, or of another shape.
    """
    wrong = [f"{n} of shape {tuple(t.shape)}" for n, t in state.items() if _shape(model, n) not in (None, t.shape)]
    found = model.load_state_dict({k: v for k, v in state.items() if not wrong}, strict=False)
    own = dict(model.named_parameters())
    missing = [name for name in found.missing_keys if name in own]
    for what, names in (("holds", wrong), ("lacks", missing), ("holds", found.unexpected_keys)):
        if names:
            raise UserError(f"{where}: the checkpoint {what} {names[0]}, which does not fit its config.json")


def _shape(model: Blip, name: str) -> torch.Size | None:
    try:
        return model.get_parameter(name).shape
    except AttributeError:
        return None


def _weights(name: str) -> str:
    place = Path(place_of(name))
    if place.is_dir():
        return str(place / WEIGHTS)
    from huggingface_hub import hf_hub_download  # a folder needs none of it

    return hf_hub_download(place_of(name), WEIGHTS)


def join_blip(
    vision: str | None,
    text: str | None,
    sharing: Shared,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    *,
    limit: int = BLIP_TOKENS,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    say: Say = lambda line: None,
) -> tuple[Blip, Captions]:
    """A model to be pre-trained, from an image encoder and a BERT; what is not named is `nano`'s, from random weights.

    Both encoder and decoder start from the BERT, with the head that it fills gaps with; cross-attention is new.

    Args:
        vision: ViT or DeiT, by folder or hub name.
        text: BERT, likewise.
        sharing: what encoder and decoder have in common.
        tokenizer: gives that of `nano`'s text transformer, if it is used.
        limit: captions are cut to so many tokens.
        dtype: of all weights.
        seed: of what starts from random weights.
        say: takes a line for each part, with the names of all tensors that start from random weights.

    Raises:
        UserError: a part cannot be loaded, or is of another kind.
    """
    nano = preset("nano")
    eye, state = (_nano_eye(nano), {}) if vision is None else _load_vit(vision)
    bert = None if text is None else read_part(BertForMaskedLM, text, "text", config=bert_config(text)).module
    words = tokenizer() if text is None else read_tokenizer(text, "text")
    add_marks(words)
    shape: Any = nano.qformer_config if bert is None else bert.config
    sizes = {key: getattr(shape, key) for key in _TEXT.split()} | {"vocab_size": len(words)}
    width = NANO_WIDTH if bert is None else WIDTH
    config = blip_config(BlipTextConfig(**sizes, **_marks(words)), eye, words, width)
    config.sharing = sharing
    config.initializer_range = shape.initializer_range
    with seeded(seed):
        model = Blip(config)
        if bert is not None:
            state |= _from_bert(bert.state_dict(), model)
    found = model.load_state_dict(state, strict=False)
    assert not found.unexpected_keys, found.unexpected_keys
    model.fresh = frozenset(name for name, _ in model.named_parameters() if name in found.missing_keys)
    say(f"model     {'vision_model':<15} {vision or 'nano'}: {_note(eye, vision)}")
    say(f"model     {'text':<15} {text or 'nano'}: {_note(config.text_config, text)}, shared {sharing}")
    if model.fresh:
        say(f"model     {'fresh':<15} from random weights: {summary(model.fresh)}")
    return model.to(dtype), Captions(words, min(limit, config.text_config.max_position_embeddings))


def blip_config(
    text: BlipTextConfig, vision: BlipVisionConfig, tokenizer: PreTrainedTokenizerBase, width: int
) -> BlipConfig:
    """The configuration of a model whose tokens are those of a tokeniser with `[DEC]` and `[ENC]`.

    Args:
        text: sizes of the text transformer.
        vision: sizes of the image encoder.
        tokenizer: the tokeniser (`add_marks`).
        width: of the embeddings that are compared.
    """
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=width)
    for name, token in _marks(tokenizer).items():
        setattr(config.text_config, name, token)
    config.enc_token_id = int(tokenizer.convert_tokens_to_ids(ENC))
    config.sharing = "all_but_self_attention"
    return config


def add_marks(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokeniser know `[DEC]` and `[ENC]`, in place."""
    if tokenizer.bos_token != DEC:
        tokenizer.add_special_tokens({"bos_token": DEC})
    if ENC not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [ENC]})


def _marks(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that a text's configuration names."""
    end = tokenizer.sep_token_id
    tokens = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return tokens | {"sep_token_id": end, "eos_token_id": end}


def _nano_eye(nano: Any) -> BlipVisionConfig:
    return BlipVisionConfig(**{key: getattr(nano.vision_config, key) for key in _TOWER.split()})


def _note(config: Any, name: str | None) -> str:
    come = "" if name else ", from random weights"
    return f"{config.num_hidden_layers} layers, width {config.hidden_size}{come}"


def bert_config(name: str) -> PreTrainedConfig:
    """The configuration of what a text transformer can start from.

    Raises:
        UserError: it is not there, or of another kind.
    """
    config = read_config(name, "text")
    if config.model_type != "bert":
        raise UserError(f"model.text={name}: a {config.model_type}; BLIP's text transformer starts from BERT")
    return config


def _from_bert(bert: dict[str, Tensor], model: Blip) -> dict[str, Tensor]:
    """Weights of a `BertForMaskedLM` under their names in encoder and decoder; new words keep their random rows."""
    state = {}
    for name, tensor in bert.items():
        if name.startswith("bert."):
            for side in ("text_encoder.", "text_decoder.bert."):
                state[side + name.removeprefix("bert.")] = tensor
        elif not name.startswith("cls.predictions.decoder."):
            state[f"text_decoder.{name}"] = tensor
    own = model.state_dict()
    for name in [name for name in state if name not in own]:  # token types, pooler, numbers of places
        del state[name]
    for name, tensor in state.items():
        if len(rows := own[name]) > len(tensor):
            state[name] = torch.cat([tensor, rows[len(tensor) :].to(tensor.dtype)])
    for tied in ("weight", "bias"):  # otherwise the head's random rows would be put over these
        source = "bert.embeddings.word_embeddings.weight" if tied == "weight" else "cls.predictions.bias"
        state[f"text_decoder.cls.predictions.decoder.{tied}"] = state[f"text_decoder.{source}"]
    return state


def vit_config(name: str) -> PreTrainedConfig:
    """The configuration of what an image encoder can start from.

    Raises:
        UserError: it is not there, or of another kind.
    """
    config = read_config(name, "vision")
    if config.model_type not in ("vit", "deit"):
        raise UserError(f"model.vision={name}: a {config.model_type}; BLIP's image encoder starts from a ViT or DeiT")
    return config


def _load_vit(name: str) -> tuple[BlipVisionConfig, dict[str, Tensor]]:
    """Shape and weights of a ViT or DeiT as BLIP's image encoder."""
    config = vit_config(name)
    loaded = read_part(AutoModel, name, "vision", config=config)
    if lost := sorted(key for key in loaded.fresh if not key.startswith("pooler.")):
        raise UserError(f"model.vision={name}: the checkpoint lacks {len(lost)} tensors, among them {lost[0]}")
    if getattr(config, "qkv_bias", True) is False:
        raise UserError(f"model.vision={name}: has no biases in its attention, which BLIP's image encoder has")
    theirs = {key: tensor for key, tensor in loaded.module.state_dict().items() if not key.startswith("pooler.")}
    if (extra := theirs.pop("embeddings.distillation_token", None)) is not None:
        places = theirs["embeddings.position_embeddings"]  # class token, distillation token, patches
        theirs["embeddings.position_embeddings"] = torch.cat([places[:, :1], places[:, 1 + extra.shape[1] :]], dim=1)
    state: dict[str, Tensor] = {}
    for key, tensor in theirs.items():
        if ".attention.q_proj." in key:
            parts = [theirs[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            state[_vit_name(key.replace(".attention.q_proj.", ".self_attn.qkv."))] = torch.cat(parts)
        elif not any(f".attention.{part}_proj." in key for part in "kv") and "mask_token" not in key:
            state[_vit_name(key)] = tensor
    return BlipVisionConfig(**{key: getattr(config, key) for key in _TOWER.split()}), state


def _vit_name(name: str) -> str:
    for theirs, ours in _VIT.items():
        if name.startswith(theirs) or (theirs.startswith(".") and theirs in name):
            name = name.replace(theirs, ours, 1)
    return f"vision_model.{name}"
