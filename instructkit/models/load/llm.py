"""The LLM of a joined model: a causal or sequence-to-sequence model of transformers, or a GGUF file."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS

from instructkit.errors import UserError
from instructkit.models.load.packages import PACKAGE, packaged
from instructkit.models.load.parts import Loaded, failing, has_qformer, place_of, quiet, read_config, read_part
from instructkit.models.load.tokenizer_files import open_tokenizer

IMAGE = "<image>"
OWN_ROWS = "llm_rows"
"""Key of a saved model's configuration: rows of the LLM's embeddings without the image token's."""


class Llm(NamedTuple):
    """An LLM for a joined model.

    Attributes:
        loaded: the model.
        tokenizer: of its text.
        note: what it is, in a few words.
        end: token that ends its answers where it is not the tokeniser's own (`answer_end`).
    """

    loaded: Loaded
    tokenizer: PreTrainedTokenizerBase
    note: str
    end: int | None = None


def load_llm(name: str, dtype: torch.dtype, bits: int | None = None) -> Llm:
    """The LLM of a checkpoint.

    Args:
        name: folder, hub name, GGUF file, `package:MODULE` for a Python package with a GGUF file (`packaged`), or a
            BLIP-2 or InstructBLIP, whose LLM it then is.
        dtype: of its weights; GGUF's quantised ones are unpacked.
        bits: 4 or 8, quantised by bitsandbytes while it is loaded.

    Raises:
        UserError: there is none, or it cannot be joined.
    """
    place, options = _locate(name)
    config = _config(name, place, options)
    whole = config
    if has_qformer(config):
        options |= {"key_mapping": {r"^language_model\.": ""}}
        config = config.text_config
    # InstructBlipConfig takes every type that has a causal class for a decoder, BART's for one.
    if hasattr(config, "vision_config") or config.is_encoder_decoder == (config.model_type in DECODERS):
        raise UserError(f"model.llm={name}: a {config.model_type}; name a causal LLM of text alone, or one like T5")
    if bits is not None:
        options |= _quantised(bits, dtype)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    if "gguf_file" not in options:
        options["config"] = config
    loaded = read_part(auto, place, "llm", dtype=dtype, **options)
    if loaded.fresh:
        raise UserError(f"model.llm={name}: lacks {len(loaded.fresh)} tensors, among them {min(loaded.fresh)}")
    if "gguf_file" in options:
        _forget_quantiser(loaded.module)
    drop_added_rows(loaded.module, whole)
    _check(name, loaded.module)
    note = f"{type(loaded.module).__name__}, {loaded.module.num_parameters():,} parameters"
    tokenizer = _tokenizer(name, place, options)
    end = answer_end(whole, tokenizer) if whole.model_type == "blip-2" else None
    return Llm(loaded, tokenizer, note if bits is None else f"{note} in {bits} bits", end)


def answer_end(blip2: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends a BLIP-2's answers where it is not the tokeniser's own end token, else None.

    An OPT of a BLIP-2 ends them with a line break (LAVIS: `Blip2OPT`), and its configuration says so.

    Args:
        blip2: configuration of the BLIP-2.
        tokenizer: of its LLM.
    """
    ends = blip2.text_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    return None if not ends or tokenizer.eos_token_id in ends else int(ends[0])


def llm_config(name: str) -> PreTrainedConfig:
    """The configuration of an LLM that `load_llm` would load; no weight is read.

    Raises:
        UserError: there is none.
    """
    place, options = _locate(name)
    config = _config(name, place, options)
    return config.text_config if has_qformer(config) else config


def image_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Number that stands for an image in the LLM's rows: its `<image>` token, else the first that no token has.

    It need not be in the LLM's vocabulary: soft prompts take its places before anything is looked up.
    """
    vocabulary = tokenizer.get_vocab()
    return int(vocabulary[IMAGE]) if IMAGE in vocabulary else max(vocabulary.values()) + 1


def drop_added_rows(llm: Any, config: PreTrainedConfig) -> None:
    """Take off the rows of embeddings that a model was saved with for plain transformers' sake.

    Args:
        llm: of the model, changed in place.
        config: of the whole model, which says how many rows the LLM has of its own.
    """
    own = getattr(config, OWN_ROWS, None)
    if own is not None and own < len(llm.get_input_embeddings().weight):
        llm.resize_token_embeddings(own)


def check_quantiser(bits: int) -> None:
    """Look for what quantises an LLM.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise UserError(f"model.llm_bits={bits}: bitsandbytes is not installed; run pip install bitsandbytes")


def _quantised(bits: int, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` needs to quantise: as QLoRA (arXiv 2305.14314) in 4 bits, LLM.int8 (2208.07339) in 8."""
    check_quantiser(bits)
    if bits == 8:
        settings = BitsAndBytesConfig(load_in_8bit=True)
    else:
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    device: Any = int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"
    return {"quantization_config": settings, "device_map": {"": device}}


def _forget_quantiser(llm: Any) -> None:
    """Let a GGUF file's unpacked weights count as the plain ones that they are: saved, merged and joined like any."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(llm).pop(name, None)
    vars(llm.config).pop("quantization_config", None)


def _locate(name: str) -> tuple[str, dict[str, Any]]:
    """Folder or hub name, and what `from_pretrained` needs beside it."""
    path = packaged(name) if name.startswith(PACKAGE) else Path(name)
    if path.suffix != ".gguf":
        return place_of(name), {}
    if not path.is_file():
        raise UserError(f"model.llm={name}: no such file")
    return str(path.parent), {"gguf_file": path.name}


def _config(name: str, place: str, options: dict[str, Any]) -> PreTrainedConfig:
    if not options:
        return read_config(name, "llm")
    with failing(f"model.llm={name}", "no GGUF file that can be read; is gguf installed (pip install gguf)?"):
        return AutoConfig.from_pretrained(place, **options)


def _tokenizer(name: str, place: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    file = {key: value for key, value in options.items() if key == "gguf_file"}
    with failing(f"model.llm={name}", "its tokenizer cannot be loaded"), quiet():
        tokenizer = open_tokenizer(place, **file)
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.llm={name}: its tokenizer has no end token, so no answer would ever end")
    return tokenizer


def _check(name: str, llm: Any) -> None:
    """Refuse what soft prompts cannot be put in front of."""
    config = llm.config
    width = llm.get_input_embeddings().weight.shape[1]
    if width != config.hidden_size:
        raise UserError(
            f"model.llm={name}: its embeddings are {width} wide, its layers {config.hidden_size}; transformers' "
            "InstructBLIP projects to the layers' width only"
        )
    if getattr(config, "is_decoder", True) is False and not config.is_encoder_decoder and _looks_ahead(llm):
        raise UserError(
            f"model.llm={name}: a {config.model_type} reads both ways, so it cannot write; name a causal LLM"
        )
    if config.is_encoder_decoder and config.decoder_start_token_id is None:
        raise UserError(f"model.llm={name}: its config.json has no decoder_start_token_id")


@torch.no_grad()
def _looks_ahead(llm: Any) -> bool:
    """Whether a token's logits change with the token behind it, as in BERT, which also has a class for text."""
    first, second = (llm(input_ids=torch.tensor([ids])).logits[0, 0] for ids in ([5, 6], [5, 7]))
    return not torch.equal(first, second)
