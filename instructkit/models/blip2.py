"""`Blip2Pretraining`: the model of BLIP-2's first stage, in which the Q-Former learns to see before it has an LLM.

It is transformers' `Blip2ForImageTextRetrieval`, under its parameter names, with what that lacks: the head that writes
captions, the learned temperature, and one pass over pairs of image and text that gives all three losses (BLIP-2, arXiv
2301.12597, section 3.1). ITC compares an image with a text, ITM judges whether the two belong together, ITG writes the
text from the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForImageTextRetrieval
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from instructkit.models.packing import Rows
from instructkit.models.qformer import Keys, Sharing, by_row, image_keys, read_layer
from instructkit.models.vision import ImageTower

K = TypeVar("K", Keys, Keys | None)
TEMPERATURE = 0.07
"""What the similarities are divided by at first (paper of CLIP, as in LAVIS); it is learned."""
QUERY, TEXT, WRITTEN, PADDING = range(4)
"""Kinds of places in a row, for `visible`."""


def visible(kinds: Tensor) -> Tensor:
    """Which places of a row see which: BLIP-2's three masks (section 3.1, figure 2).

    A row holds queries and a text that is read, which do not see each other (uni-modal, for ITC); then the same text as
    it is written, each token of which sees the queries and the tokens before it (prefix-causal, for ITG):

                          seen
                          queries    [CLS] a dog    [DEC] a dog
        queries           x x x      . . .          . . .
        [CLS] a dog       . . .      x x x          . . .
        [DEC]             x x x      . . .          x . .
        a                 x x x      . . .          x x .
        dog               x x x      . . .          x x x

    Places of one kind see each other. So the third mask (bidirectional, for ITM) is a row whose text is of the queries'
    kind: all of it sees all.

    Args:
        kinds: `QUERY`, `TEXT`, `WRITTEN` or `PADDING` of each place, `[..., places]`. Padding is seen by padding alone.

    Returns:
        True where the place of a row sees the place of a column, `[..., places, places]`.
    """
    sees, seen = kinds.unsqueeze(-1), kinds.unsqueeze(-2)
    places = torch.arange(kinds.shape[-1], device=kinds.device)
    later = places > places.unsqueeze(-1)
    return ((sees == seen) & ~((sees == WRITTEN) & later)) | ((sees == WRITTEN) & (seen == QUERY))


class PairRows(Rows):
    """Rows of queries, a text, and the text again as it is written, under the masks of ITC and ITG.

    The packed tensor holds the queries of all rows, then all texts, then all texts again.

    Args:
        lengths: tokens of each row's text.
        count: number of queries.
        device: where the tensors live.
    """

    masked = True

    def __init__(self, lengths: Sequence[int], count: int, device: torch.device) -> None:
        texts = torch.tensor(lengths)
        parts = [torch.full_like(texts, count), texts, texts]
        super().__init__((count + 2 * texts).tolist(), device, by_row(parts).to(device))
        self._kinds = torch.repeat_interleave(
            torch.tensor([QUERY, TEXT, WRITTEN]), torch.stack([part.sum() for part in parts])
        ).to(device)

    @cached_property
    def masks(self) -> list[Tensor | None]:
        """As `visible` says, `[rows, 1, places, places]` of each group."""
        layout = self.spread
        kinds = self._kinds[layout.source].masked_fill(layout.padding, PADDING)
        groups = kinds.split([rows * longest for rows, longest, _ in layout.shapes])
        return [
            visible(group.view(rows, 1, longest))
            for (rows, longest, _), group in zip(layout.shapes, groups, strict=True)
        ]


class Embedded(NamedTuple):
    """Pairs of image and text, before it is known what each is compared with.

    Attributes:
        features: of the images, `[pairs, patches, vision width]`.
        images: `embed_images` of them, `[pairs, queries, width]`.
        texts: `embed_texts`, `[pairs, width]`.
        temperature: what similarities are divided by, `[1]`.
    """

    features: Tensor
    images: Tensor
    texts: Tensor
    temperature: Tensor


class Candidates(NamedTuple):
    """Images and texts that ITM is to judge.

    Attributes:
        others: features of images beside those of the batch, `[images, patches, vision width]`; None for none.
        image_index: image of each row: one of the batch, or behind these one of `others`, `[rows]`.
        input_ids: text of each row, `[rows, text]`.
        attention_mask: 1 for text, 0 for padding behind it, `[rows, text]`.
    """

    others: Tensor | None
    image_index: Tensor
    input_ids: Tensor
    attention_mask: Tensor


class Pretraining(NamedTuple):
    """What the three losses are computed from.

    Attributes:
        images: `embed_images`, `[pairs, queries, width]`.
        texts: `embed_texts`, `[pairs, width]`.
        temperature: what similarities are divided by, `[1]`.
        matches: logits of "does not match" and "matches", `[rows, 2]`, float32.
        words: logits of the texts' tokens behind `[DEC]`, `[tokens, vocabulary]`, float32.
        targets: these tokens, `[tokens]`.
        owners: pair of each, `[tokens]`.
        patches: what the vision encoder made of `pixel_values` before its last layer norm, without gradient; only
            where cached features come with the batch.
    """

    images: Tensor
    texts: Tensor
    temperature: Tensor
    matches: Tensor
    words: Tensor
    targets: Tensor
    owners: Tensor
    patches: Tensor | None


class WordHead(nn.Module):
    """BERT's head over the words, whose matrix is that of the word embeddings; writes captions in ITG."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """Logits `[..., vocabulary]`; `words` are the word embeddings, `[vocabulary, width]`."""
        return nn.functional.linear(self.transform(hidden), words, self.bias)


class Blip2Pretraining(ImageTower, Blip2ForImageTextRetrieval):
    """Image encoder, Q-Former and the heads of BLIP-2's first stage.

    `config.vision_encoder`, where it is there, describes an image encoder of another family (`VisionEncoder`).
    `config.dec_token_id` is the token that a written text begins with.

    Everywhere texts are `input_ids` with `[CLS]` in front and `[SEP]` behind, `[texts, tokens]`, and `attention_mask`,
    1 for tokens and 0 for padding behind them (`instructkit.models.batches.Captions` makes both).

    Attributes:
        fresh: names of the parameters that no checkpoint gave.
        read_layer: how a layer of the Q-Former is run.
        instruction_aware: that the Q-Former reads texts, so that all of it is trained.
    """

    instruction_aware = True
    fresh: frozenset[str] = frozenset()
    read_layer: Callable[..., Tensor] = staticmethod(read_layer)

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        self.take_encoder()
        self.itg_head = WordHead(config.qformer_config)
        self.temperature = nn.Parameter(torch.tensor([TEMPERATURE]))  # DeepSpeed takes no scalars

    def embed_images(self, features: Tensor) -> Tensor:
        """What the queries see in images, to be compared with texts.

        Args:
            features: of distinct images (`encode_images`), `[images, patches, vision width]`.

        Returns:
            `[images, queries, width]`, each of length 1, float32.
        """
        count, device = self.query_tokens.shape[1], features.device
        rows = Rows([count] * len(features), device)
        sharing = Sharing(torch.arange(len(features), device=device))
        hidden = self._read(self._queries(len(features)), rows, self._keys(features), sharing)
        return self._project(self.vision_projection, hidden.unflatten(0, (-1, count)))

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Texts alone, to be compared with images: `[texts, width]`, each of length 1, float32."""
        words, lengths = self._words(input_ids, attention_mask)
        hidden = self._read(words, Rows(lengths, words.device), [None] * len(self.qformer.encoder.layer), None)
        return self._project(self.text_projection, hidden[_first(lengths).to(words.device)])

    def match(self, features: Tensor, image_index: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """How well texts fit images that are read together with them (ITM).

        Args:
            features: of distinct images (`encode_images`), `[images, patches, vision width]`; keys and values are made
                once an image, so let the texts of one image stand in one call.
            image_index: image of each text, `[pairs]`.
            input_ids: `[pairs, tokens]`.
            attention_mask: `[pairs, tokens]`.

        Returns:
            The logit of "matches", the mean over the queries, `[pairs]`, float32.
        """
        return self._judge(self._keys(features), image_index, input_ids, attention_mask)[:, 1]

    def pretrain(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        candidates: Callable[[Embedded], Candidates],
        image_patches: Tensor | None = None,
        image_order: Tensor | None = None,
    ) -> Pretraining:
        """All that the three losses need of some pairs.

        The queries are read once for ITC and ITG, beside the texts of both; ITM reads its rows afterwards. Images are
        made keys and values once for all of it.

        Args:
            pixel_values: image of each pair, `[pairs, 3, height, width]`; where features were kept, only those without.
            input_ids: its text, `[pairs, tokens]`.
            attention_mask: likewise.
            candidates: gets the pairs' embeddings and says which images and texts ITM judges.
            image_patches: kept features of the other images (`encode_patches`), `[images, patches, vision width]`.
            image_order: where each pair's image stands in (`pixel_values`, `image_patches`), `[pairs]`.
        """
        patches = None
        if image_patches is not None:
            assert image_order is not None, "a cache says where each image stands"
            features, patches = self.with_kept(pixel_values, image_patches, image_order)
        else:
            features = self.encode_images(pixel_values)
        keys = self._keys(features)
        images, texts, written, targets, owners = self._embed_and_write(keys, input_ids, attention_mask)
        # A copy: DeepSpeed hooks what a model returns, and a parameter would gather a hook every step.
        temperature = self.temperature.clone()
        chosen = candidates(Embedded(features, images, texts, temperature))
        if chosen.others is not None:
            keys = joined_keys(keys, self._keys(chosen.others))
        matches = self._judge(keys, chosen.image_index, chosen.input_ids, chosen.attention_mask)
        words = self.itg_head(written, self.embeddings.word_embeddings.weight).float()
        return Pretraining(images, texts, temperature, matches, words, targets, owners, patches)

    def forward(self, pixel_values: Tensor, candidates: Any = None, **batch: Any) -> Any:
        """With `candidates` what the losses of pairs need (`pretrain`); without, transformers' own forward."""
        if candidates is None:
            return super().forward(pixel_values, **batch)
        return self.pretrain(pixel_values, candidates=candidates, **batch)

    def _embed_and_write(
        self, keys: list[Keys | None], input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """One pass for ITC and ITG.

        Returns:
            Embeddings of images and texts; of the texts as they are written the hidden states that a next token is told
            from, `[tokens, width]`, the tokens and the pair of each, `[tokens]`.
        """
        count, pairs = self.query_tokens.shape[1], len(input_ids)
        text = attention_mask.bool()
        begun = torch.cat([torch.full_like(input_ids[:, :1], self.config.dec_token_id), input_ids[:, 1:]], dim=1)
        words, lengths = self._words(torch.cat([input_ids, begun]), torch.cat([text, text]))
        lengths = lengths[:pairs]
        rows = PairRows(lengths, count, words.device)
        sharing = Sharing(torch.arange(pairs, device=words.device))
        hidden = self._read(torch.cat([self._queries(pairs), words]), rows, keys, sharing)
        queries, read, written = hidden.split([pairs * count, sum(lengths), sum(lengths)])
        first = _first(lengths).to(words.device)
        owners = torch.repeat_interleave(torch.arange(pairs), torch.tensor(lengths)).to(words.device)
        behind = torch.ones_like(owners, dtype=torch.bool)
        behind[first] = False
        return (
            self._project(self.vision_projection, queries.unflatten(0, (-1, count))),
            self._project(self.text_projection, read[first]),
            written[behind.roll(-1)],  # a token is told from the one before it
            input_ids[text][behind],
            owners[behind],
        )

    def _judge(self, keys: list[Keys | None], image_index: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """ITM: logits of "does not match" and "matches", the mean over the queries, `[pairs, 2]`."""
        read = self._read_together(keys, image_index, input_ids, attention_mask)
        logits: Tensor = self.itm_head(read.to(self.itm_head.weight.dtype))
        return logits.float().mean(1)

    def look(self, features: Tensor, image_index: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the queries read off images together with texts.

        Args:
            features: of distinct images (`encode_images`), `[images, patches, vision width]`.
            image_index: image of each text, `[texts]`.
            input_ids: `[texts, tokens]`.
            attention_mask: `[texts, tokens]`.

        Returns:
            `[texts, queries, width]`.
        """
        return self._read_together(self._keys(features), image_index, input_ids, attention_mask)

    def _read_together(
        self, keys: list[Keys | None], image_index: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """Queries and texts see each other: the queries' last states, `[texts, queries, width]`."""
        count = self.query_tokens.shape[1]
        words, lengths = self._words(input_ids, attention_mask)
        texts = torch.tensor(lengths)
        order = by_row([torch.full_like(texts, count), texts]).to(words.device)
        rows = Rows((texts + count).tolist(), words.device, order)
        hidden = torch.cat([self._queries(len(lengths)), words])
        read = self._read(hidden, rows, keys, Sharing(image_index))[: len(lengths) * count]
        return read.unflatten(0, (-1, count))

    def _read(self, hidden: Tensor, rows: Rows, keys: Sequence[Keys | None], sharing: Sharing | None) -> Tensor:
        """The Q-Former over packed rows: `[tokens, width]` to the same."""
        norm = self.qformer.layernorm
        hidden = self.qformer.dropout(norm(hidden.to(norm.weight.dtype)))
        for layer, images in zip(self.qformer.encoder.layer, keys, strict=True):
            hidden = self.read_layer(layer, hidden, rows, images, sharing, self.query_tokens.shape[1])
        return hidden

    def _keys(self, features: Tensor) -> list[Keys | None]:
        """Keys and values of images in each layer; None for those without cross-attention."""
        features = features.to(self.qformer.layernorm.weight.dtype)
        layers = self.qformer.encoder.layer
        return [image_keys(layer, features) if layer.has_cross_attention else None for layer in layers]

    def _queries(self, rows: int) -> Tensor:
        """The query tokens of some rows, end to end: `[rows * queries, width]`."""
        return self.query_tokens.expand(rows, -1, -1).flatten(0, 1).to(self.qformer.layernorm.weight.dtype)

    def _words(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, list[int]]:
        """Embeddings of texts without padding, end to end, `[tokens, width]`, and how many tokens each has."""
        text = attention_mask.bool()
        places = self.embeddings.position_ids[:, : text.shape[1]].expand_as(input_ids)
        words = self.embeddings.word_embeddings(input_ids[text]) + self.embeddings.position_embeddings(places[text])
        return words.to(self.qformer.layernorm.weight.dtype), text.sum(1).tolist()

    def _project(self, projection: nn.Linear, hidden: Tensor) -> Tensor:
        return nn.functional.normalize(projection(hidden.to(projection.weight.dtype)).float(), dim=-1)


def similarity(images: Tensor, texts: Tensor) -> Tensor:
    """How alike images and texts are: the largest cosine over an image's queries, not divided by the temperature.

    Args:
        images: `Blip2Pretraining.embed_images`, `[images, queries, width]`.
        texts: `Blip2Pretraining.embed_texts`, `[texts, width]`.

    Returns:
        `[images, texts]`.
    """
    return (images.flatten(0, 1) @ texts.T).unflatten(0, images.shape[:2]).max(1).values


def joined_keys(some: Sequence[K], others: Sequence[K]) -> list[K]:
    """Keys of some images and then of others, layer by layer."""
    return [
        one if one is None or other is None else Keys(*(torch.cat(both) for both in zip(one, other, strict=True)))
        for one, other in zip(some, others, strict=True)
    ]


def _first(lengths: Sequence[int]) -> Tensor:
    """First token of each row, rows being end to end."""
    counts = torch.tensor(lengths)
    return counts.cumsum(0) - counts
