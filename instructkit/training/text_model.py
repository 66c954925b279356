"""The LLM of a run that trains on text alone: where it comes from, and how it is saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from instructkit.config.settings import RunConfig
from instructkit.errors import UserError
from instructkit.files import replacing
from instructkit.models.causal import CausalText
from instructkit.models.load.new_tokenizers import train_llm_tokenizer
from instructkit.models.load.of_runs import llm_of
from instructkit.models.load.parts import seeded
from instructkit.models.load.presets import nano_llm
from instructkit.models.load.trained import load_tokenizer
from instructkit.models.packable import packing_note
from instructkit.models.positions import positions_of
from instructkit.runs.waiting import first_on_machine, on_first_rank
from instructkit.training.engine import Engine
from instructkit.training.text import TextDocument

TOKENIZER_DOCUMENTS = 20_000
"""Documents that a tokeniser is trained on, at most."""


def prepare_text_model(
    config: RunConfig, documents: Sequence[TextDocument], folder: Path, say: Callable[[str], None]
) -> tuple[CausalText, PreTrainedTokenizerBase]:
    """The LLM of a run, all of it trained, and its tokeniser; call on every rank.

    Without `model.llm` it starts from random weights, and its tokeniser is trained on the run's text and kept in the
    run's folder, so that a run that goes on reads with the same one.

    Raises:
        UserError: there is no such LLM, it is no causal one, or `data.text_tokens` is beyond its table of positions.
    """
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    name = config.model.llm
    if name is None:
        tokenizer = _new_tokenizer(config, documents, folder / "tokenizers")
        with seeded(config.seed):
            llm = AutoModelForCausalLM.from_config(nano_llm(len(tokenizer))).to(dtype)
        say(f"model     language_model  from random weights: all of it; {len(tokenizer):,} tokens in its vocabulary")
    else:
        found = first_on_machine(lambda: llm_of(name, dtype))
        llm, tokenizer = found.loaded.module, found.tokenizer
        if llm.config.is_encoder_decoder:
            raise UserError(f"model.llm={name}: a {llm.config.model_type} has an encoder; name a causal LLM")
        say(f"model     language_model  {name}: {found.note}")
    positions = positions_of(llm)
    if positions.table and positions.read is not None and config.data.text_tokens > positions.read:
        raise UserError(
            f"data.text_tokens={config.data.text_tokens}: the LLM has {positions.read:,} positions; set no more"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.throughput.packing and (note := packing_note(llm, device)) is not None:
        say(note)
    return CausalText(llm.requires_grad_(True), config.throughput), tokenizer


def tokenizer_texts(documents: Sequence[TextDocument]) -> list[str]:
    """What a new tokeniser is trained on: the documents, or some of all parts of a long file."""
    step = -(-len(documents) // TOKENIZER_DOCUMENTS)
    return [document.text for document in documents[::step]]


def _new_tokenizer(config: RunConfig, documents: Sequence[TextDocument], place: Path) -> PreTrainedTokenizerBase:
    texts = tokenizer_texts(documents)

    def train() -> None:
        if not (config.resume and place.is_dir()):
            with replacing(place) as aside:
                tokenizer = train_llm_tokenizer(texts, config.model.vocabulary)
                tokenizer.save_pretrained(aside / "llm")

    on_first_rank(train)
    return load_tokenizer(place / "llm")


def save_text_model(engine: Engine, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the LLM and its tokeniser, so that transformers opens them; call on every rank.

    Raises:
        UserError: the disk refuses; a model that lay there before stays.
    """
    state = engine.gathered_state()
    if dist.get_rank() == 0:
        llm = {name.removeprefix("language_model."): tensor for name, tensor in state.items()}
        with replacing(folder) as aside:
            engine.model.language_model.save_pretrained(aside, state_dict=llm)
            tokenizer.save_pretrained(aside)
