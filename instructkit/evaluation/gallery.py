"""A benchmark whose images and captions retrieve each other: its examples as a gallery, what was found as responses."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from instructkit.data.examples import Example
from instructkit.data.media_files import Stamps
from instructkit.errors import UserError
from instructkit.evaluation.benchmark import Task
from instructkit.evaluation.blocks import Blocks
from instructkit.evaluation.responses import CAPTION, Response, ResponseLog
from instructkit.evaluation.retrieve import Gallery, Hits, Pixels, Retrieved, retrieve
from instructkit.models.batches import Captions, Picture, decode
from instructkit.models.blip import Blip
from instructkit.models.blip2 import Blip2Pretraining
from instructkit.prompts.protocols import Protocol
from instructkit.runs.ranks import Ranks

SHOWN = 10
"""Hits of a search that are written down."""
BLOCKS = "blocks"


class FirstStage(NamedTuple):
    """A model of BLIP-2's first stage, or a BLIP, and its tokeniser.

    Attributes:
        model: in evaluation mode.
        captions: whose limit is the model's; that of a benchmark is the protocol's.
    """

    model: Blip2Pretraining | Blip
    captions: Captions

    @property
    def positions(self) -> int:
        """Tokens of the longest text that it reads."""
        config = self.model.config
        text = config.text_config if isinstance(self.model, Blip) else config.qformer_config
        return int(text.max_position_embeddings)


class Shown(NamedTuple):
    """The examples that take part, and their captions as the model reads them.

    Attributes:
        examples: one an image of the gallery.
        texts: the captions of each.
        cut: whether a caption lost tokens to the limit, in the order of the gallery's texts.
        failed: responses that say why an example takes no part.
    """

    examples: list[Example]
    texts: list[list[str]]
    cut: list[bool]
    failed: list[Response]


def retrieve_benchmark(
    stage: FirstStage,
    task: Task,
    identity: dict[str, Any],
    *,
    batch_size: int,
    ranks: Ranks | None = None,
    replace: bool = False,
    media: Stamps | None = None,
) -> ResponseLog:
    """Let the images and captions of a benchmark retrieve each other, or go on with it; all ranks call it.

    Every search is among all, so there are no answers until all is done. Till then what was computed lies in `blocks`
    beside them.

    Args:
        stage: the model.
        task: the benchmark.
        identity: what the responses depend on.
        batch_size: images, texts or pairs a forward pass.
        ranks: the processes that share the work out.
        replace: throw away what depends on something else, in place of an error.
        media: the stamps of the split's media files, by which replaced ones are noticed.

    Returns:
        The finished log.

    Raises:
        UserError: the folder holds something else, or the model computes something that is no number.
    """
    ranks = ranks or Ranks()
    log, blocks = ResponseLog(task.folder, ranks), Blocks(task.folder / BLOCKS, ranks)
    if log.open(identity, [task.plan.order], replace, media):
        blocks.open(identity, _digest(media), replace)
        protocol = task.question.protocol
        gallery, shown = _gallery(stage, task)
        assert protocol.retrieval is not None, "checked with the protocol"
        found = retrieve(stage.model, gallery, protocol.retrieval.k, batch_size, blocks)
        if found is not None:
            log.append(_responses(protocol, gallery, shown, found))
    ranks.wait()
    blocks.drop()
    log.close(task.plan.order)
    return log


def _digest(media: Stamps | None) -> str:
    return hashlib.sha256(msgspec.json.encode(media, order="sorted")).hexdigest()[:16]


def _gallery(stage: FirstStage, task: Task) -> tuple[Gallery, Shown]:
    """Everything that is searched; examples of which a caption comes out blank are left out."""
    protocol, root = task.question.protocol, Path(task.examples.manifest.media_root)
    assert protocol.retrieval is not None
    limit = min(protocol.retrieval.text_tokens, stage.positions)
    captions = Captions(stage.captions.tokenizer, limit)
    examples: list[Example] = []
    texts: list[list[str]] = []
    failed: list[Response] = []
    for example in task.examples.take(sorted(index for batch in task.plan.batches for index in batch)):
        try:
            texts.append(protocol.captions(example))
            examples.append(example)
        except UserError as error:
            failed.append(Response(example=example.id, images=example.images, error=str(error)))
    ids, cut = captions.encode([text for each in texts for text in each])
    size = stage.model.config.vision_config.image_size
    paths = [root / example.images[0] for example in examples]
    gallery = Gallery(
        images=len(examples),
        pixels=lambda numbers: _pixels(numbers, paths, size),
        texts=ids,
        owner=[number for number, each in enumerate(texts) for _ in each],
        name=protocol.benchmark,
        pad=captions.tokenizer.pad_token_id or 0,
    )
    return gallery, Shown(examples, texts, cut, failed)


def _pixels(numbers: Sequence[int], paths: Sequence[Path], size: int) -> Pixels:
    good: list[int] = []
    values: list[torch.Tensor] = []
    errors: dict[int, str] = {}
    for number in numbers:
        try:
            values.append(decode([Picture(paths[number])], size))
            good.append(number)
        except UserError as error:
            errors[number] = str(error)
    return Pixels(good, torch.cat(values) if values else torch.empty(0, 3, size, size), errors)


def _responses(protocol: Protocol, gallery: Gallery, shown: Shown, found: Retrieved) -> list[Response]:
    """What each example's image and captions found."""
    names = [example.images[0] for example in shown.examples]
    texts = [text for each in shown.texts for text in each]
    of_text = dict(zip(found.texts.tolist(), range(len(found.texts)), strict=True))
    mine: list[list[int]] = [[] for _ in shown.examples]
    for text, image in enumerate(gallery.owner):
        mine[image].append(text)
    responses = [
        *shown.failed,
        *(
            Response(example=shown.examples[number].id, images=shown.examples[number].images, error=error)
            for number, error in found.errors.items()
        ),
    ]
    for row, number in enumerate(found.images.tolist()):
        example = shown.examples[number]
        searches = [of_text[text] for text in mine[number]]
        hits = _first(found.of_images, row, texts)
        group = example.meta.get(protocol.group_by) if protocol.group_by else None
        responses.append(
            Response(
                example=example.id,
                images=example.images,
                prompt=shown.texts[number][0],
                cut=[CAPTION for text in mine[number] if shown.cut[text]],
                prediction={
                    "text": int(found.of_images.place[row]),
                    "images": [int(found.of_texts.place[search]) for search in searches],
                },
                reference=protocol.reference(example),
                text=hits[0][0],
                ranked=hits,
                found=[_first(found.of_texts, search, names) for search in searches],
                expected=shown.texts[number],
                group=group,
            )
        )
    return responses


def _first(hits: Hits, row: int, names: Sequence[str]) -> list[tuple[str, float]]:
    first = zip(hits.numbers[row, :SHOWN].tolist(), hits.score[row, :SHOWN].tolist(), strict=True)
    return [(names[number], score) for number, score in first]
