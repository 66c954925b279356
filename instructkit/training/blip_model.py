"""The model of a run that trains BLIP: where it comes from, what of it is trained, how it is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from instructkit.config.settings import RunConfig
from instructkit.errors import UserError
from instructkit.files import replacing
from instructkit.models.batches import Captions
from instructkit.models.blip import Blip, Momentum
from instructkit.models.load.blip import join_blip
from instructkit.models.load.blip_tasks import open_blip
from instructkit.models.load.parts import seeded, summary
from instructkit.models.resolution import set_image_size
from instructkit.models.save import save_blip
from instructkit.models.towers import prepare_towers
from instructkit.runs.waiting import first_on_machine
from instructkit.training.data import Part
from instructkit.training.engine import Engine
from instructkit.training.model import caption_tokenizer, refuse

_NO_BLIP = {
    "model.llm": "has no LLM",
    "model.llm_bits": "has no LLM",
    "model.qformer": "has no Q-Former (model.text names the BERT that it starts from)",
    "model.queries": "has no query tokens",
    "model.vision_layer": "reads the last layer of its image encoder",
    "model.instruction_aware": "has no instructions",
    "towers.llm": "has no LLM",
    "towers.qformer": "has no Q-Former; its text transformer is trained",
    "towers.lora_targets": "is trained in full",
    "data.instruction_tokens": "has no instructions (data.caption_tokens cuts captions)",
    "data.answer_tokens": "has no answers (data.caption_tokens cuts captions)",
    "data.prefix": "cuts no captions in two",
    "data.instructions": "has no instructions",
    "data.group_size": "reads one caption of a picture a step",
    "throughput.share_images": "has no other way to read images",
    "throughput.share_keys": "has no other way to read images",
    "throughput.packing": "has no LLM",
    "throughput.answers_only": "has no LLM",
    "throughput.feature_cache": "trains its image encoder",
    "evaluation.benchmarks": "is evaluated when it is trained (instructkit evaluate)",
    "evaluation.every": "is not evaluated on its way",
}
"""Settings of a run that have no meaning for BLIP, and why."""


def check_blip(config: RunConfig) -> None:
    """Refuse settings that have no meaning for BLIP; no data and no model is needed.

    Raises:
        UserError: one has none.
    """
    refuse(config, "BLIP", _NO_BLIP)
    model, training, prompt = config.model, config.training, config.data.prompt
    if config.towers.vision == "lora":
        raise UserError("towers.vision=lora: BLIP's image encoder is trained in full or frozen")
    if "qformer" in training.rates:
        raise UserError("training.rates.qformer: BLIP has no Q-Former; learning_rate is that of its text transformer")
    if model.name != "nano" and (model.vision or model.text):
        raise UserError(
            f"model.name={model.name}: a whole BLIP; model.vision and model.text put a new one together: leave them "
            "out, or model.name"
        )
    if training.zero_stage == 3:
        raise UserError("training.zero_stage=3: BLIP is trained under ZeRO 0 to 2; its model is a small one")
    if prompt is not None and config.pairs.losses != ["lm"]:
        raise UserError(
            f"data.prompt={prompt!r}: {' and '.join(config.pairs.losses)} read texts as they are; only a training for "
            "captioning (pairs.losses=[lm]) has a prompt"
        )
    if prompt is not None and "{" in prompt:
        raise UserError(f"data.prompt={prompt!r}: BLIP's prompt is the same text for all, such as 'a picture of'")


def prepare_blip(
    config: RunConfig, parts: list[Part], folder: Path, say: Callable[[str], None]
) -> tuple[Blip, Captions]:
    """The model of a run, with `requires_grad` set on what is trained, and its tokeniser; call on every rank.

    The momentum encoder starts as a copy of the model, and the queue with random pairs that follow from the seed. A
    text transformer that starts from random weights gets a tokeniser trained on the run's captions, which is kept in
    the run's folder.

    Raises:
        UserError: there is no such model, or a part of it.
    """
    settings, pairs, limit = config.model, config.pairs, config.data.caption_tokens
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    if settings.name == "nano":
        model, captions = join_blip(
            settings.vision,
            settings.text,
            settings.sharing,
            lambda: caption_tokenizer(config, parts, folder / "tokenizers"),
            limit=limit,
            dtype=dtype,
            seed=config.seed,
            say=say,
        )
    else:
        model, captions = first_on_machine(lambda: open_blip(settings.name, limit, dtype))
        if model.fresh:
            say(f"model     {'fresh':<15} from random weights: {summary(model.fresh)}")
    if settings.image_size is not None:
        set_image_size(model.vision_model, model.config.vision_config, settings.image_size)
    if "vqa" in pairs.losses:
        _separate(model)
    prepare_towers(model, config.towers, config.seed)
    _train_for(model, config)
    if pairs.compares:
        with seeded(config.seed):
            model.momentum = Momentum(model, pairs.momentum, pairs.queue)
    return model, captions


def _separate(model: Blip) -> None:
    """Let the decoder read questions by modules of its own, which start as those that it has read images by."""
    vision, text = (part.hidden_size for part in (model.config.vision_config, model.config.text_config))
    if vision != text:
        raise UserError(
            f"pairs.losses=[vqa]: the image encoder is {vision} wide and the text transformer {text}; the decoder "
            "reads questions by the weights that it has read images by, so they must be equal, as with ViT-B"
        )
    model.separate()


def _train_for(model: Blip, config: RunConfig) -> None:
    """Freeze what no loss reaches: weight decay would shrink it."""
    idle: list[torch.nn.Module | torch.nn.Parameter] = []
    used: list[torch.nn.Module] = []
    if config.towers.vision == "frozen":
        idle.append(model.vision_model)
    compares, answers = config.pairs.compares, "vqa" in config.pairs.losses
    for losses, parts in (
        (compares or answers, [model.text_encoder]),
        (compares, [model.vision_proj, model.text_proj, model.itm_head]),
        ("lm" in config.pairs.losses or answers, [model.text_decoder]),
    ):
        (used if losses else idle).extend(parts)
    if not compares:
        idle.append(model.temperature)
    for part in idle:
        part.requires_grad_(False)
    for part in used:  # which has modules in common with what is idle
        part.requires_grad_(True)


def save_run_blip(engine: Engine, captions: Captions, folder: Path) -> None:
    """Write the model, whole, without its momentum encoder; call on every rank.

    Raises:
        UserError: the disk refuses; a model that lay there before stays.
    """
    state = engine.gathered_state()
    if dist.get_rank() == 0:
        with replacing(folder) as aside:
            save_blip(engine.model, captions, aside, state)
