"""Whatever is a BLIP: our folders, transformers' three classes, and checkpoint files of BLIP and LAVIS.

A class or a finetuned file has only what its task needs. It is opened as a `Blip` without the rest, and `Blip.tasks`
says what it can do. NLVR2's files, whose text encoder reads two images, are none of them.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipTextConfig,
    BlipVisionConfig,
    PreTrainedTokenizerBase,
)

from instructkit.config.settings import ModelConfig
from instructkit.errors import UserError
from instructkit.models.batches import Captions
from instructkit.models.blip import Blip
from instructkit.models.load.blip import (
    BLIP_TOKENS,
    ENC,
    add_marks,
    bert_config,
    blip_config,
    is_mixture,
    load_blip,
    put,
    vit_config,
)
from instructkit.models.load.lavis import encoder_state, is_lavis, read_lavis
from instructkit.models.load.parts import failing, place_of, read_config, read_part, read_tokenizer, seeded
from instructkit.models.load.pretraining import WIDTH
from instructkit.models.load.tokenizer_files import open_tokenizer
from instructkit.models.load.trained import facts_of

TASKS = {
    "captioning": BlipForConditionalGeneration,
    "retrieval": BlipForImageTextRetrieval,
    "vqa": BlipForQuestionAnswering,
}
"""transformers' classes of BLIP, by what they are for."""
BERT = "bert-base-uncased"
"""Its tokeniser, with `[DEC]` and `[ENC]` behind its words, is that of BLIP's files."""
HEAD_WIDTH = 64
"""Width of an attention head in BLIP's files, which do not say it: BERT-base's and the ViTs'."""
_HEADS = ("vision_proj.", "text_proj.", "itm_head.", "temperature")
_OF_TRAINING = re.compile(r"\w+_m\..*|(image|text|idx)_queue|queue_ptr|ptr_queue|.*\.position_ids")


def blip_tasks(name: str) -> tuple[str, ...]:
    """What a BLIP can do, of `TASKS`; nothing for another model. No weights are read.

    Raises:
        UserError: no model is there, or a BLIP that can do nothing here.
    """
    if is_lavis(name):
        return _tasks_of_file(read_lavis(Path(name), "meta"), name) if Path(name).is_file() else ()
    if facts_of(Path(name)) is not None:
        return ()
    config = read_config(name, "name")
    if config.model_type != "blip":
        return ()
    return _tasks_of_mixture(config) if is_mixture(config) else (_task_of_class(name, config),)


def look_for_blip(settings: ModelConfig) -> None:
    """Look for the model of a training, or its parts; no weights are read.

    Raises:
        UserError: one is not there, or is of a kind that cannot be taken.
    """
    if (name := settings.name) != "nano":
        tasks = blip_tasks(name)
        if not tasks:
            raise UserError(
                f"model.name={name}: is no BLIP; name a folder that recipes/pretrain_blip.py wrote, or a file of LAVIS"
            )
        if tasks in (("captioning",), ("retrieval",)):
            raise UserError(
                f"model.name={name}: is a BLIP for {tasks[0]} alone; what is trained here is a whole one, with encoder "
                "and decoder: name one that was pre-trained"
            )
    for part, read in ((settings.vision, vit_config), (settings.text, bert_config)):
        if part is not None:
            read(part)


def open_blip(name: str, limit: int = BLIP_TOKENS, dtype: torch.dtype = torch.float32) -> tuple[Blip, Captions]:
    """Load any BLIP, and its tokeniser.

    Args:
        name: folder, hub name, or `.pth` file of BLIP or LAVIS.
        limit: texts are cut to so many tokens.
        dtype: of the weights.

    Raises:
        UserError: there is no such model, or it is another.
    """
    if is_lavis(name):
        model, tokenizer = _load_file(name)
    else:
        config: Any = read_config(name, "name")
        if config.model_type != "blip":
            raise UserError(f"model.name={name}: a {config.model_type}, no BLIP")
        if is_mixture(config):
            model, captions = load_blip(name, limit, dtype)
            model.tasks = _tasks_of_mixture(config)
            return model, captions
        model, tokenizer = _load_class(name, config, dtype)
    return model.to(dtype), Captions(tokenizer, min(limit, model.config.text_config.max_position_embeddings))


def _tasks_of_mixture(config: Any) -> tuple[str, ...]:
    # The decoder reads pictures and questions by the same weights.
    answers = config.vision_config.hidden_size == config.text_config.hidden_size
    return tuple(task for task in TASKS if task != "vqa" or answers)


def _task_of_class(name: str, config: Any) -> str:
    named = config.architectures or []
    for task, kind in TASKS.items():
        if kind.__name__ in named:
            return task
    classes = ", ".join(kind.__name__ for kind in TASKS.values())
    raise UserError(
        f"model.name={name}: a BLIP of the class {' '.join(named) or '(none is named)'}; there are {classes}"
    )


def _load_class(name: str, config: Any, dtype: torch.dtype) -> tuple[Blip, PreTrainedTokenizerBase]:
    """One of transformers' classes."""
    task = _task_of_class(name, config)
    tokenizer = read_tokenizer(name, "name")
    loaded = read_part(TASKS[task], name, "name", config=config, dtype=dtype)
    if loaded.fresh:
        raise UserError(
            f"model.name={name}: the checkpoint lacks {len(loaded.fresh)} tensors, among them {min(loaded.fresh)}"
        )
    config.sharing, config.enc_token_id = "none", _enc_token(name, config, tokenizer, task)
    with seeded(0):
        model = Blip(config)
    for key, child in loaded.module.named_children():
        setattr(model, key, child)
    _keep(model, (task,))
    return model, tokenizer


def _enc_token(name: str, config: Any, tokenizer: PreTrainedTokenizerBase, task: str) -> int:
    """The token that a text begins with where it is read with an image; `[CLS]` where the vocabulary has none."""
    words = config.text_config.vocab_size
    if ENC not in tokenizer.get_vocab() and len(tokenizer) + 2 <= words:
        add_marks(tokenizer)  # behind the words, as BLIP's
    if (known := getattr(config, "enc_token_id", None)) is not None:
        return int(known)
    if (token := tokenizer.get_vocab().get(ENC, words)) < words:
        return int(token)
    if task != "captioning":
        warnings.warn(
            f"model.name={name}: its vocabulary has no {ENC}; texts that are read with a picture begin with "
            f"{tokenizer.cls_token}, as transformers has them",
            stacklevel=2,
        )
    return int(tokenizer.cls_token_id)


def _keep(model: Blip, tasks: Collection[str]) -> None:
    """Leave out what no task reads, in place; heads, which are small, stay as they were drawn at random."""
    model.tasks = tuple(tasks)
    if not {"retrieval", "vqa"} & set(tasks):
        model.text_encoder = None
    if not {"captioning", "vqa"} & set(tasks):
        model.text_decoder = None
    if "retrieval" not in tasks:
        model.fresh = frozenset(name for name, _ in model.named_parameters() if name.startswith(_HEADS))


# --- files of BLIP and LAVIS


def _tasks_of_file(names: Iterable[str], where: str) -> tuple[str, ...]:
    """What a file's model can do, by the names of its tensors; nothing if it is no BLIP's."""
    names = set(names)
    reads, writes = (any(name.startswith(part) for name in names) for part in ("text_encoder.", "text_decoder."))
    if not (reads or writes) or any(name.startswith("Qformer.") for name in names):
        return ()
    if any(".crossattention.self0." in name or name.startswith("cls_head.") for name in names):
        raise UserError(f"{where}: a BLIP finetuned to classify pairs, as for NLVR2; that is not supported")
    compares = {"itm_head.weight", "vision_proj.weight", "text_proj.weight"} <= names
    if reads and writes:
        return tuple(TASKS) if compares else ("vqa",)
    if writes:
        return ("captioning",)
    if not compares:
        raise UserError(f"{where}: a BLIP with a text encoder alone: it can do none of {', '.join(TASKS)}")
    return ("retrieval",)


def _load_file(name: str) -> tuple[Blip, PreTrainedTokenizerBase]:
    state = read_lavis(Path(name))
    tasks = _tasks_of_file(state, name)
    if not tasks:
        raise UserError(f"{name}: no checkpoint of BLIP")
    renamed = blip_state(state, name)
    with failing(name, f"the tokenizer of {BERT}, which BLIP's files need, cannot be loaded"):
        tokenizer = open_tokenizer(place_of(BERT))
    add_marks(tokenizer)
    config = _config_of(renamed, tokenizer, name)
    with seeded(0):
        model = Blip(config)
    if tasks == tuple(TASKS):
        tasks = _tasks_of_mixture(config)
    _keep(model, tasks)
    for key in model.fresh:
        renamed[key] = model.get_parameter(key).detach().clone()
    renamed.setdefault("temperature", model.temperature.detach().clone())
    put(model, renamed, name)
    return model, tokenizer


def blip_state(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """A file's weights under their names in `Blip`; momentum encoder and queue are left out.

    Raises:
        UserError: one has a name that BLIP's have not.
    """
    renamed = {_vision_name(name): tensor for name, tensor in encoder_state(state).items()}
    for name, tensor in state.items():
        if name == "temp":
            renamed["temperature"] = tensor.reshape(1)
        elif name.startswith(("text_encoder.", "text_decoder.", "vision_proj.", "text_proj.", "itm_head.")):
            if not name.endswith(".position_ids"):
                renamed[name] = tensor
        elif not name.startswith("visual_encoder.") and not _OF_TRAINING.fullmatch(name):
            raise UserError(f"{where}: parameter {name}: not one of a checkpoint of BLIP")
    return renamed


def _vision_name(name: str) -> str:
    return re.sub(r"^vision_model\.norm\.", "vision_model.post_layernorm.", name)


def _config_of(state: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase, where: str) -> BlipConfig:
    """Sizes by the tensors' shapes; what these do not say is the same for all of BLIP's files."""
    tower = "text_encoder." if any(name.startswith("text_encoder.") for name in state) else "text_decoder.bert."
    try:
        words = state[f"{tower}embeddings.word_embeddings.weight"]
        places = state[f"{tower}embeddings.position_embeddings.weight"]
        patch = state["vision_model.embeddings.patch_embedding.weight"]
        grid = state["vision_model.embeddings.position_embedding"]
        reading = state[f"{tower}encoder.layer.0.intermediate.dense.weight"]
        looking = state["vision_model.encoder.layers.0.mlp.fc1.weight"]
    except KeyError as error:
        raise UserError(f"{where}: lacks {error.args[0]}, so it is no whole checkpoint of BLIP") from error
    if len(tokenizer) != len(words):
        raise UserError(
            f"{where}: has {len(words):,} words, the tokenizer of {BERT} with its two marks {len(tokenizer):,}"
        )
    text = BlipTextConfig(
        vocab_size=len(words),
        hidden_size=words.shape[1],
        intermediate_size=len(reading),
        num_hidden_layers=_layers(state, f"{tower}encoder.layer."),
        num_attention_heads=max(1, words.shape[1] // HEAD_WIDTH),
        max_position_embeddings=len(places),
        layer_norm_eps=1e-12,
    )
    vision = BlipVisionConfig(
        hidden_size=len(patch),
        intermediate_size=len(looking),
        num_hidden_layers=_layers(state, "vision_model.encoder.layers."),
        num_attention_heads=max(1, len(patch) // HEAD_WIDTH),
        image_size=math.isqrt(grid.shape[1] - 1) * patch.shape[-1],
        patch_size=patch.shape[-1],
        layer_norm_eps=1e-6,
    )
    width = len(state["vision_proj.weight"]) if "vision_proj.weight" in state else WIDTH
    config: Any = blip_config(text, vision, tokenizer, width)
    if not _is_shared(state):
        config.sharing = "none"
    return config


def _layers(state: Mapping[str, Tensor], stem: str) -> int:
    return 1 + max(int(name.removeprefix(stem).partition(".")[0]) for name in state if name.startswith(stem))


def _is_shared(state: Mapping[str, Tensor]) -> bool:
    """Whether the decoder has the encoder's cross-attention and feed-forwards, as in pre-training."""
    theirs = {name: f"text_decoder.bert.{name.removeprefix('text_encoder.')}" for name in state}
    common = {
        name: other for name, other in theirs.items() if name.startswith("text_encoder.") and ".attention." not in name
    }
    both = common and any(name.startswith("text_decoder.") for name in state)
    return bool(both) and all(
        other not in state or torch.equal(state[name], state[other]) for name, other in common.items()
    )
