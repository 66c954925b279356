"""The Q-Former over shared images: keys and values once an image, instructions without padding.

transformers' Q-Former projects the image features to keys and values anew for every row, though rows that ask about one
image share them, and pads every instruction to the longest. This is the same computation with the same modules, and
so with the same parameter names; what dropout draws is distributed alike but not the same number by number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from instructkit.models.packing import Rows


class Keys(NamedTuple):
    """What a layer's cross-attention looks images up by, and what it finds there.

    Attributes:
        key: `[images, patches, heads, head width]`.
        value: likewise.
    """

    key: Tensor
    value: Tensor


class Sharing:
    """Which rows read which image, laid out so that an image's rows attend to it together.

    A row's queries do not see another's, so the queries of all rows of an image can be one long row of queries.

    Args:
        image_index: image of each row, `[rows]`.
    """

    def __init__(self, image_index: Tensor) -> None:
        index = image_index.cpu()
        rows = torch.argsort(index, stable=True)
        images, counts = torch.unique(index, return_counts=True)
        starts = counts.cumsum(0) - counts
        self.images: list[Tensor] = []
        self.rows: list[Tensor] = []
        for count in counts.unique().tolist():
            mine = counts == count
            self.images.append(images[mine].to(image_index.device))
            self.rows.append(rows[starts[mine, None] + torch.arange(count)].to(image_index.device))
        self.back = torch.argsort(torch.cat([rows.flatten() for rows in self.rows])).to(image_index.device)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float) -> Tensor:
        """Attention of rows over their images: `query` `[rows, queries, heads, width]`, keys `[images, ...]`."""
        outputs = []
        for images, rows in zip(self.images, self.rows, strict=True):
            shape = rows.shape
            q = query[rows.flatten()].unflatten(0, shape).flatten(1, 2).transpose(1, 2)
            every = len(images) == len(key)
            k, v = ((part if every else part[images]).transpose(1, 2) for part in (key, value))
            out = nn.functional.scaled_dot_product_attention(q, k, v, scale=scale, dropout_p=dropout)
            outputs.append(out.transpose(1, 2).unflatten(1, (shape[1], -1)).flatten(0, 1))
        return torch.cat(outputs)[self.back]


def read_images(
    qformer: nn.Module,
    queries: Tensor,
    image_features: Tensor,
    image_index: Tensor,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    layer: Callable[..., Tensor] | None = None,
) -> Tensor:
    """What the queries read off the images under each row's instruction.

    Args:
        qformer: transformers' `InstructBlipQFormerModel`.
        queries: query tokens, `[1, queries, width]`.
        image_features: of distinct images, `[images, patches, vision width]`.
        image_index: image of each row, `[rows]`.
        input_ids: instruction of each row, `[rows, text]`; None for none.
        attention_mask: 1 for text, 0 for padding behind it, `[rows, text]`; None where nothing is padded.
        layer: in place of `read_layer`.

    Returns:
        `[rows, queries, width]`.
    """
    modules: Any = qformer
    count, device = queries.shape[1], image_index.device
    tokens = len(image_index) * count
    hidden = queries.expand(len(image_index), -1, -1).flatten(0, 1)
    lengths = torch.zeros(len(image_index), dtype=torch.long)
    if input_ids is not None:
        text = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        lengths = text.sum(1).cpu()
        embeddings = modules.embeddings
        places = embeddings.position_ids[:, : text.shape[1]].expand_as(input_ids)
        words = embeddings.word_embeddings(input_ids[text]) + embeddings.position_embeddings(places[text])
        hidden = torch.cat([hidden.to(words.dtype), words])
    rows = Rows((lengths + count).tolist(), device, by_row([torch.full_like(lengths, count), lengths]).to(device))
    sharing = Sharing(image_index)
    hidden = modules.embeddings.layernorm(hidden.to(modules.embeddings.layernorm.weight.dtype))
    hidden = modules.embeddings.dropout(hidden)
    for module in modules.encoder.layer:
        hidden = (layer or read_layer)(module, hidden, rows, image_features, sharing, count)
    return hidden[:tokens].unflatten(0, (-1, count))


def read_layer(
    layer: Any, hidden: Tensor, rows: Rows, images: Tensor | Keys | None, sharing: Sharing | None, count: int
) -> Tensor:
    """One layer over packed rows.

    Args:
        layer: of transformers' InstructBLIP or BLIP-2.
        hidden: the queries of all rows, `count` of each, and then their texts, `[tokens, width]`.
        rows: how `hidden` falls into rows.
        images: features of the images, `[images, patches, vision width]`, or the keys that `image_keys` made of them.
        sharing: which row reads which image; None for rows without queries.
        count: number of queries.
    """
    hidden = layer.attention.output(_self_attention(layer.attention.attention, hidden, rows), hidden)
    queries = 0 if sharing is None else len(sharing.back) * count
    seen, words = hidden[:queries], hidden[queries:]
    if sharing is not None:
        if layer.has_cross_attention:
            cross = layer.crossattention
            keys = image_keys(layer, images) if isinstance(images, Tensor) else images
            seen = cross.output(_cross_attention(cross.attention, seen, keys, sharing, count), seen)
        seen = layer.feed_forward_chunk_query(seen)
    return torch.cat([seen, layer.feed_forward_chunk(words)]) if len(words) else seen


def image_keys(layer: Any, image_features: Tensor) -> Keys:
    """What a layer with cross-attention makes of images: `[images, patches, vision width]`."""
    module = layer.crossattention.attention
    return Keys(*(_heads(module, project(image_features)) for project in (module.key, module.value)))


def by_row(parts: Sequence[Tensor]) -> Tensor:
    """Tokens row by row, in a tensor that holds a first part of all rows, then a second part of all rows, and so on.

    Args:
        parts: tokens of each row in each part, `[rows]`.
    """
    pieces = torch.arange(int(sum(part.sum() for part in parts))).split(torch.cat(list(parts)).tolist())
    rows = len(parts[0])
    return torch.cat([pieces[number * rows + row] for row in range(rows) for number in range(len(parts))])


def _heads(module: Any, states: Tensor) -> Tensor:
    return states.unflatten(-1, (module.num_attention_heads, module.attention_head_size))


def _self_attention(module: Any, hidden: Tensor, rows: Rows) -> Tensor:
    parts = (_heads(module, project(hidden)) for project in (module.query, module.key, module.value))
    dropout = module.attention_dropout if module.training else 0.0
    return rows.attention(*parts, causal=False, scale=module.scaling, dropout=dropout).flatten(1)


def _cross_attention(module: Any, seen: Tensor, keys: Any, sharing: Sharing, count: int) -> Tensor:
    query = _heads(module, module.query(seen)).unflatten(0, (-1, count))
    dropout = module.attention_dropout if module.training else 0.0
    return sharing.attention(query, keys.key, keys.value, module.scaling, dropout).flatten(0, 1).flatten(1)
