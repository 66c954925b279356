"""Models on disk, in transformers' own layout: what is saved here loads in plain transformers, and the reverse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BlipImageProcessorPil, InstructBlipProcessor

from instructkit.batches import Limits, Texts
from instructkit.errors import UserError
from instructkit.media import CLIP_MEAN, CLIP_STD
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.joining import join
from instructkit.models.parts import JOINED, place_of, read_config
from instructkit.models.trained import TOKENIZERS, apply_trained, facts_of, load_tokenizers
from instructkit.models.vision import VisionEncoder


def save_model(model: InstructBlip, texts: Texts, folder: Path, state: dict[str, Any] | None = None) -> None:
    """Write weights, configuration and processor.

    `InstructBlipForConditionalGeneration.from_pretrained(folder)` and `InstructBlipProcessor.from_pretrained(folder)`
    read them; of a model with another family's image encoder `load_model` alone reads the weights.

    Args:
        model: the model.
        texts: its tokenisers.
        folder: made if missing.
        state: weights to write in place of the model's own, for weights that are sharded over ranks.

    Raises:
        UserError: the LLM is quantised.
    """
    if getattr(model.language_model, "is_quantized", False):
        raise UserError(
            f"{folder}: a model with a quantised LLM is not written whole; its trained part is (save_trained)"
        )
    model.save_pretrained(folder, state_dict=state)
    _name_class(folder / "config.json", foreign=isinstance(model.vision_model, VisionEncoder))
    size = model.config.vision_config.image_size
    images = BlipImageProcessorPil(
        size={"height": size, "width": size}, image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD)
    )
    processor = InstructBlipProcessor(images, texts.llm, texts.qformer, num_query_tokens=texts.queries)
    processor.save_pretrained(folder)


def load_model(name: str, limits: Limits | None = None, **options: Any) -> tuple[InstructBlip, Texts]:
    """Load a model and its tokenisers from a folder, a published size's name or the Hugging Face hub.

    A folder that holds only what a run trained (`instructkit.models.trained`) is put onto its base.

    Args:
        name: folder, one of `PUBLISHED`, or a name on the hub.
        limits: lengths that texts are cut to.
        **options: for `from_pretrained`, such as dtype.

    Raises:
        UserError: there is no such model, or it is no InstructBLIP.
    """
    if (facts := facts_of(Path(name))) is not None:
        if facts.model.joined:
            tokenizers = load_tokenizers(Path(name) / TOKENIZERS)
            model, texts = join(facts.model, options.get("dtype", torch.float32), lambda: tokenizers, limits)
        else:
            model, texts = load_model(facts.base, limits, **options)
        apply_trained(model, Path(name), facts)
        return model, texts
    config = read_config(name, "name")
    if config.model_type != "instructblip":
        raise UserError(
            f"model.name={name}: a {config.model_type}, no InstructBLIP; its parts are taken by model.vision, "
            "model.qformer and model.llm, such as model.name=nano model.qformer=..."
        )
    place = place_of(name)
    try:
        model = InstructBlip.from_pretrained(place, config=config, **options)
        llm = AutoTokenizer.from_pretrained(place)
        qformer = AutoTokenizer.from_pretrained(place, subfolder="qformer_tokenizer")
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{name}: no InstructBLIP model can be loaded from there ({reason})") from error
    return model, Texts(llm, qformer, model.config, limits)


def _name_class(config: Path, foreign: bool) -> None:
    """Let the configuration name transformers' class, which every tool knows; with another encoder, one none knows."""
    content = json.loads(config.read_text())
    content["architectures"] = [InstructBlip.__name__ if foreign else InstructBlip.__base__.__name__]
    if foreign:
        content["model_type"] = JOINED
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
