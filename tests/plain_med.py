"""BLIP's mixture of encoder and decoder as slowly and plainly as it goes, from the weights' names alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tests.plain_stage1 import Plain


class PlainMed(NamedTuple):
    """A model.

    Attributes:
        plain: its arithmetic, over weights whose attention is called as a Q-Former's.
        enc: the token that a text begins with where it is read with an image.
    """

    plain: Plain
    enc: int

    @classmethod
    def of(cls, model: torch.nn.Module) -> PlainMed:
        """Of a `Blip`, whose modules then take no part."""
        config = model.config
        text = config.text_config
        weights = {
            name.replace("attention.self.", "attention.attention."): weight.detach()
            for name, weight in model.named_parameters(remove_duplicate=False)
        }
        plain = Plain(weights, text.num_attention_heads, text.num_hidden_layers, text.layer_norm_eps, text.bos_token_id)
        return cls(plain, config.enc_token_id)

    def read(self, side: str, ids: Sequence[int], states: Tensor | None, causal: bool) -> Tensor:
        """Last states of one text; `side` is the stem of the text transformer's names."""
        plain = self.plain
        words = plain.weights[f"{side}.embeddings.word_embeddings.weight"][list(ids)]
        places = plain.weights[f"{side}.embeddings.position_embeddings.weight"][: len(ids)]
        x = plain.norm(f"{side}.embeddings.LayerNorm", words + places)
        for number in range(plain.layers):
            name = f"{side}.encoder.layer.{number}"
            seen = [list(range(place + 1 if causal else len(ids))) for place in range(len(ids))]
            x = plain.attend(f"{name}.attention", x, x, seen)
            if states is not None:
                x = plain.attend(f"{name}.crossattention", x, states, [list(range(len(states)))] * len(ids))
            x = plain.feed(name, "", x)
        return x

    def embed_image(self, features: Tensor) -> Tensor:
        projected = self.plain.linear("vision_proj", features[0])
        return projected / projected.norm()

    def embed_text(self, ids: Sequence[int]) -> Tensor:
        projected = self.plain.linear("text_proj", self.read("text_encoder", ids, None, False)[0])
        return projected / projected.norm()

    def read_with(self, features: Tensor, ids: Sequence[int]) -> Tensor:
        return self.read("text_encoder", [self.enc, *ids[1:]], features, False)

    def judge(self, features: Tensor, ids: Sequence[int]) -> Tensor:
        return self.plain.linear("itm_head", self.read_with(features, ids)[0])

    def tell(self, states: Tensor, ids: Sequence[int]) -> Tensor:
        """Logits at each place of a text that is written."""
        head = "text_decoder.cls.predictions"
        hidden = self.read("text_decoder.bert", [self.plain.dec, *ids[1:]], states, True)
        hidden = self.plain.linear(f"{head}.transform.dense", hidden)
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        hidden = self.plain.norm(f"{head}.transform.LayerNorm", hidden)
        words = self.plain.weights["text_decoder.bert.embeddings.word_embeddings.weight"]
        return hidden @ words.T + self.plain.weights[f"{head}.bias"]


def mean_of_weights(model: PlainMed, momentum: PlainMed, rate: float) -> PlainMed:
    """The momentum encoder after a step."""
    moved = {
        name: rate * weight + (1 - rate) * model.plain.weights[name] for name, weight in momentum.plain.weights.items()
    }
    return momentum._replace(plain=momentum.plain._replace(weights=moved))


def losses(
    model: PlainMed,
    momentum: PlainMed,
    images: Sequence[Tensor],
    texts: Sequence[Sequence[int]],
    image_ids: Sequence[int],
    chances: Sequence[Sequence[float]],
    queue: Sequence[tuple[Tensor, Tensor, int]],
    alpha: float,
    online: bool = False,
) -> dict[str, Tensor]:
    """The means over all pairs.

    Args:
        model: what is trained, whose weights have gradients.
        momentum: after its step.
        images: features of each pair's image, `[patches, width]`.
        texts: tokens of each pair's text, without padding.
        image_ids: equal for the same image.
        chances: of the image for the text, of the text for the image.
        queue: former pairs: embeddings of image and text, and which image it is.
        alpha: weight of the soft targets.
        online: whether wrong ones are drawn by the trained encoders' similarity.
    """
    pairs = range(len(texts))
    heat = model.plain.weights["temperature"][0]
    seen, said = [model.embed_image(image) for image in images], [model.embed_text(ids) for ids in texts]
    seen_m = [momentum.embed_image(image).detach() for image in images]
    said_m = [momentum.embed_text(ids).detach() for ids in texts]
    ids = [*image_ids, *(number for _, _, number in queue)]
    itc, scores = torch.zeros(()), {}
    for side, (mine, mine_m, others, queued) in {
        "text": (seen, seen_m, said_m, [text for _, text, _ in queue]),
        "image": (said, said_m, seen_m, [image for image, _, _ in queue]),
    }.items():
        for pair in pairs:
            told = torch.stack([mine[pair] @ other / heat for other in [*others, *queued]])
            soft = torch.stack([mine_m[pair] @ other / heat.detach() for other in [*others, *queued]]).softmax(0)
            right = [float(number == image_ids[pair]) for number in ids]
            for place, share in enumerate(right):
                target = alpha * soft[place].detach() + (1 - alpha) * share / sum(right)
                itc = itc - target * told.log_softmax(0)[place] / 2
            scores[side, pair] = told
    judged = [(pair, pair, 1) for pair in pairs]
    if len(set(image_ids)) > 1:
        for number, side in enumerate(("image", "text")):
            for pair in pairs:
                weights = scores[side, pair][: len(texts)].softmax(0) + 1e-4
                if online:
                    mine, others = (said, seen) if side == "image" else (seen, said)
                    weights = torch.stack([mine[pair] @ other / heat for other in others]).softmax(0)
                shares = [0.0 if image_ids[other] == image_ids[pair] else weights[other].item() for other in pairs]
                left, wrong = chances[pair][number] * sum(shares), 0
                while left >= shares[wrong]:
                    left -= shares[wrong]
                    wrong += 1
                judged.append((wrong, pair, 0) if side == "image" else (pair, wrong, 0))
    itm = torch.stack([-model.judge(images[i], texts[t]).log_softmax(0)[label] for i, t, label in judged]).mean()
    costs = []
    for pair in pairs:
        told = model.tell(images[pair], texts[pair]).log_softmax(1)
        for place, token in enumerate(texts[pair][1:]):
            costs.append(-0.9 * told[place, token] - 0.1 * told[place].mean())
    return {"itc": itc / len(texts), "itm": itm, "lm": torch.stack(costs).mean()}
