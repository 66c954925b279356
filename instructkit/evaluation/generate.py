"""Text from a prefix, by the decoding of a protocol and by nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.generation.streamers import BaseStreamer

from instructkit.evaluation.beams import search_beams, why_beams_read_alone
from instructkit.prompts.protocols import Decoding


def generate_texts(
    language_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prefix_embeds: Tensor,
    prefix_mask: Tensor,
    decoding: Decoding,
    stream: Callable[[str], object] | None = None,
    end: int | None = None,
) -> list[str]:
    """Generate one text a row.

    Args:
        language_model: in evaluation mode.
        tokenizer: of it.
        prefix_embeds: what the LLM reads, padded on the left, `[rows, length, LLM width]`.
        prefix_mask: 1 for tokens, 0 for padding, `[rows, length]`.
        decoding: beams, penalties and limits in new tokens.
        stream: takes the text of a single row piece by piece as it is generated; for one beam.
        end: token that ends an answer; None for the tokeniser's.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    end = tokenizer.eos_token_id if end is None else end
    streamer = None if stream is None else Pieces(tokenizer, stream)
    ids = generate_ids(language_model, prefix_embeds, prefix_mask, decoding, end=end, pad=pad, streamer=streamer)
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


@torch.no_grad()
def generate_ids(
    language_model: PreTrainedModel,
    prefix_embeds: Tensor,
    prefix_mask: Tensor,
    decoding: Decoding,
    *,
    end: int,
    pad: int,
    streamer: BaseStreamer | None = None,
) -> Tensor:
    """Generate tokens, `[rows, longest]`; an encoder-decoder's rows begin with its start token.

    Padding is on the left, so that rows end together; positions follow the mask, so a row's text does not depend on
    the rows beside it. Beams share the prefix that they read where that was compared with transformers' `generate`,
    which reads it once a beam.

    Args:
        language_model: causal or sequence-to-sequence.
        prefix_embeds: what it reads, `[rows, length, width]`.
        prefix_mask: 1 for tokens, 0 for padding, `[rows, length]`.
        decoding: beams, penalties and limits in new tokens.
        end: id of the end token.
        pad: id that rows are filled up with; where it is 0, transformers fills the rows of a beam search with `end`.
        streamer: sees the tokens of a single row as they are generated, without beams.
    """
    most = decoding.most_new_tokens(not language_model.config.is_encoder_decoder)
    alone = why_beams_read_alone(language_model, prefix_embeds.shape[1] + most)
    if decoding.num_beams > 1 and streamer is None and alone is None:
        return search_beams(language_model, prefix_embeds, prefix_mask, decoding, end=end, fill=pad or end).ids
    return _plain_ids(language_model, prefix_embeds, prefix_mask, decoding, end=end, pad=pad, streamer=streamer)


def generation_note(language_model: PreTrainedModel) -> str | None:
    """A line for the log where every beam reads picture and prompt itself, which is slower; None where they share."""
    reason = why_beams_read_alone(language_model)
    return None if reason is None else f"generate  every beam reads picture and prompt, which is slower: {reason}"


def _plain_ids(
    language_model: PreTrainedModel,
    prefix_embeds: Tensor,
    prefix_mask: Tensor,
    decoding: Decoding,
    *,
    end: int,
    pad: int,
    streamer: BaseStreamer | None,
) -> Tensor:
    """As `generate_ids`, by transformers' `generate`."""
    settings = GenerationConfig(
        do_sample=False,
        num_beams=decoding.num_beams,
        # Beams of length 1 cannot be penalised; transformers warns about a penalty that has no effect.
        length_penalty=decoding.length_penalty if decoding.num_beams > 1 else None,
        min_new_tokens=decoding.min_new_tokens,
        max_new_tokens=decoding.most_new_tokens(not language_model.config.is_encoder_decoder),
        eos_token_id=end,
        pad_token_id=pad,
        bos_token_id=getattr(language_model.config, "bos_token_id", None),
        decoder_start_token_id=getattr(language_model.config, "decoder_start_token_id", None),
    )
    # The penalty counts new tokens alone, as LAVIS's does, whose prompt is embeddings, too. As a setting, transformers
    # would leave out as many new tokens as the row has padding.
    value = decoding.repetition_penalty
    penalty = [] if value == 1 else [RepetitionPenaltyLogitsProcessor(value)]
    with without_own_defaults(language_model):
        ids: Tensor = language_model.generate(
            inputs_embeds=prefix_embeds,
            attention_mask=prefix_mask,
            generation_config=settings,
            logits_processor=LogitsProcessorList(penalty),
            streamer=streamer,
        )
    return ids


class Pieces(BaseStreamer):
    """Hands a text on word by word; the pieces together are what decoding all tokens at once gives."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, take: Callable[[str], object]) -> None:
        self.tokenizer, self.take = tokenizer, take
        self.ids: list[int] = []
        self.prompt, self.said = True, 0

    def put(self, value: Tensor) -> None:
        """What transformers calls first with the prompt, which is embeddings here, then with each token."""
        if self.prompt:
            self.prompt = False
            return
        self.ids += value.flatten().tolist()
        text = self._text()
        self._say(text[: text.rfind(" ") + 1].rstrip())  # the last word may still grow

    def end(self) -> None:
        """What transformers calls behind the last token."""
        self._say(self._text())

    def _text(self) -> str:
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=True)).strip()

    def _say(self, text: str) -> None:
        if len(text) > self.said:
            self.take(text[self.said :])
            self.said = len(text)


@contextmanager
def without_own_defaults(language_model: PreTrainedModel) -> Iterator[None]:
    """Keep a checkpoint's generation settings out: transformers fills up with them whatever a protocol leaves open."""
    own = language_model.generation_config
    language_model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        language_model.generation_config = own
