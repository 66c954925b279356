"""An LLM that is told in words what is in the pictures: what a model could reach that sees everything.

It reads the descriptions of an example's pictures, then the benchmark's own prompt, and answers by the protocol's
decoding or candidates. No picture is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from transformers import InstructBlipConfig

from instructkit.errors import UserError
from instructkit.evaluation.answer import RANKED, Evaluator, Row
from instructkit.models.batches import Encoded, Picture, Texts
from instructkit.models.load.llm import Llm
from instructkit.models.positions import positions_of
from instructkit.prompts.described import in_words


class InWords(Evaluator):
    """An LLM with its tokeniser, and what is in the pictures.

    Args:
        llm: put into evaluation mode; causal, or one like T5.
        descriptions: what is to be seen in a picture or video, by its resolved path (`read_descriptions`).
        ranked: how many candidates a response keeps with their scores, the best; None for all.
    """

    def __init__(self, llm: Llm, descriptions: Mapping[Path, str], ranked: int | None = RANKED) -> None:
        self.language_model: Any = llm.loaded.module.eval()
        # The layout of rows is InstructBLIP's, without a query in front.
        text = deepcopy(self.language_model.config)  # which InstructBLIP's configuration changes
        config = InstructBlipConfig(text_config=text, num_query_tokens=0, image_token_index=-1)
        config.answer_end = llm.end
        self.texts = Texts(llm.tokenizer, None, config)
        self.limits = self.texts.limits
        self.descriptions, self.ranked = descriptions, ranked
        self.image_size = 1  # of the pictures that no row has
        self.positions = positions_of(self.language_model)
        self._tokenised = ((), [])

    def seen(self, row: Row, root: Path) -> Row:
        """The row with descriptions in front of its prompt, in place of its pictures.

        Raises:
            UserError: a picture has none.
        """
        told = []
        for name in [row.example.video] if row.example.video is not None else row.example.images:
            text = self.descriptions.get((root / name).resolve())
            if text is None:
                raise UserError(f"{row.example.id}: no description of {name}; the file of words has none")
            told.append(text)
        prompt = msgspec.structs.replace(row.prompt, instruction=in_words(told, row.prompt.instruction))
        return row._replace(prompt=prompt, looks=[])

    def prefixes(
        self, encoded: Sequence[Encoded], looks: Sequence[list[Picture]], pixels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the LLM reads before it answers: embeddings `[rows, length, width]` and mask `[rows, length]`."""
        rows = self.texts.prefixes(encoded, [0] * len(encoded))
        device = self.language_model.device
        with torch.no_grad():
            embeds = self.language_model.get_input_embeddings()(rows["input_ids"].to(device))
        return embeds, rows["attention_mask"].to(device)
