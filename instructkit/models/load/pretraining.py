"""The model of BLIP-2's first stage: from parts, or from a folder.

    config.json, model.safetensors, tokenizer files   as transformers' `Blip2ForImageTextRetrieval` has them
    stage1.safetensors                                what that class lacks: the head that writes captions, temperature

Image encoder and Q-Former are named as everywhere (`model.vision`, `model.qformer`); what no checkpoint gives starts
from random weights that follow from the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2PreTrainedModel,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    InstructBlipVisionModel,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from instructkit.config.settings import ModelConfig
from instructkit.errors import UserError
from instructkit.models.batches import CAPTION_TOKENS, DEC, Captions
from instructkit.models.blip2 import TEMPERATURE, Blip2Pretraining, WordHead
from instructkit.models.load.join import fresh_lines
from instructkit.models.load.lavis import is_lavis
from instructkit.models.load.parts import (
    Loaded,
    has_qformer,
    read_config,
    read_part,
    read_tokenizer,
    seeded,
)
from instructkit.models.load.presets import preset
from instructkit.models.load.qformer import SHAPE, load_qformer
from instructkit.models.load.trained import facts_of
from instructkit.models.load.vision import Vision, load_vision

STAGE1 = "stage1.safetensors"
QUERIES, WIDTH = 32, 256
"""Query tokens, and width of the embeddings that are compared, of a model that starts from BERT (paper, 3.1, 3.4)."""
NANO_WIDTH = 64
_VISION = (  # what BLIP-2's and InstructBLIP's configurations call alike
    "hidden_size intermediate_size num_hidden_layers num_attention_heads image_size patch_size hidden_act "
    "layer_norm_eps attention_dropout qkv_bias initializer_range"
)
_BERT_HEAD = {
    r"^cls\.predictions\.": "itg_head.",
    r"\.LayerNorm\.gamma$": ".LayerNorm.weight",
    r"\.LayerNorm\.beta$": ".LayerNorm.bias",
}
Say = Callable[[str], None]


class Heads(Blip2PreTrainedModel):
    """What stands behind the Q-Former in the first stage, under the names that it has in the whole model."""

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        width = config.qformer_config.hidden_size
        self.vision_projection = nn.Linear(width, config.image_text_hidden_size)
        self.text_projection = nn.Linear(width, config.image_text_hidden_size)
        self.itm_head = nn.Linear(width, 2)
        self.itg_head = WordHead(config.qformer_config)
        self.post_init()


def is_pretraining(name: str) -> bool:
    """Whether a name stands for a model of BLIP-2's first stage.

    Raises:
        UserError: no model is there.
    """
    if facts_of(Path(name)) is not None or is_lavis(name):
        return False
    return _of_first_stage(read_config(name, "name"))


def _of_first_stage(config: PreTrainedConfig) -> bool:
    return config.model_type == "blip-2" and bool(config.qformer_config.use_qformer_text_input)


def load_pretraining(
    name: str, limit: int = CAPTION_TOKENS, dtype: torch.dtype = torch.float32
) -> tuple[Blip2Pretraining, Captions]:
    """Load a model of BLIP-2's first stage and its tokeniser.

    Of a model that transformers alone wrote, which has neither the head that writes captions nor a temperature, these
    start anew: `model.fresh` names them.

    Args:
        name: folder, or name of a `Blip2ForImageTextRetrieval` on the Hugging Face hub.
        limit: texts are cut to so many tokens.
        dtype: of the weights.

    Raises:
        UserError: there is no such model, or it is another.
    """
    config = read_config(name, "name")
    if not _of_first_stage(config):
        raise UserError(
            f"model.name={name}: a {config.model_type}"
            f"{' whose Q-Former reads no text' if config.model_type == 'blip-2' else ''}, no model of BLIP-2's first "
            "stage; name a folder that recipes/pretrain_qformer.py wrote, or a Blip2ForImageTextRetrieval"
        )
    tokenizer = read_tokenizer(name, "name")
    config.image_token_index = None  # transformers would take the first tokens of a text for places of an image
    with seeded(0):
        loaded = read_part(Blip2Pretraining, name, "name", config=config, dtype=dtype)
        model: Blip2Pretraining = loaded.module
        fresh = loaded.fresh - _apply_added(model, Path(name))
        if lost := [key for key in fresh if not key.startswith(("itg_head.", "temperature"))]:
            raise UserError(f"model.name={name}: the checkpoint lacks {len(lost)} tensors, among them {min(lost)}")
        _begin(model, fresh)
        captions = _with_dec(model, tokenizer, limit)
    model.fresh = frozenset(fresh)
    return model, captions


def join_pretraining(
    settings: ModelConfig,
    dtype: torch.dtype,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    limit: int = CAPTION_TOKENS,
    seed: int = 0,
    say: Say = lambda line: None,
) -> tuple[Blip2Pretraining, Captions]:
    """Put an image encoder and a Q-Former together; parts that are not named are `nano`'s, from random weights.

    Args:
        settings: which parts.
        dtype: of all weights.
        tokenizer: gives that of `nano`'s Q-Former, if it is used.
        limit: captions are cut to so many tokens.
        seed: of what starts from random weights.
        say: takes a line for each part, with the names of all tensors that start from random weights.

    Raises:
        UserError: a part cannot be loaded, or does not fit.
    """
    with seeded(seed):
        vision = load_vision(settings.vision, dtype, settings.vision_layer) if settings.vision else _nano_vision()
        if settings.qformer:
            wanted = settings.queries or QUERIES
            model, words, note = _from_checkpoint(settings.qformer, vision, dtype, tokenizer, wanted)
        else:
            words = tokenizer()
            model, note = _from_nano(vision, words, settings.queries), "from random weights"
        captions = _with_dec(model, words, limit)
    model.to(dtype)
    model.vision_model = vision.loaded.module.to(dtype)
    model.fresh |= {f"vision_model.{name}" for name in vision.loaded.fresh}
    say(f"model     {'vision_model':<15} {settings.vision or settings.name}: {vision.note}")
    say(f"model     {'qformer':<15} {settings.qformer or settings.name}: {note}")
    for line in fresh_lines(model):
        say(line)
    return model, captions


def added(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a model's weights those that transformers' class lacks."""
    return {name: tensor for name, tensor in state.items() if name.startswith(("itg_head.", "temperature"))}


def _apply_added(model: Blip2Pretraining, folder: Path) -> set[str]:
    """Put the weights of `stage1.safetensors` in, where a folder has that file; their names."""
    if not (folder / STAGE1).is_file():
        return set()
    try:
        kept = load_file(folder / STAGE1)
        found = model.load_state_dict(kept, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder / STAGE1}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    if found.unexpected_keys:
        raise UserError(f"{folder / STAGE1}: holds {found.unexpected_keys[0]}, which the model has not")
    return set(kept)


def _begin(model: Blip2Pretraining | Heads, fresh: Collection[str]) -> None:
    """Give parameters that a checkpoint lacks, and that transformers does not know, their first values."""
    if "itg_head.bias" in fresh:
        nn.init.zeros_(model.itg_head.bias)
    if isinstance(model, Blip2Pretraining) and "temperature" in fresh:
        nn.init.constant_(model.temperature, TEMPERATURE)


def _nano_vision() -> Vision:
    config = preset("nano").vision_config
    module = InstructBlipVisionModel._from_config(config)
    names = frozenset(name for name, _ in module.named_parameters())
    return Vision(Loaded(module, names), config, None, "from random weights")


def _from_nano(vision: Vision, tokenizer: PreTrainedTokenizerBase, queries: int | None) -> Blip2Pretraining:
    nano = preset("nano", qformer_vocabulary=len(tokenizer), queries=queries)
    model = _build(vision, nano.qformer_config, nano.num_query_tokens, NANO_WIDTH, nano.initializer_range)
    model.fresh = frozenset(name for name, _ in model.named_parameters() if not name.startswith("vision_model."))
    return model


def _from_checkpoint(
    name: str, vision: Vision, dtype: torch.dtype, tokenizer: Callable[[], PreTrainedTokenizerBase], wanted: int
) -> tuple[Blip2Pretraining, PreTrainedTokenizerBase, str]:
    """A model around the Q-Former of BERT, BLIP-2 or InstructBLIP, with the heads that the checkpoint has."""
    whole = read_config(name, "qformer")
    blip = has_qformer(whole)
    words = len(tokenizer()) if blip and not _reads_text(whole) else 0
    queries = load_qformer(name, vision.config.hidden_size, None, wanted, words, dtype)
    shape = queries.loaded.module.config
    width = whole.image_text_hidden_size if whole.model_type == "blip-2" else WIDTH
    count = queries.joints.module.query_tokens.shape[1]
    model = _build(vision, shape, count, width, shape.initializer_range)
    mapping = None if blip else _BERT_HEAD
    heads = read_part(Heads, name, "qformer", config=model.config, dtype=dtype, key_mapping=mapping)
    _begin(heads.module, heads.fresh)
    own = {_blip2_name(key): tensor for key, tensor in queries.loaded.module.state_dict().items()}
    model.load_state_dict({**own, **heads.module.state_dict()}, strict=False)
    model.query_tokens.data.copy_(queries.joints.module.query_tokens.data)
    fresh = {_blip2_name(key) for key in queries.loaded.fresh} | heads.fresh | (queries.joints.fresh & {"query_tokens"})
    model.fresh = frozenset((fresh | {"temperature"}) - _apply_added(model, Path(name)))
    return model, queries.tokenizer or tokenizer(), queries.note


def _build(vision: Vision, shape: Any, queries: int, width: int, spread: float) -> Blip2Pretraining:
    """A model with random weights whose image encoder stays small: another takes its place.

    Args:
        vision: that other one.
        shape: configuration of an InstructBLIP's Q-Former.
        queries: number of query tokens.
        width: of the embeddings that are compared.
        spread: standard deviation of what is drawn.
    """
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**{key: getattr(vision.config, key) for key in _VISION.split()}),
        qformer_config=Blip2QFormerConfig(
            **{key: getattr(shape, key) for key in SHAPE.split()},
            cross_attention_frequency=shape.cross_attention_frequency,
            use_qformer_text_input=True,
        ),
        num_query_tokens=queries,
        image_text_hidden_size=width,
        initializer_range=spread,
    )
    small = deepcopy(config)
    small.vision_config.num_hidden_layers = 0
    model = Blip2Pretraining(small)
    if vision.foreign is not None:
        config.vision_encoder = vision.foreign
    if vision.epsilon is not None:
        config.post_layernorm_eps = vision.epsilon
    model.config = config
    nn.init.normal_(model.query_tokens, std=0.02)  # transformers' zeros could never be told apart
    return model


def _reads_text(config: Any) -> bool:
    return config.model_type == "instructblip" or bool(config.qformer_config.use_qformer_text_input)


def _blip2_name(name: str) -> str:
    """A parameter of InstructBLIP's Q-Former under the name that BLIP-2's class gives it."""
    if name.startswith("embeddings.layernorm."):
        return f"qformer.{name.removeprefix('embeddings.')}"
    return name if name.startswith("embeddings.") else f"qformer.{name}"


def _with_dec(model: Blip2Pretraining, tokenizer: PreTrainedTokenizerBase, limit: int) -> Captions:
    """Let model and tokeniser know `[DEC]`; where it is a new word, its embedding is drawn at random."""
    if tokenizer.bos_token != DEC:
        tokenizer.add_special_tokens({"bos_token": DEC})
    token = int(tokenizer.convert_tokens_to_ids(DEC))
    old, bias = model.embeddings.word_embeddings, model.itg_head.bias
    if token >= len(old.weight):
        rows = token + 1 - len(old.weight)
        more = torch.randn(rows, old.embedding_dim) * model.config.qformer_config.initializer_range
        weight = torch.cat([old.weight.data, more.to(old.weight.dtype)])
        model.embeddings.word_embeddings = nn.Embedding.from_pretrained(weight, False, padding_idx=old.padding_idx)
        model.itg_head.bias = nn.Parameter(torch.cat([bias.data, bias.data.new_zeros(rows)]))
        model.config.qformer_config.vocab_size = token + 1
    model.config.dec_token_id = token
    return Captions(tokenizer, min(limit, model.config.qformer_config.max_position_embeddings))
