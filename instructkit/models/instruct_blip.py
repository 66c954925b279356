"""`InstructBlip`: transformers' InstructBLIP with what instruction tuning needs and it lacks.

Parameter names are those of `InstructBlipForConditionalGeneration`, so what is saved here loads there and gives the
same logits. Added are: several images (video frames) a row, the instruction-aware switch of the paper's ablation, and
a loss that leaves out what a training step does not need (`instructkit.config.settings.ThroughputConfig`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration
from transformers.models.instructblip.modeling_instructblip import BaseModelOutputWithVisionQformerOutputs

from instructkit.config.settings import ThroughputConfig
from instructkit.models.packable import can_pack
from instructkit.models.packing import Rows, packed_rows, similar_rows
from instructkit.models.qformer import read_images, read_layer
from instructkit.models.vision import ImageTower

IGNORED = -100


class AnswerLoss(NamedTuple):
    """Negative log-likelihood of the target tokens of a batch.

    Attributes:
        total: sum over the target tokens, float32, a scalar that carries the gradient.
        tokens: number of target tokens.
        rows: sum of each row without gradient, `[rows]`.
        patches: what the vision encoder made of `pixel_values` before its last layer norm, without gradient; only
            where cached features come with the batch.
    """

    total: Tensor
    tokens: int
    rows: Tensor
    patches: Tensor | None = None


class Answers(NamedTuple):
    """Predictions of some target tokens.

    Attributes:
        logits: `[tokens, vocabulary]`.
        targets: the tokens, `[tokens]`.
        rows: row of each, `[tokens]`.
    """

    logits: Tensor
    targets: Tensor
    rows: Tensor


class InstructBlip(ImageTower, InstructBlipForConditionalGeneration):
    """InstructBLIP (arXiv 2305.06500): frozen image encoder, instruction-aware Q-Former, LLM.

    `config.instruction_aware = False` keeps the instruction from the Q-Former but not from the LLM, the ablation of
    the paper's table 2.

    `config.vision_encoder`, where it is there, describes an image encoder of another family (`VisionEncoder`).

    Attributes:
        throughput: what a training step leaves out; the loss is the same with every setting.
        fresh: names of the parameters that no checkpoint gave, in a model that was joined from parts.
        read_layer: how a layer of the Q-Former is run over shared images.
    """

    throughput = ThroughputConfig()
    fresh: frozenset[str] = frozenset()
    read_layer: Callable[..., Tensor] = staticmethod(read_layer)

    def __init__(self, config: InstructBlipConfig) -> None:
        super().__init__(config)
        self.take_encoder()

    @property
    def instruction_aware(self) -> bool:
        """Whether the Q-Former reads the instruction."""
        return bool(getattr(self.config, "instruction_aware", True))

    @property
    def hidden_size(self) -> int:
        """Width of the LLM's hidden states."""
        return int(self.language_model.config.hidden_size)

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
        # The encoder may compute in another precision; transformers keeps query tokens in fp32 where all else is fp16.
        image_features = image_features.to(self.qformer.dtype)
        ids = qformer_input_ids[image_rows] if self.instruction_aware and qformer_input_ids is not None else None
        mask = None
        if ids is not None and qformer_attention_mask is not None:
            mask = qformer_attention_mask[image_rows]
        if self.throughput.share_keys:
            hidden = read_images(
                self.qformer, self.query_tokens, image_features, image_index, ids, mask, self.read_layer
            )
        else:
            queries = self.query_tokens.expand(len(image_index), -1, -1)
            if ids is not None:
                text = torch.ones_like(ids) if mask is None else mask
                mask = torch.cat([text.new_ones(queries.shape[:2]), text], dim=1)
            hidden = self.qformer(
                input_ids=ids,
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
        return self.embed(input_ids, soft)

    def embed(self, input_ids: Tensor, soft: Tensor) -> Tensor:
        """Embeddings of tokens, soft prompts in the places of the image tokens: `[..., LLM width]`."""
        places = input_ids == self.config.image_token_index
        # The image token need not be in the LLM's vocabulary.
        embeds = self.get_input_embeddings()(input_ids.masked_fill(places, 0))
        return embeds.masked_scatter(places.unsqueeze(-1), soft.to(embeds.dtype))

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
        image_patches: Tensor | None = None,
        image_order: Tensor | None = None,
    ) -> AnswerLoss:
        """Negative log-likelihood of the answers.

        Args:
            pixel_values: distinct images of the batch, `[images, 3, height, width]`; where features were kept, only
                those without.
            image_index: which image each pair of row and image reads, `[pairs]`; sorted by row.
            image_rows: which row each pair belongs to, `[pairs]`.
            qformer_input_ids: instruction for the Q-Former, `[rows, text]`.
            qformer_attention_mask: `[rows, text]`.
            input_ids: image tokens and instruction, for decoder-only LLMs the answer behind it, `[rows, length]`.
            attention_mask: `[rows, length]`.
            labels: answer tokens, -100 elsewhere: `[rows, length]` for decoder-only LLMs, `[rows, answer]` for
                encoder-decoders.
            image_patches: kept features of the other images (`encode_patches`), `[images, patches + 1, vision width]`.
            image_order: where each distinct image of the batch stands in (`pixel_values`, `image_patches`), `[images]`.
        """
        patches = None
        if image_patches is not None:
            assert image_order is not None, "a cache says where each image stands"
            features, patches = self.with_kept(pixel_values, image_patches, image_order)
        elif self.throughput.share_images:
            features = self.encode_images(pixel_values)
        else:
            features = self.encode_images(pixel_values[image_index])
            image_index = torch.arange(len(image_index), device=image_index.device)
        soft = self.query_images(features, image_index, image_rows, qformer_input_ids, qformer_attention_mask)
        total = soft.new_zeros((), dtype=torch.float32)
        rows = torch.zeros(len(labels), device=soft.device)
        tokens = 0
        for answers in self.predict(input_ids, attention_mask, labels, soft):
            if not len(answers.rows):  # a call for other ranks' sake: its gradient is zero, but ZeRO 3 waits for it
                total = total + 0 * answers.logits.float().sum()
                continue
            nll = nn.functional.cross_entropy(answers.logits.float(), answers.targets, reduction="none")
            total = total + nll.sum()
            rows = rows.index_add(0, answers.rows, nll.detach())
            tokens += len(answers.targets)
        return AnswerLoss(total, tokens, rows, patches)

    def predict(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, soft: Tensor) -> Iterator[Answers]:
        """The LLM's predictions of all target tokens, in one forward pass or several.

        A pass that only keeps this rank in step with others (`most_calls`) gives `Answers` with logits but no rows.
        """
        lengths = attention_mask.sum(1).tolist()
        if not self.config.use_decoder_only_language_model:
            yield from self._predict_grouped(self.embed(input_ids, soft), attention_mask, labels, lengths)
        elif self.throughput.packing and can_pack(self.language_model, max(lengths)):
            yield self._predict_packed(input_ids, attention_mask.bool(), labels, soft, lengths)
        else:
            targets = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
            inputs = {"inputs_embeds": self.embed(input_ids, soft), "attention_mask": attention_mask}
            logits = self._project(targets != IGNORED, **inputs)
            yield Answers(logits, targets[targets != IGNORED], (targets != IGNORED).nonzero()[:, 0])

    def _predict_packed(
        self, input_ids: Tensor, kept: Tensor, labels: Tensor, soft: Tensor, lengths: list[int]
    ) -> Answers:
        """All rows end to end as one row of a decoder-only LLM."""
        rows = Rows(lengths, input_ids.device)
        # A row's first token is no target, so shifting the packed labels never moves one into the row before.
        targets = nn.functional.pad(labels[kept][1:], (0, 1), value=IGNORED)
        wanted = targets != IGNORED
        with packed_rows(self.language_model, rows):
            logits = self._project(
                wanted[None],
                inputs_embeds=self.embed(input_ids[kept], soft)[None],
                position_ids=rows.positions[None],
            )
        return Answers(logits, targets[wanted], rows.owner[wanted])

    def _predict_grouped(
        self, embeds: Tensor, attention_mask: Tensor, labels: Tensor, lengths: list[int]
    ) -> Iterator[Answers]:
        """Rows of similar length together through an encoder-decoder LLM."""
        answers = (labels != IGNORED).sum(1).tolist()
        groups = [list(range(len(lengths)))]
        if self.throughput.packing:
            groups = similar_rows(list(zip(lengths, answers, strict=True)))

        def call(group: list[int]) -> Answers:
            rows = torch.tensor(group, device=labels.device)
            length, answer = (max(texts[row] for row in group) for texts in (lengths, answers))
            targets = labels[rows, :answer]
            wanted = targets != IGNORED
            logits = self._project(
                wanted,
                inputs_embeds=embeds[rows, :length],
                attention_mask=attention_mask[rows, :length],
                decoder_input_ids=self.shift_right(targets),
            )
            return Answers(logits, targets[wanted], rows[wanted.nonzero()[:, 0]])

        spare = self.most_calls(len(groups)) - len(groups)
        yield from map(call, groups)
        for _ in range(spare):  # the shortest row once more
            logits, targets, rows = call(groups[0][:1])
            yield Answers(logits, targets[:0], rows[:0])

    def _project(self, wanted: Tensor, **inputs: Tensor) -> Tensor:
        """The LLM's logits at the wanted positions, `[positions, vocabulary]`."""
        if not self.throughput.answers_only:
            everywhere: Tensor = self.language_model(**inputs, use_cache=False).logits
            return everywhere[wanted]
        with project_only(self.language_model.get_output_embeddings(), wanted):
            logits: Tensor = self.language_model(**inputs, use_cache=False).logits
        return logits[wanted] if logits.shape[:2] == wanted.shape else logits[0]

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

    A head that does not read `[rows, length, width]` (ProphetNet's) sees them all.

    Whatever the LLM does to logits after its head (scaling, soft caps) still happens, which calling the head by hand
    would miss.

    Args:
        head: the output embeddings of the LLM.
        wanted: True for the positions to project, `[rows, length]`.
    """

    def select(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][wanted].unsqueeze(0),) if inputs[0].shape[:2] == wanted.shape else inputs

    hook = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
