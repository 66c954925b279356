"""`Blip`: BLIP's mixture of encoder and decoder (arXiv 2201.12086, section 3.1), of transformers' modules.

One text transformer works in three ways beside one image encoder: alone, as a text's encoder (`[CLS]`, compared with
images in ITC); with cross-attention to an image, as its judge (`[ENC]`, ITM); and with causal self-attention, as its
writer (`[DEC]`, LM). transformers has these as three classes that share nothing; here they are one model, whose
parameters have the names that they have there, so that each class takes its part (`instructkit.models.save`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn
from transformers import BlipConfig, BlipTextModel, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from instructkit.models.blip2 import Candidates, Embedded, Pretraining, joined_keys
from instructkit.models.qformer import Keys, Sharing

TEMPERATURE = 0.07
"""What similarities are divided by at first (paper, section 4.1 of ALBEF, as in LAVIS); it is learned."""
NO_IMAGE = -100
"""Stands for an image in the queue before there are pairs (LAVIS)."""
COLDEST, HOTTEST = 0.001, 0.5
"""Between these it stays (LAVIS)."""
Shared = Literal["all", "all_but_cross_attention", "all_but_self_attention", "none"]
"""What encoder and decoder have in common (paper, table 3)."""
SHARED: tuple[Shared, ...] = get_args(Shared)
M = TypeVar("M", bound=nn.Module)


class Seen(NamedTuple):
    """What texts cross-attend to.

    Attributes:
        keys: of each layer.
        which: of the states each text reads, `[texts]`.
        mask: True for places that are there, `[states, places]`; None for all.
    """

    keys: Sequence[Keys]
    which: Tensor
    mask: Tensor | None = None


def read_layer(
    layer: Any, hidden: Tensor, visible: Tensor, keys: Keys | None, reads: Sharing | tuple[Tensor, Tensor] | None
) -> Tensor:
    """A layer of transformers' `BlipTextModel`, whose keys and values of what it cross-attends to are made already.

    Args:
        layer: the layer.
        hidden: `[texts, tokens, width]`.
        visible: True where a token sees another, `[texts, 1, tokens or 1, tokens]`.
        keys: what cross-attention reads; None for a text alone.
        reads: which text reads which of the keys: of images as `Sharing`, of states with padding as the index and the
            mask of `Seen`.
    """
    own = layer.attention.self
    query, key, value = (_heads(own, project(hidden)) for project in (own.query, own.key, own.value))
    hidden = layer.attention.output(_attend(own, query, key, value, visible), hidden)
    if keys is not None:
        assert reads is not None, "keys are read by texts that are told which"
        cross = layer.crossattention.self
        query = _heads(cross, cross.query(hidden))
        if isinstance(reads, Sharing):
            scale, dropout = cross.attention_head_size**-0.5, _dropout(cross)
            found = reads.attention(query, keys.key, keys.value, scale, dropout).flatten(2)
        else:
            index, mask = reads
            found = _attend(cross, query, keys.key[index], keys.value[index], mask[index][:, None, None])
        hidden = layer.crossattention.output(found, hidden)
    fed: Tensor = layer.feed_forward_chunk(hidden)
    return fed


def read_text(
    bert: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    seen: Seen | None = None,
    causal: bool = False,
    layer: Callable[..., Tensor] = read_layer,
) -> Tensor:
    """Last hidden states of texts.

    Args:
        bert: transformers' `BlipTextModel`.
        input_ids: `[texts, tokens]`.
        attention_mask: 1 for tokens, 0 for padding behind them, `[texts, tokens]`.
        seen: what they cross-attend to; None for texts alone.
        causal: whether a token sees none behind it.
        layer: how a layer is run.

    Returns:
        `[texts, tokens, width]`; of padding they mean nothing.
    """
    visible = attention_mask.bool()[:, None, None]
    if causal:
        visible = visible & torch.ones_like(visible[0, 0, 0]).expand(visible.shape[-1], -1).tril()
    return _read(bert, bert.embeddings(input_ids), visible, seen, layer)


def _read(bert: Any, hidden: Tensor, visible: Tensor, seen: Seen | None, layer: Callable[..., Tensor]) -> Tensor:
    """As `read_text`, from embeddings and what each of them sees (`read_layer`)."""
    reads: Sharing | tuple[Tensor, Tensor] | None = None
    if seen is not None:
        reads = Sharing(seen.which) if seen.mask is None else (seen.which, seen.mask)
    for number, module in enumerate(bert.encoder.layer):
        hidden = layer(module, hidden, visible, None if seen is None else seen.keys[number], reads)
    return hidden


class Embedder(nn.Module):
    """What compares images with texts: image encoder, text encoder and a projection behind each.

    Everywhere texts are `input_ids` with `[CLS]` in front and `[SEP]` behind, `[texts, tokens]`, and `attention_mask`,
    1 for tokens and 0 for padding behind them (`instructkit.models.batches.Captions` makes both).

    Attributes:
        read_layer: how a layer of the text transformer is run.
    """

    vision_model: Any
    text_encoder: Any
    vision_proj: nn.Linear
    text_proj: nn.Linear
    read_layer: Callable[..., Tensor] = staticmethod(read_layer)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Features of distinct images: `[images, 3, height, width]` to `[images, patches + 1, vision width]`."""
        features: Tensor = self.vision_model(pixel_values=pixel_values).last_hidden_state
        return features

    def embed_images(self, features: Tensor) -> Tensor:
        """Images, to be compared with texts, from `encode_images`: `[images, 1, width]`, of length 1, float32."""
        return _project(self.vision_proj, features[:, :1])

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Texts alone, to be compared with images: `[texts, width]`, each of length 1, float32."""
        hidden = read_text(self.text_encoder, input_ids, attention_mask, layer=self.read_layer)
        return _project(self.text_proj, hidden[:, 0])


class Followed(NamedTuple):
    """Pairs of image and text as both encoders see them, before it is known what each is compared with.

    Attributes:
        online: the trained encoders' view.
        images: the momentum encoder's, `[pairs, width]`.
        texts: likewise.
        momentum: its queue.
    """

    online: Embedded
    images: Tensor
    texts: Tensor
    momentum: Momentum


class Momentum(Embedder):
    """An encoder whose weights are a running mean of the trained one's, and a queue of what it made of former pairs.

    (Paper, section 3.2, after MoCo and ALBEF.) Nothing of it is trained and all of it goes on with a run, so its
    weights are buffers. They stay float32 whatever the model is cast to: a mean in bfloat16 would lose changes of half
    a per cent.

    Args:
        trained: what it follows; it starts as its copy.
        rate: share of the mean that stays at a step.
        queue: pairs in the queue, which starts with random ones that belong to no image.

    Attributes:
        images: of the queue, `[queue, width]`, each of length 1.
        texts: likewise.
        ids: which image each pair of the queue shows, `[queue]`.
        place: where the next pairs go, `[1]`.
    """

    images: Tensor
    texts: Tensor
    ids: Tensor
    place: Tensor

    def __init__(self, trained: Embedder, rate: float, queue: int) -> None:
        super().__init__()
        self.rate = rate
        self.vision_model, self.text_encoder = _twin(trained.vision_model), _twin(trained.text_encoder)
        self.vision_proj, self.text_proj = _twin(trained.vision_proj), _twin(trained.text_proj)
        for name in ("images", "texts"):
            random = torch.randn(queue, trained.text_proj.out_features)
            self.register_buffer(name, nn.functional.normalize(random, dim=1))
        self.register_buffer("ids", torch.full((queue,), NO_IMAGE))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Momentum:
        def keep(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        return super()._apply(keep, recurse)

    @torch.no_grad()
    def follow(self, trained: Embedder) -> None:
        """Move the mean one step towards the trained weights."""
        for mean, weight in self.followed(trained):
            mean.lerp_(weight.to(mean.dtype), 1 - self.rate)

    def followed(self, trained: Embedder) -> Iterator[tuple[Tensor, Tensor]]:
        """Each weight and the trained one that it follows."""
        for name in ("vision_model", "text_encoder", "vision_proj", "text_proj"):
            means = dict(getattr(self, name).named_buffers())
            for key, weight in getattr(trained, name).named_parameters():
                yield means[key], weight

    @torch.no_grad()
    def embed(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of pairs, `[pairs, width]` each, computed in `dtype`."""
        with torch.autocast(pixel_values.device.type, dtype=dtype, enabled=dtype != torch.float32):
            images = self.embed_images(self.encode_images(pixel_values))[:, 0]
            return images, self.embed_texts(input_ids, attention_mask)

    @torch.no_grad()
    def push(self, images: Tensor, texts: Tensor, ids: Tensor) -> None:
        """Put pairs into the queue in the place of the oldest; their number divides its length.

        Args:
            images: embeddings, `[pairs, width]`.
            texts: likewise.
            ids: which image each shows, `[pairs]`.
        """
        assert len(self.ids) % len(ids) == 0, "the settings were checked"
        # No slice by a number: that would make the device wait for the CPU.
        rows = self.place + torch.arange(len(ids), device=ids.device)
        for queue, new in ((self.images, images), (self.texts, texts), (self.ids, ids)):
            queue.index_copy_(0, rows, new.to(queue.dtype))
        self.place.copy_((self.place + len(ids)) % len(self.ids))


class Blip(Embedder):
    """Image encoder, text encoder and decoder, and BLIP's heads.

    `config.sharing` says what encoder and decoder have in common, one of `SHARED`; `config.enc_token_id` is the token
    that a text begins with where it is read with an image, `config.text_config.bos_token_id` the one that a written
    text begins with.

    Attributes:
        config: sizes and tokens.
        fresh: names of the parameters that no checkpoint gave.
        tasks: what its parts can do: all, but for a model that was opened from one of transformers' classes.
        instruction_aware: that texts are read, so that all of it is trained.
        momentum: its momentum encoder, where it is trained with one.
    """

    instruction_aware = True
    fresh: frozenset[str] = frozenset()
    tasks: tuple[str, ...] = ("captioning", "retrieval", "vqa")

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config: Any = config
        self.momentum: Momentum | None = None
        width, common = config.text_config.hidden_size, config.image_text_hidden_size
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.text_decoder: Any = BlipTextLMHeadModel(config.text_config)
        self.vision_proj = nn.Linear(config.vision_config.hidden_size, common)
        self.text_proj = nn.Linear(width, common)
        self.itm_head = nn.Linear(width, 2)
        self.temperature = nn.Parameter(torch.tensor([TEMPERATURE]))  # DeepSpeed takes no scalars
        for head in (self.vision_proj, self.text_proj, self.itm_head):
            nn.init.normal_(head.weight, std=config.initializer_range)
            nn.init.zeros_(head.bias)
        self.share()

    def share(self) -> None:
        """Let the decoder use the encoder's modules, as far as `config.sharing` says, in place."""
        sharing, bert = self.config.sharing, self.text_decoder.bert
        if sharing not in SHARED:
            raise ValueError(f"sharing {sharing!r}: there are {', '.join(SHARED)}")
        for mine, theirs in zip(bert.encoder.layer, self.text_encoder.encoder.layer, strict=True):
            if sharing in ("all", "all_but_cross_attention"):
                mine.attention = theirs.attention
            if sharing in ("all", "all_but_self_attention"):
                mine.crossattention = theirs.crossattention
            if sharing != "none":
                mine.intermediate, mine.output = theirs.intermediate, theirs.output
        if sharing != "none":
            bert.embeddings = self.text_encoder.embeddings
        head = self.text_decoder.cls.predictions
        head.decoder.weight, head.decoder.bias = bert.embeddings.word_embeddings.weight, head.bias

    def separate(self) -> None:
        """Give the decoder modules of its own in place of those it has in common with the encoder.

        Answers to questions need this: the decoder then reads what the encoder made of a question, not images (BLIP,
        appendix).
        """
        self.text_decoder = deepcopy(self.text_decoder)
        self.config.sharing = "none"
        self.share()

    def match(self, features: Tensor, image_index: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """How well texts fit images that are read together with them (ITM).

        Args:
            features: of distinct images (`encode_images`), `[images, patches, vision width]`; keys and values are made
                once an image, so let the texts of one image stand in one call.
            image_index: image of each text, `[pairs]`.
            input_ids: `[pairs, tokens]`.
            attention_mask: `[pairs, tokens]`.

        Returns:
            The logit of "matches", `[pairs]`, float32.
        """
        return self.judge(features, image_index, input_ids, attention_mask)[:, 1]

    def judge(self, features: Tensor, image_index: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """As `match`: logits of "does not match" and "matches", `[pairs, 2]`, float32."""
        return self._judged(self.read_with(features, image_index, input_ids, attention_mask))

    def read_with(self, features: Tensor, image_index: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Texts as they are read with an image each: hidden states `[pairs, tokens, width]`.

        Args:
            features: as for `match`.
            image_index: likewise.
            input_ids: likewise; `[ENC]` takes the place of the first token.
            attention_mask: likewise.
        """
        seen = Seen(cross_keys(self.text_encoder, features), image_index)
        return self._read_with(seen, input_ids, attention_mask)

    def tell(
        self,
        states: Tensor,
        index: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        states_mask: Tensor | None = None,
    ) -> Tensor:
        """What the decoder takes for the next token at each place of texts that it writes about images.

        Args:
            states: features of images (`encode_images`), or of questions about them (`read_with`),
                `[states, places, width]`.
            index: which of them each text is written about, `[texts]`.
            input_ids: `[texts, tokens]`; `[DEC]` takes the place of the first token.
            attention_mask: `[texts, tokens]`.
            states_mask: 0 for places of `states` that are padding, `[states, places]`; None for none.

        Returns:
            Logits `[texts, tokens, vocabulary]`, float32: those at a token are of the token behind it.
        """
        mask = None if states_mask is None else states_mask.bool()
        seen = Seen(cross_keys(self.text_decoder.bert, states), index, mask)
        logits: Tensor = self.text_decoder.cls(self._written(seen, input_ids, attention_mask))
        return logits.float()

    def score(
        self,
        states: Tensor,
        index: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        states_mask: Tensor | None = None,
        prompt: int = 1,
    ) -> Tensor:
        """Log-likelihood of texts, the sum over their tokens with `[SEP]`, `[texts]`.

        Args:
            states: as for `tell`.
            index: likewise.
            input_ids: likewise.
            attention_mask: likewise.
            states_mask: likewise.
            prompt: so many tokens at the beginning of each text are given, `[DEC]` among them.
        """
        told = self.tell(states, index, input_ids, attention_mask, states_mask).log_softmax(-1)
        each = told[:, :-1].gather(2, input_ids[:, 1:, None])[..., 0] * attention_mask[:, 1:]
        return each[:, prompt - 1 :].sum(1)

    def write_branches(self, seen: Seen, input_ids: Tensor, places: Tensor, visible: Tensor) -> Tensor:
        """Hidden states of the decoder for texts that have beginnings in common, each of which is read once.

        Args:
            seen: what they are written about, with keys of the decoder (`cross_keys`).
            input_ids: tokens of a tree, all in one row, `[rows, tokens]`; the root's is any.
            places: tokens between the root, whose place is 0, and each of them, `[rows or 1, tokens]`.
            visible: whether a token (rows) is behind another (columns) or itself, `[rows or 1, tokens, tokens]`.

        Returns:
            `[rows, tokens, width]`; `text_decoder.cls` makes logits of them.
        """
        bert = self.text_decoder.bert
        ids = input_ids.masked_fill(places == 0, self.config.text_config.bos_token_id)
        hidden = bert.embeddings(ids, position_ids=places)
        return _read(bert, hidden, visible[:, None], seen, self.read_layer)

    @torch.no_grad()
    def generate(
        self,
        states: Tensor,
        input_ids: Tensor | None = None,
        states_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Write texts about images.

        Args:
            states: as for `tell`; each gets a text.
            input_ids: what the texts begin with, `[CLS]` in front and no `[SEP]` behind, `[states, tokens]`, as long
                for all; `[DEC]` takes the place of the first token. None for nothing.
            states_mask: as for `tell`.
            **options: of transformers' `generate`, such as `num_beams=3, max_new_tokens=20`, or
                `do_sample=True, top_p=0.9`.

        Returns:
            Tokens with `[DEC]` and the prompt in front and `[SEP]` and padding behind, `[states, tokens]`.
        """
        text = self.config.text_config
        begin = torch.full((len(states), 1), text.bos_token_id, device=states.device)
        given = begin if input_ids is None else torch.cat([begin, input_ids[:, 1:]], dim=1)
        mask = torch.ones_like(states[..., 0], dtype=torch.long) if states_mask is None else states_mask
        written: Tensor = self.text_decoder.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            eos_token_id=text.sep_token_id,
            pad_token_id=text.pad_token_id,
            **options,
        )
        return written

    def pretrain(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        candidates: Callable[[Followed], Candidates] | None = None,
        given: Tensor | None = None,
    ) -> Pretraining:
        """All that the three losses need of some pairs; a step of the momentum encoder comes before it is asked.

        Args:
            pixel_values: image of each pair, `[pairs, 3, height, width]`.
            input_ids: its text, `[pairs, tokens]`.
            attention_mask: likewise.
            candidates: gets the pairs' embeddings and says which images and texts ITM judges; None without ITC and ITM.
            given: so many tokens at the beginning of each text are not told, `[DEC]` among them, `[pairs]`; None where
                no text is written (LM).
        """
        features = self.encode_images(pixel_values)
        # A copy: DeepSpeed hooks what a model returns, and a parameter would gather a hook every step.
        heat = self.temperature.float().clone()
        # Beyond its bounds it has a gradient still, by which it comes back.
        heat = heat + (heat.clamp(COLDEST, HOTTEST) - heat).detach()
        images, texts, matches = heat.new_empty(0), heat.new_empty(0), heat.new_empty(0, 2)
        keys: list[Keys] | None = None
        if candidates is not None:
            assert self.momentum is not None, "images and texts are compared with a momentum encoder's"
            images, texts = self.embed_images(features), self.embed_texts(input_ids, attention_mask)
            self.momentum.follow(self)
            followed = self.momentum.embed(pixel_values, input_ids, attention_mask, features.dtype)
            chosen = candidates(Followed(Embedded(features, images, texts, heat), *followed, self.momentum))
            keys = seen = cross_keys(self.text_encoder, features)
            if chosen.others is not None:
                seen = joined_keys(keys, cross_keys(self.text_encoder, chosen.others))
            hidden = self._read_with(Seen(seen, chosen.image_index), chosen.input_ids, chosen.attention_mask)
            matches = self._judged(hidden)
        words, targets, owners = heat.new_empty(0), input_ids.new_empty(0), input_ids.new_empty(0)
        if given is not None:
            bert = self.text_decoder.bert
            if keys is None or self.config.sharing in ("all_but_cross_attention", "none"):
                keys = cross_keys(bert, features)
            words, targets, owners = self._told(Seen(keys, _rows_of(input_ids)), input_ids, attention_mask, given)
        return Pretraining(images, texts, heat, matches, words, targets, owners, None)

    def answer(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        answer_ids: Tensor,
        answer_mask: Tensor,
        answered: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is needed to learn answers to questions: the decoder reads what the encoder makes of image and question.

        Args:
            pixel_values: image of each question, `[questions, 3, height, width]`.
            input_ids: the questions, `[questions, tokens]`.
            attention_mask: likewise.
            answer_ids: their answers, of one or several for each, `[answers, tokens]`.
            answer_mask: likewise.
            answered: question of each answer, `[answers]`.

        Returns:
            Logits of the answers' tokens behind `[DEC]`, `[tokens, vocabulary]`, float32, these tokens, `[tokens]`, and
            the answer of each, `[tokens]`.
        """
        features = self.encode_images(pixel_values)
        states = self.read_with(features, _rows_of(input_ids), input_ids, attention_mask)
        seen = Seen(cross_keys(self.text_decoder.bert, states), answered, attention_mask.bool())
        return self._told(seen, answer_ids, answer_mask, torch.ones_like(answered))

    def forward(self, **batch: Any) -> Any:
        """As `answer` with answers, as `pretrain` without: how a training engine calls the model."""
        return self.answer(**batch) if "answer_ids" in batch else self.pretrain(**batch)

    def _read_with(self, seen: Seen, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        ids = _begun(input_ids, self.config.enc_token_id)
        return read_text(self.text_encoder, ids, attention_mask, seen, layer=self.read_layer)

    def _judged(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.itm_head(hidden[:, 0].to(self.itm_head.weight.dtype))
        return logits.float()

    def _written(self, seen: Seen, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        ids = _begun(input_ids, self.config.text_config.bos_token_id)
        return read_text(self.text_decoder.bert, ids, attention_mask, seen, causal=True, layer=self.read_layer)

    def _told(
        self, seen: Seen, input_ids: Tensor, attention_mask: Tensor, given: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of all tokens of texts but the first `given`, these tokens, and the text of each."""
        hidden = self._written(seen, input_ids, attention_mask)
        told = attention_mask.bool() & (torch.arange(input_ids.shape[1], device=input_ids.device) >= given[:, None])
        words = self.text_decoder.cls(hidden[:, :-1][told[:, 1:]]).float()  # a token is told from the one before it
        return words, input_ids[told], told.nonzero()[:, 0]


def cross_keys(bert: Any, states: Tensor) -> list[Keys]:
    """What each layer's cross-attention makes of states, `[states, places, width]`."""
    made = []
    for layer in bert.encoder.layer:
        module = layer.crossattention.self
        made.append(Keys(*(_heads(module, project(states)) for project in (module.key, module.value))))
    return made


def _twin(module: M) -> M:
    """A copy of a module whose weights are buffers, float32."""
    copy = deepcopy(module)
    for part in copy.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            del part._parameters[name]
            part.register_buffer(name, weight.detach().float())
    return copy


def _rows_of(tensor: Tensor) -> Tensor:
    return torch.arange(len(tensor), device=tensor.device)


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Attention of texts over keys of their own, all `[texts, places, heads, width]`: `[texts, tokens, width]`."""
    q, k, v = (part.transpose(1, 2) for part in (query, key, value))
    found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=_dropout(module))
    return found.transpose(1, 2).flatten(2)


def _dropout(module: Any) -> float:
    return float(module.dropout.p) if module.training else 0.0


def _heads(module: Any, states: Tensor) -> Tensor:
    return states.unflatten(-1, (module.num_attention_heads, module.attention_head_size))


def _begun(input_ids: Tensor, token: int) -> Tensor:
    return torch.cat([torch.full_like(input_ids[:, :1], token), input_ids[:, 1:]], dim=1)


def _project(projection: nn.Linear, hidden: Tensor) -> Tensor:
    return nn.functional.normalize(projection(hidden.to(projection.weight.dtype)).float(), dim=-1)
