"""The model of a run: where it comes from, and how it is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from instructkit.config.settings import RunConfig
from instructkit.errors import UserError
from instructkit.files import replacing
from instructkit.models.batches import Captions, Limits, Texts
from instructkit.models.blip import Blip
from instructkit.models.blip2 import Blip2Pretraining
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.load.join import check_queries, join
from instructkit.models.load.new_tokenizers import train_llm_tokenizer, train_qformer_tokenizer
from instructkit.models.load.parts import summary
from instructkit.models.load.presets import build, preset
from instructkit.models.load.pretraining import join_pretraining, load_pretraining
from instructkit.models.load.qformer_text import is_text
from instructkit.models.load.trained import load_tokenizer, load_tokenizers, save_trained
from instructkit.models.packable import packing_note
from instructkit.models.resolution import set_image_size
from instructkit.models.save import base_places, load_model, save_model, save_pretraining
from instructkit.models.towers import merge_lora, without_lora
from instructkit.prompts.jinja import plain_caption
from instructkit.prompts.own_prompt import wordings_of
from instructkit.runs.run import Run
from instructkit.runs.waiting import first_on_machine, on_first_rank
from instructkit.training.data import Part
from instructkit.training.engine import Engine

Say = Callable[[str], None]
TOKENIZER_EXAMPLES = 20_000


def prepare_model(config: RunConfig, parts: list[Part], folder: Path, say: Say) -> tuple[InstructBlip, Texts]:
    """The model of a run and its tokenisers; call on every rank.

    A preset that starts from random weights gets tokenisers trained on the run's own text; they are kept in the run's
    folder, so that a run that goes on reads with the same ones.

    Raises:
        UserError: there is no such model, or it cannot be trained so.
    """
    limits = Limits(instruction=config.data.instruction_tokens, answer=config.data.answer_tokens)
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32

    def tokenizers() -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
        return _tokenizers(config, parts, folder / "tokenizers")

    if config.model.joined:
        model, texts = join(config.model, dtype, tokenizers, limits, config.seed, say)
    elif config.model.name != "nano":
        name, leave = config.model.name, config.model.allow_packages
        places = on_first_rank(lambda: base_places(name))
        model, texts = first_on_machine(
            lambda: load_model(name, limits, allow_packages=leave, places=places, dtype=dtype)
        )
    else:
        llm, qformer = tokenizers()
        model = build(preset("nano", len(llm), len(qformer), config.model.queries), config.seed)
        texts = Texts(llm, qformer, model.config, limits)
    check_queries(config.model, model.config.num_query_tokens)
    _set_size(config, model)
    model.config.instruction_aware = config.model.instruction_aware
    if texts.qformer is None and model.instruction_aware:
        raise UserError(
            f"model.name={config.model.name}: a BLIP-2 whose Q-Former reads no text; set "
            "model.instruction_aware=false, or name it as model.qformer beside a model.name that has a "
            "tokenizer for a Q-Former, such as nano"
        )
    model.throughput = config.throughput
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.throughput.packing and (note := packing_note(model.language_model, device)) is not None:
        say(note)
    return model, texts


def check_pretraining(config: RunConfig) -> None:
    """Refuse settings that have no meaning in BLIP-2's first stage; no data and no model is needed.

    Raises:
        UserError: one has none.
    """
    refuse(config, "BLIP-2's first stage", _NO_FIRST_STAGE)
    if config.model.name != "nano" and config.model.joined:
        raise UserError(
            f"model.name={config.model.name}: the parts of a first stage are put together from model.vision and "
            "model.qformer, which takes a folder of a first stage as well; leave model.name out, or the parts"
        )
    if config.training.zero_stage == 3:
        raise UserError("training.zero_stage=3: BLIP-2's first stage runs under ZeRO 0 to 2; its model is a small one")


def refuse(config: RunConfig, what: str, reasons: Mapping[str, str]) -> None:
    """Refuse settings that have no meaning in a training.

    Args:
        config: of the run.
        what: is trained, for the message.
        reasons: why a setting has none, by its name.

    Raises:
        UserError: one is given.
    """
    for name, reason in reasons.items():
        group, _, key = name.partition(".")
        value = getattr(getattr(config, group), key)
        if value != getattr(getattr(RunConfig(), group), key):
            raise UserError(f"{name}={value}: {what} {reason}; leave that setting out")


def prepare_pretraining(
    config: RunConfig, parts: list[Part], folder: Path, say: Say
) -> tuple[Blip2Pretraining, Captions]:
    """The model of a run of BLIP-2's first stage and its tokeniser; call on every rank.

    A Q-Former that starts from random weights gets a tokeniser trained on the run's captions, which is kept in the
    run's folder.

    Raises:
        UserError: there is no such model, or a part of it.
    """
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    limit = config.data.caption_tokens

    def tokenizer() -> PreTrainedTokenizerBase:
        return caption_tokenizer(config, parts, folder / "tokenizers")

    if config.model.name == "nano":
        model, captions = join_pretraining(config.model, dtype, tokenizer, limit, config.seed, say)
    else:
        model, captions = first_on_machine(lambda: load_pretraining(config.model.name, limit, dtype))
        if model.fresh:
            say(f"model     joints          from random weights: {summary(model.fresh)}")
    check_queries(config.model, model.config.num_query_tokens)
    _set_size(config, model)
    return model, captions


def _set_size(config: RunConfig, model: InstructBlip | Blip2Pretraining) -> None:
    """Set the size of the pictures, where the run names one."""
    if config.model.image_size is not None:
        set_image_size(model.vision_model, model.config.vision_config, config.model.image_size)


def caption_tokenizer(config: RunConfig, parts: Sequence[Part], folder: Path) -> PreTrainedTokenizerBase:
    """A tokeniser trained on the run's captions, and kept in a folder; call on every rank."""

    def train() -> None:
        if not (config.resume and folder.is_dir()):
            texts = [
                plain_caption(text)
                for part in parts
                for one in islice(part.examples, TOKENIZER_EXAMPLES)
                for text in one.references
            ]
            with replacing(folder) as aside:
                train_qformer_tokenizer(texts, config.model.vocabulary).save_pretrained(aside / "qformer")

    on_first_rank(train)
    return load_tokenizer(folder / "qformer")


_NO_FIRST_STAGE = {
    "model.llm": "has no LLM",
    "model.llm_bits": "has no LLM",
    "towers.llm": "has no LLM",
    "model.instruction_aware": "has no instructions",
    "data.instruction_tokens": "has no instructions (data.caption_tokens cuts captions)",
    "data.answer_tokens": "has no answers (data.caption_tokens cuts captions)",
    "data.prompt": "has no prompts",
    "data.prefix": "has no prompts",
    "data.instructions": "has no instructions",
    "data.group_size": "reads one caption of a picture a step",
    "throughput.share_images": "has no other way to read images",
    "throughput.share_keys": "has no other way to read images",
    "throughput.packing": "has no LLM",
    "throughput.answers_only": "has no LLM",
    "evaluation.benchmarks": "ends with a model that answers nothing yet",
    "evaluation.every": "is not evaluated on its way",
}
"""Settings of a run that have no meaning in the first stage, and why."""


def frozen_warnings(config: RunConfig, model: InstructBlip | Blip2Pretraining | Blip) -> list[str]:
    """A line for each tower of which weights stay as they were drawn at random, though it is trained by nothing.

    Args:
        config: of the run.
        model: with `requires_grad` set on what is trained.
    """
    drawn = config.model.name == "nano" and not config.model.joined
    lines = []
    for setting, part in (("vision", "vision_model"), ("qformer", "qformer"), ("llm", "language_model")):
        if not hasattr(model, part):
            continue
        whole = dict(getattr(model, part).named_parameters(prefix=part))
        random = sum(
            weight.numel()
            for name, weight in whole.items()
            if not weight.requires_grad
            and (drawn or name.replace(".base_layer.", ".") in model.fresh)
            and (model.instruction_aware or not is_text(name))
        )
        if random:
            lines.append(
                f"towers.{setting}={getattr(config.towers, setting)}, but {random:,} of its "
                f"{sum(weight.numel() for weight in whole.values()):,} weights are random and stay so; set "
                f"towers.{setting}=full, or take a model.{setting} that was trained"
            )
    return lines


def warn_of_random(run: Run[RunConfig], model: InstructBlip | Blip2Pretraining | Blip) -> None:
    """Warn of weights that stay random (`frozen_warnings`)."""
    for line in frozen_warnings(run.config, model):
        run.log.warn(line)


def _tokenizers(
    config: RunConfig, parts: list[Part], folder: Path
) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    def train() -> None:
        if config.resume and folder.is_dir():
            return
        pairs = list(_sample_texts(parts, config))
        instructions = [instruction for instruction, _ in pairs if instruction] or [target for _, target in pairs]
        texts = [text for pair in pairs for text in pair]
        with replacing(folder) as aside:
            train_llm_tokenizer(texts, config.model.vocabulary).save_pretrained(aside / "llm")
            train_qformer_tokenizer(instructions, config.model.vocabulary).save_pretrained(aside / "qformer")

    on_first_rank(train)
    return load_tokenizers(folder)


def _sample_texts(parts: Iterable[Part], config: RunConfig) -> Iterator[tuple[str, str]]:
    """Instruction and target of the first examples of each dataset, in the wordings that training draws."""
    for part in parts:
        asked = config.data
        wordings = wordings_of(part.task, part.source, asked.prompt, asked.prefix, asked.instructions)
        for example in islice(part.examples, TOKENIZER_EXAMPLES):
            prompt = wordings.render(example, config.seed)
            yield prompt.instruction, prompt.target or ""


def save_run_model(config: RunConfig, engine: Engine, texts: Texts, folder: Path) -> None:
    """Write the model; of one that came from checkpoints only what was not in them, beside their names.

    Call on every rank.

    Raises:
        UserError: the disk refuses; a model that lay there before stays.
    """
    towers = {config.towers.vision, config.towers.qformer, config.towers.llm}
    whole = (config.model.name == "nano" and not config.model.joined) or towers == {"full"}
    if whole:
        merge_lora(engine.model)
    state = without_lora(engine.gathered_state()) if whole else engine.gathered_state(trained_only=True)
    if dist.get_rank() == 0:
        with replacing(folder) as aside:
            if whole:
                save_model(engine.model, texts, aside, state)
            else:
                save_trained(aside, engine.model, state, config.model, config.towers, texts)


def save_run_pretraining(engine: Engine, captions: Captions, folder: Path) -> None:
    """Write the model of BLIP-2's first stage, whole, so that transformers opens it; call on every rank.

    Raises:
        UserError: the disk refuses; a model that lay there before stays.
    """
    merge_lora(engine.model)
    state = without_lora(engine.gathered_state())
    if dist.get_rank() == 0:
        with replacing(folder) as aside:
            save_pretraining(engine.model, captions, aside, state)
