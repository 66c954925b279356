"""A model joined from parts: image encoder, Q-Former and LLM, each from a checkpoint of its own.

Parts that are not named are those of `model.name`. What no checkpoint gives starts from random weights that follow from
the seed: what joins two towers of other widths, and all of `nano`'s own towers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import InstructBlipConfig, PreTrainedTokenizerBase

from instructkit.config.settings import ModelConfig
from instructkit.errors import UserError
from instructkit.models.batches import Limits, Texts
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.lavis import base_of, is_lavis, load_lavis_state, read_lavis
from instructkit.models.load.llm import Llm, image_token, load_llm
from instructkit.models.load.nano import Nano, Tokenizers
from instructkit.models.load.of_runs import llm_of, qformer_of, vision_of
from instructkit.models.load.parts import failing, has_qformer, place_of, read_config, seeded, summary
from instructkit.models.load.qformer import Queries, load_qformer
from instructkit.models.load.tokenizer_files import open_tokenizer
from instructkit.models.load.vision import Vision, load_vision

Say = Callable[[str], None]


def join(
    settings: ModelConfig,
    dtype: torch.dtype,
    tokenizers: Callable[[], Tokenizers],
    limits: Limits | None = None,
    seed: int = 0,
    say: Say = lambda line: None,
) -> tuple[InstructBlip, Texts]:
    """Load the parts and join them.

    Args:
        settings: which parts.
        dtype: of all weights.
        tokenizers: gives those of LLM and Q-Former that belong to `nano`'s own towers, if one is used.
        limits: lengths that texts are cut to.
        seed: of what starts from random weights.
        say: takes a line for each part, with the names of all tensors that start from random weights.

    Raises:
        UserError: a part cannot be loaded, or does not fit.
    """
    trained = read_lavis(Path(settings.name)) if is_lavis(settings.name) else None
    name = settings.name if trained is None else base_of(trained, settings.name)
    base = (
        Nano(tokenizers(), dtype, settings.queries)
        if name == "nano"
        else _Checkpoint(name, dtype, settings.instruction_aware)
    )
    layer = settings.vision_layer
    with seeded(seed):
        vision = vision_of(settings.vision, dtype, layer) if settings.vision else base.vision(layer)
        llm = llm_of(settings.llm, dtype, settings.llm_bits) if settings.llm else base.llm(settings.llm_bits)
        width = vision.config.hidden_size
        if settings.qformer:
            words = base.words()
            count = settings.queries or base.queries
            queries = qformer_of(settings.qformer, width, llm.loaded.module.config, count, words, dtype)
        else:
            queries = base.qformer(width, llm.loaded.module.config)
    model = _assemble(vision, queries, llm, settings.instruction_aware)
    if trained is not None:
        model.fresh -= set(load_lavis_state(model, trained, settings.name))
    places = {"vision_model": settings.vision, "qformer": settings.qformer, "language_model": settings.llm}
    notes = {"vision_model": vision.note, "qformer": queries.note, "language_model": llm.note}
    for tower, place in places.items():
        say(f"model     {tower:<15} {place or settings.name}: {notes[tower]}")
    for line in fresh_lines(model):
        say(line)
    tokenizer = queries.tokenizer or base.qformer_tokenizer()
    return model, Texts(llm.tokenizer, tokenizer, model.config, limits)


def check_queries(settings: ModelConfig, count: int) -> None:
    """Refuse a number of queries that a model has not.

    Args:
        settings: what was asked for.
        count: how many query tokens the model has.

    Raises:
        UserError: another number was asked for.
    """
    if settings.queries not in (None, count):
        raise UserError(
            f"model.queries={settings.queries}: {settings.base} has {count} queries of its own; leave that out"
        )


class _Checkpoint:
    """The towers of a whole model on disk or on the hub, each read alone."""

    def __init__(self, name: str, dtype: torch.dtype, reads_text: bool) -> None:
        self.name, self.dtype, self.reads_text = name, dtype, reads_text
        config = base_config(name)
        self.config, self.queries = config, int(config.num_query_tokens)

    def vision(self, layer: int | None) -> Vision:
        return load_vision(self.name, self.dtype, layer)

    def llm(self, bits: int | None) -> Llm:
        return load_llm(self.name, self.dtype, bits)

    def qformer(self, encoder_width: int, llm: Any) -> Queries:
        return load_qformer(self.name, encoder_width, llm, self.queries, self.words(), self.dtype)

    def words(self) -> int:
        tokenizer = self.qformer_tokenizer()
        return int(self.config.qformer_config.vocab_size) if tokenizer is None else len(tokenizer)

    def qformer_tokenizer(self) -> PreTrainedTokenizerBase | None:
        if self.config.model_type == "blip-2" and not self.reads_text:
            return None
        with failing(f"model.name={self.name}", "has no tokenizer for a Q-Former; nano trains one on the run's text"):
            return open_tokenizer(place_of(self.name), subfolder="qformer_tokenizer")


def base_config(name: str) -> Any:
    """The configuration of the model that parts are put in place of.

    Raises:
        UserError: nothing can be read there, or it has no such parts.
    """
    config = read_config(name, "name")
    if not has_qformer(config):
        raise UserError(
            f"model.name={name}: a {config.model_type}; parts replace those of an InstructBLIP, a BLIP-2 or nano: "
            "name one of these, or nothing"
        )
    return config


def _assemble(vision: Vision, queries: Queries, llm: Llm, instruction_aware: bool) -> InstructBlip:
    text = llm.loaded.module.config
    config = InstructBlipConfig(
        vision_config=vision.config,
        qformer_config=queries.loaded.module.config,
        text_config=text,
        num_query_tokens=queries.joints.module.query_tokens.shape[1],
        image_token_index=image_token(llm.tokenizer),
    )
    config.instruction_aware, config.answer_end = instruction_aware, llm.end
    config.vision_encoder = vision.foreign
    if vision.epsilon is not None:
        config.post_layernorm_eps = vision.epsilon
    with torch.device("meta"):
        model = InstructBlip(config)
    joints = queries.joints.module
    model.vision_model, model.qformer, model.language_model = (part.loaded.module for part in (vision, queries, llm))
    model.query_tokens, model.language_projection = joints.query_tokens, joints.language_projection
    towers = {"vision_model.": vision.loaded, "qformer.": queries.loaded, "language_model.": llm.loaded}
    towers |= {"": queries.joints}
    model.fresh = frozenset(prefix + name for prefix, loaded in towers.items() for name in loaded.fresh)
    return model


def fresh_lines(model: Any) -> list[str]:
    """Which tensors start from random weights, tower by tower; none is left out."""
    lines = []
    for tower in ("vision_model", "qformer", "language_model", ""):
        own = {name for name, _ in model.named_parameters() if _tower(name) == tower}
        fresh = {name.removeprefix(f"{tower}.") for name in model.fresh if _tower(name) == tower}
        what = "all of it" if tower and len(fresh) == len(own) else summary(fresh)
        if fresh:
            lines.append(f"model     {tower or 'joints':<15} from random weights: {what}")
    return lines


def _tower(name: str) -> str:
    return name.partition(".")[0] if name.startswith(("vision_model.", "qformer.", "language_model.")) else ""
