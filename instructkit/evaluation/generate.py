"""Text from a prefix, by the decoding of a protocol."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from instructkit.models.instruct_blip import InstructBlip
from instructkit.protocols import Decoding


@torch.no_grad()
def generate_texts(
    model: InstructBlip,
    tokenizer: PreTrainedTokenizerBase,
    prefix_embeds: Tensor,
    prefix_mask: Tensor,
    decoding: Decoding,
) -> list[str]:
    """Generate one text a row.

    Args:
        model: in evaluation mode.
        tokenizer: of its LLM.
        prefix_embeds: what the LLM reads, padded on the left, `[rows, length, LLM width]`.
        prefix_mask: 1 for tokens, 0 for padding, `[rows, length]`.
        decoding: beams, length penalty and limits in new tokens.
    """
    ids = model.language_model.generate(
        inputs_embeds=prefix_embeds,
        attention_mask=prefix_mask,
        do_sample=False,
        num_beams=decoding.num_beams,
        # Beams of length 1 cannot be penalised; transformers warns about a penalty that has no effect.
        length_penalty=decoding.length_penalty if decoding.num_beams > 1 else None,
        min_new_tokens=decoding.min_new_tokens,
        max_new_tokens=decoding.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
