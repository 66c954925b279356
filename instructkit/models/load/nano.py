"""The towers of `nano`, which start from random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    InstructBlipConfig,
    InstructBlipQFormerModel,
    InstructBlipVisionModel,
    PreTrainedTokenizerBase,
)

from instructkit.errors import UserError
from instructkit.models.load.llm import Llm
from instructkit.models.load.parts import Loaded
from instructkit.models.load.presets import preset
from instructkit.models.load.qformer import Queries, fresh_joints
from instructkit.models.load.vision import Vision

Tokenizers = tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]
"""Those of LLM and Q-Former."""


class Nano:
    """The towers of `nano`, from random weights.

    Args:
        tokenizers: of LLM and Q-Former.
        dtype: of the weights.
        queries: number of query tokens; 8 if None.
    """

    def __init__(self, tokenizers: Tokenizers, dtype: torch.dtype, queries: int | None = None) -> None:
        self.tokenizers, self.dtype = tokenizers, dtype
        llm, qformer = map(len, tokenizers)
        self.config = preset("nano", llm, qformer, queries)
        self.queries: int = self.config.num_query_tokens

    def vision(self, layer: int | None) -> Vision:
        """The image encoder; it has no other layer to read than its last."""
        if layer is not None:
            raise UserError(f"model.vision_layer={layer}: nano's own encoder is trained for its last layer")
        config = self.config.vision_config
        return Vision(self._new(InstructBlipVisionModel._from_config(config)), config, None, "from random weights")

    def llm(self, bits: int | None) -> Llm:
        """The LLM."""
        if bits is not None:
            raise UserError(f"model.llm_bits={bits}: nano's own LLM has no weights to quantise; name one as model.llm")
        config = self.config.text_config
        return Llm(self._new(AutoModelForCausalLM.from_config(config)), self.tokenizers[0], "from random weights")

    def qformer(self, encoder_width: int, llm: Any) -> Queries:
        """The Q-Former for an image encoder and an LLM of any width."""
        shape = self.config.qformer_config
        shape.encoder_hidden_size = encoder_width
        whole = InstructBlipConfig(
            qformer_config=shape,
            text_config=llm,
            num_query_tokens=self.queries,
            initializer_range=self.config.initializer_range,
        )
        shape.encoder_hidden_size = encoder_width  # which the line above sets to the width of its own image encoder
        loaded = self._new(InstructBlipQFormerModel._from_config(shape))
        return Queries(loaded, fresh_joints(whole, self.dtype), self.tokenizers[1], "from random weights")

    def qformer_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokeniser of the text that the Q-Former reads."""
        return self.tokenizers[1]

    def words(self) -> int:
        """How many words it has."""
        return len(self.tokenizers[1])

    def _new(self, module: nn.Module) -> Loaded:
        return Loaded(module.to(self.dtype), frozenset(name for name, _ in module.named_parameters()))
