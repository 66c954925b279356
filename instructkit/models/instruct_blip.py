"""`InstructBlip`: transformers' InstructBLIP with what instruction tuning needs and it lacks.

Parameter names are those of `InstructBlipForConditionalGeneration`, so what is saved here loads there and gives the
same logits. Added are: one vision pass for all rows that share an image, several images (video frames) a row, the
instruction-aware switch of the paper's ablation, and a loss that projects answer positions only onto the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import InstructBlipForConditionalGeneration
from transformers.models.instructblip.modeling_instructblip import BaseModelOutputWithVisionQformerOutputs

IGNORED = -100


class AnswerLoss(NamedTuple):
    """Negative log-likelihood of the target tokens of a batch.

    Attributes:
        total: sum over the target tokens, float32, a scalar that carries the gradient.
        tokens: number of target tokens.
        rows: sum of each row without gradient, `[rows]`.
    """

    total: Tensor
    tokens: int
    rows: Tensor


class InstructBlip(InstructBlipForConditionalGeneration):
    """InstructBLIP (arXiv 2305.06500): frozen image encoder, instruction-aware Q-Former, LLM.

    `config.instruction_aware = False` keeps the instruction from the Q-Former but not from the LLM, the ablation of
    the paper's table 2.
    """

    @property
    def instruction_aware(self) -> bool:
        """Whether the Q-Former reads the instruction."""
        return bool(getattr(self.config, "instruction_aware", True))

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Features of distinct images: `[images, 3, height, width]` to `[images, patches + 1, vision width]`."""
        features: Tensor = self.vision_model(pixel_values=pixel_values).last_hidden_state
        return features

    def query_images(
        self,
        image_features: Tensor,
        image_index: Tensor,
        image_rows: Tensor,
        qformer_input_ids: Tensor | None,
        qformer_attention_mask: Tensor | None,
    ) -> Tensor:
        """What the Q-Former reads off each row's images, projected to the LLM's width.

        Args:
            image_features: of the distinct images, `[images, patches + 1, vision width]`.
            image_index: which image each pair of row and image reads, `[pairs]`; sorted by row, frames in order.
            image_rows: which row each pair belongs to, `[pairs]`.
            qformer_input_ids: the instruction in the Q-Former's tokens, `[rows, text]`.
            qformer_attention_mask: 1 for text, 0 for padding, `[rows, text]`.

        Returns:
            Soft prompts `[pairs, queries, LLM width]`.
        """
        queries = self.query_tokens.expand(len(image_index), -1, -1)
        mask = None
        if not self.instruction_aware:
            qformer_input_ids = None
        if qformer_input_ids is not None:
            if qformer_attention_mask is None:
                qformer_attention_mask = torch.ones_like(qformer_input_ids)
            seen = qformer_attention_mask.new_ones(queries.shape[:2])
            mask = torch.cat([seen, qformer_attention_mask[image_rows]], dim=1)
            qformer_input_ids = qformer_input_ids[image_rows]
        hidden = self.qformer(
            input_ids=qformer_input_ids,
            attention_mask=mask,
            query_embeds=queries,
            encoder_hidden_states=image_features[image_index],
        ).last_hidden_state[:, : queries.shape[1]]
        projected: Tensor = self.language_projection(hidden)
        return projected

    def prefix(
        self,
        pixel_values: Tensor,
        image_index: Tensor,
        image_rows: Tensor,
        qformer_input_ids: Tensor | None,
        qformer_attention_mask: Tensor | None,
        input_ids: Tensor,
    ) -> Tensor:
        """Input embeddings of the LLM, soft prompts in the places of the image tokens: `[rows, length, LLM width]`."""
        features = self.encode_images(pixel_values)
        soft = self.query_images(features, image_index, image_rows, qformer_input_ids, qformer_attention_mask)
        embeds = self.get_input_embeddings()(input_ids)
        places = (input_ids == self.config.image_token_index).unsqueeze(-1)
        return embeds.masked_scatter(places, soft.to(embeds.dtype))

    def answer_loss(
        self,
        pixel_values: Tensor,
        image_index: Tensor,
        image_rows: Tensor,
        qformer_input_ids: Tensor | None,
        qformer_attention_mask: Tensor | None,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
    ) -> AnswerLoss:
        """Negative log-likelihood of the answers, with only their positions projected onto the vocabulary.

        Args:
            pixel_values: distinct images of the batch, `[images, 3, height, width]`.
            image_index: which image each pair of row and image reads, `[pairs]`; sorted by row.
            image_rows: which row each pair belongs to, `[pairs]`.
            qformer_input_ids: instruction for the Q-Former, `[rows, text]`.
            qformer_attention_mask: `[rows, text]`.
            input_ids: image tokens and instruction, for decoder-only LLMs the answer behind it, `[rows, length]`.
            attention_mask: `[rows, length]`.
            labels: answer tokens, -100 elsewhere: `[rows, length]` for decoder-only LLMs, `[rows, answer]` for
                encoder-decoders.
        """
        embeds = self.prefix(
            pixel_values, image_index, image_rows, qformer_input_ids, qformer_attention_mask, input_ids
        )
        if self.config.use_decoder_only_language_model:
            targets = labels[:, 1:]
            wanted = torch.nn.functional.pad(targets != IGNORED, (0, 1))
            inputs: dict[str, Any] = {"use_cache": False}
        else:
            targets = labels
            wanted = targets != IGNORED
            inputs = {"decoder_input_ids": self.shift_right(labels), "use_cache": False}
        with project_only(self.language_model.get_output_embeddings(), wanted):
            logits = self.language_model(inputs_embeds=embeds, attention_mask=attention_mask, **inputs).logits
        answer = targets[targets != IGNORED]
        nll = nn.functional.cross_entropy(logits[0].float(), answer, reduction="none")
        owner = (targets != IGNORED).nonzero()[:, 0]
        rows = torch.zeros(len(labels), device=nll.device).index_add(0, owner, nll.detach())
        return AnswerLoss(nll.sum(), int(answer.numel()), rows)

    def shift_right(self, labels: Tensor) -> Tensor:
        """Decoder inputs of an encoder-decoder LLM: the start token, then the answer without its last token."""
        config = self.language_model.config
        start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == IGNORED, config.pad_token_id)

    def forward(self, image_index: Tensor | None = None, **batch: Any) -> Any:
        """With `image_index` the loss of a batch (`answer_loss`); without it, transformers' own forward."""
        if image_index is None:
            return super().forward(**batch)
        return self.answer_loss(image_index=image_index, **batch)

    def get_image_features(
        self,
        pixel_values: Tensor,
        qformer_input_ids: Tensor,
        qformer_attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool | None = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithVisionQformerOutputs:
        """As in transformers; without instruction awareness the Q-Former gets an instruction of no tokens."""
        if not self.instruction_aware:
            qformer_input_ids, qformer_attention_mask = qformer_input_ids[:, :0], None
        return super().get_image_features(
            pixel_values, qformer_input_ids, qformer_attention_mask, interpolate_pos_encoding, **kwargs
        )


@contextmanager
def project_only(head: nn.Module, wanted: Tensor) -> Iterator[None]:
    """Let an LLM's output head see only some positions: its logits become `[1, wanted positions, vocabulary]`.

    Whatever the LLM does to logits after its head (scaling, soft caps) still happens, which calling the head by hand
    would miss.

    Args:
        head: the output embeddings of the LLM.
        wanted: True for the positions to project, `[rows, length]`.
    """

    def select(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0][wanted].unsqueeze(0),)

    hook = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
