"""Prompts to tensors: two tokenisers, pictures decoded once a batch, answers kept apart from what the Q-Former reads.

Row layout of a decoder-only LLM, as the predecessor's Vicuna rows: image tokens, instruction with its start token,
answer, end token, padding. An encoder-decoder reads image tokens and instruction, its decoder writes answer and end
token. The Q-Former's text is the instruction alone, always: no function here hands it a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import InstructBlipConfig, PreTrainedTokenizerBase

from instructkit.data.media import image_pixels, load_frames, load_image
from instructkit.models.instruct_blip import IGNORED
from instructkit.models.plain_text import PlainText
from instructkit.prompts.templates import Prompt

T = TypeVar("T")
FRAMES = 4
"""Frames taken of a video (paper, section 3.4: 4, uniformly)."""
CAPTION_TOKENS = 32
"""Tokens of a caption in BLIP-2's first stage (paper, section 4.1; LAVIS: `max_txt_len`)."""
DEC = "[DEC]"
"""What a caption begins with as the Q-Former writes it, in the place of `[CLS]` (BLIP-2, section 3.1)."""
TEXTS = ("qformer", "instruction", "answer")
"""The texts of a row that a limit can cut, as `Encoded` names them."""


@dataclass(frozen=True)
class Limits:
    """How many tokens of each text are kept (LAVIS: `max_txt_len`, `max_output_txt_len`).

    The defaults are those of an evaluation: LAVIS cuts the LLM's instruction in training alone.

    Attributes:
        qformer: of the instruction, in the Q-Former's tokens; the end is kept, where the question stands.
        instruction: of the instruction, in the LLM's tokens; the end is kept, too. None keeps all.
        answer: of the target; the beginning is kept, and a cut answer has no end token. None keeps all.
    """

    qformer: int = 128
    instruction: int | None = None
    answer: int | None = None


class Encoded(NamedTuple):
    """One prompt in tokens.

    Attributes:
        qformer: instruction for the Q-Former.
        instruction: instruction for the LLM.
        answer: target with its end token.
        cut: which of the three lost tokens to a limit, by these names.
    """

    qformer: list[int]
    instruction: list[int]
    answer: list[int]
    cut: tuple[str, ...] = ()


class Texts:
    """The two tokenisers of a model and the layout of its rows.

    Args:
        llm: tokeniser of the LLM.
        qformer: tokeniser of the Q-Former; None for one that reads no text, whose rows of text then are empty.
        config: the model's configuration.
        limits: lengths that texts are cut to; the Q-Former's own length is never exceeded.

    Attributes:
        end: token that ends an answer.
    """

    def __init__(
        self,
        llm: PreTrainedTokenizerBase,
        qformer: PreTrainedTokenizerBase | None,
        config: InstructBlipConfig,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        longest = min(limits.qformer, config.qformer_config.max_position_embeddings)
        self.llm, self.qformer, self.limits = llm, qformer, replace(limits, qformer=longest)
        self._llm, self._qformer = PlainText(llm), None
        if qformer is not None:
            qformer.truncation_side = "left"  # for those who read the saved tokeniser with plain transformers
            self._qformer = PlainText(qformer)
        own_end = getattr(config, "answer_end", None)
        self.end: int = llm.eos_token_id if own_end is None else own_end
        self.decoder_only: bool = config.use_decoder_only_language_model
        # The answer of a decoder-only LLM goes on where the instruction ends, so no token closes that.
        self.before, self.behind = self._llm.before, [] if self.decoder_only else self._llm.behind
        self.image_token: int = config.image_token_index
        self.queries: int = config.num_query_tokens
        self.pad = llm.pad_token_id if llm.pad_token_id is not None else llm.eos_token_id

    def encode(self, prompts: Sequence[Prompt], rooms: Sequence[int | None] | None = None) -> list[Encoded]:
        """Tokenise instructions for both readers, and targets where there are any.

        Every character of them is text: the names of control tokens are read as their letters.

        Args:
            prompts: texts.
            rooms: tokens that the LLM has left for each instruction, below the limit of all; None: no bound.
        """
        instructions = [prompt.instruction for prompt in prompts]
        qformer = self._qformer
        read = [[] for _ in prompts] if qformer is None else qformer.ids(instructions)
        around = ([], []) if qformer is None else (qformer.before, qformer.behind)
        llm = self._llm.ids(instructions)
        targets = iter(self.encode_answers([prompt.target for prompt in prompts if prompt.target is not None]))
        encoded = []
        for prompt, short, long, room in zip(prompts, read, llm, rooms or [None] * len(llm), strict=True):
            answer = [*next(targets), self.end] if prompt.target is not None else []
            limits = [limit for limit in (self.limits.instruction, room) if limit is not None]
            kept = Encoded(
                _framed(around[0], short, around[1], self.limits.qformer),
                _framed(self.before, long, self.behind, min(limits, default=None)),
                answer[: self.limits.answer],
            )
            whole = (
                len(around[0] + short + around[1]),
                len(self.before + long + self.behind),
                len(answer),
            )
            cut = tuple(name for name, ids, length in zip(TEXTS, kept, whole, strict=False) if len(ids) < length)
            encoded.append(kept._replace(cut=cut))
        return encoded

    def encode_answers(self, answers: Sequence[str]) -> list[list[int]]:
        """Tokens of texts that follow an instruction, without start and end token."""
        return self._llm.ids([self._llm.space + answer for answer in answers])

    def rows(self, encoded: Sequence[Encoded], frames: Sequence[int]) -> dict[str, Tensor]:
        """Padded tensors of a training batch: `input_ids`, `attention_mask`, `labels` and the Q-Former's text.

        Args:
            encoded: the rows.
            frames: number of images of each row; each puts its queries in front.
        """
        ids = self._read(encoded, frames)
        if self.decoder_only:
            labels = [[IGNORED] * len(read) + row.answer for read, row in zip(ids, encoded, strict=True)]
            ids = [read + row.answer for read, row in zip(ids, encoded, strict=True)]
        else:
            labels = [row.answer for row in encoded]
        return {
            "input_ids": padded(ids, self.pad),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
            "labels": padded(labels, IGNORED),
            **self.qformer_rows(encoded),
        }

    def prefixes(self, encoded: Sequence[Encoded], frames: Sequence[int]) -> dict[str, Tensor]:
        """Padded tensors of what the LLM reads before an answer, padded on the left so that rows end together."""
        ids = self._read(encoded, frames)
        return {
            "input_ids": padded(ids, self.pad, left=True),
            "attention_mask": padded([[1] * len(row) for row in ids], 0, left=True),
            **self.qformer_rows(encoded),
        }

    def _read(self, encoded: Sequence[Encoded], frames: Sequence[int]) -> list[list[int]]:
        """What the LLM reads in each row before it answers: image tokens, instruction."""
        image = [self.image_token] * self.queries
        return [image * count + row.instruction for count, row in zip(frames, encoded, strict=True)]

    def qformer_rows(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        """The Q-Former's text: instructions, never a target."""
        ids = [row.qformer for row in encoded]
        return {
            "qformer_input_ids": padded(ids, 0 if self.qformer is None else self.qformer.pad_token_id),
            "qformer_attention_mask": padded([[1] * len(row) for row in ids], 0),
        }


class Captions:
    """The Q-Former's tokeniser for texts that `Blip2Pretraining` compares with images or writes.

    Args:
        tokenizer: BERT's or one like it, with `[DEC]` among its special tokens.
        limit: at most so many tokens, `[CLS]` and `[SEP]` among them; the beginning is kept.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limit: int = CAPTION_TOKENS) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        self._plain = PlainText(tokenizer)

    def encode(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Tokens of each text with `[CLS]` and `[SEP]`, and whether it was cut. Every character of a text is text."""
        before, behind = self._plain.before, self._plain.behind
        room = self.limit - len(before) - len(behind)
        rows = self._plain.ids(texts)
        return [before + row[:room] + behind for row in rows], [len(row) > room for row in rows]

    def words(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text alone, however many."""
        return self._plain.ids(texts)

    def rows(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` of texts, `[texts, longest]`."""
        return self.padded(self.encode(texts)[0])

    def padded(self, ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` of encoded texts, `[texts, longest]`."""
        mask = padded([[1] * len(row) for row in ids], 0)
        return {"input_ids": padded(ids, self.tokenizer.pad_token_id), "attention_mask": mask}


def _framed(before: list[int], ids: list[int], behind: list[int], limit: int | None) -> list[int]:
    """A text with the tokens around it, cut to a limit: its end is kept."""
    over = 0 if limit is None else len(before) + len(ids) + len(behind) - limit
    return before + ids[max(0, over) :] + behind


def padded(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> Tensor:
    """Rows of unequal length as one integer tensor `[rows, longest]`."""
    width = max(len(row) for row in rows)
    out = np.full((len(rows), width), value, dtype=np.int64)
    for index, row in enumerate(rows):
        if left:
            out[index, width - len(row) :] = row
        else:
            out[index, : len(row)] = row
    return torch.from_numpy(out)


def share_images(rows: Sequence[Sequence[T]]) -> tuple[list[T], dict[str, Tensor]]:
    """The distinct pictures of a batch, and which row reads which of them.

    Args:
        rows: what names each row's pictures (a path, or a video and a frame), in order.

    Returns:
        The distinct pictures, and `image_index` and `image_rows`, both `[pairs]`, as `InstructBlip` reads them.
    """
    distinct = {picture: index for index, picture in enumerate(dict.fromkeys(p for row in rows for p in row))}
    pairs = [(distinct[picture], number) for number, row in enumerate(rows) for picture in row]
    index, owner = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
    return list(distinct), {"image_index": index, "image_rows": owner}


class Picture(NamedTuple):
    """What a row looks at: a picture file, or a frame of a video.

    Attributes:
        path: the file.
        frame: number of the frame, None for a picture.
        frames: number of frames that are taken of the video.
        clip: first and last second inside the video.
    """

    path: Path
    frame: int | None = None
    frames: int = 0
    clip: tuple[float | None, float | None] = (None, None)


def pictures(prompt: Prompt, root: Path, frames: int = FRAMES) -> list[Picture]:
    """The pictures that a prompt is about, in order; a video counts as `frames` of them.

    Args:
        prompt: names them relative to `root`.
        root: media root of its dataset.
        frames: frames taken of a video.
    """
    if prompt.video is not None:
        return [Picture(root / prompt.video, index, frames, prompt.clip) for index in range(frames)]
    return [Picture(root / image) for image in prompt.images]


def decode(wanted: Sequence[Picture], size: int, augment: Sequence[Random] | None = None) -> Tensor:
    """Decode pictures and frames: `[pictures, 3, size, size]`, float32.

    Args:
        wanted: distinct pictures; frames of one video are decoded together.
        size: pixels of a side.
        augment: what each picture's crop and flip are drawn from; None for evaluation.

    Raises:
        UserError: a file is missing or broken; the message names it.
    """
    videos: dict[tuple[Path, int, tuple[float | None, float | None]], list[Image.Image]] = {}
    out = np.empty((len(wanted), 3, size, size), dtype=np.float32)
    for index, picture in enumerate(wanted):
        if picture.frame is None:
            image = load_image(picture.path)
        else:
            key = (picture.path, picture.frames, picture.clip)
            if key not in videos:
                videos[key] = load_frames(picture.path, picture.frames, *picture.clip)
            image = videos[key][picture.frame]
        out[index] = image_pixels(image, size, augment[index] if augment else None)
    return torch.from_numpy(out)
