"""BLIP-2's first stage as slowly and plainly as it goes: pair by pair, token by token, from the weights' names alone.

No module and no function of the toolkit takes part: a model is its state dict and a few numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Plain(NamedTuple):
    """A model.

    Attributes:
        weights: by name.
        heads: attention heads.
        layers: of the Q-Former.
        epsilon: of its layer norms.
        dec: the token that a written text begins with.
    """

    weights: dict[str, Tensor]
    heads: int
    layers: int
    epsilon: float
    dec: int

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + self.epsilon).sqrt()
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attend(self, name: str, x: Tensor, keys: Tensor, seen: Sequence[Sequence[int]]) -> Tensor:
        """Attention head by head and place by place; `seen` are the places of `keys` that each place of `x` sees."""
        q, k, v = (
            self.linear(f"{name}.attention.{part}", side)
            for part, side in (("query", x), ("key", keys), ("value", keys))
        )
        width = q.shape[1] // self.heads
        rows = []
        for place, others in enumerate(seen):
            parts = []
            for head in range(self.heads):
                mine = slice(head * width, (head + 1) * width)
                scores = (k[list(others), mine] @ q[place, mine]) / math.sqrt(width)
                parts.append(scores.softmax(0) @ v[list(others), mine])
            rows.append(torch.cat(parts))
        return self.norm(f"{name}.output.LayerNorm", self.linear(f"{name}.output.dense", torch.stack(rows)) + x)

    def feed(self, name: str, side: str, x: Tensor) -> Tensor:
        inner = self.linear(f"{name}.intermediate{side}.dense", x)
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        return self.norm(f"{name}.output{side}.LayerNorm", self.linear(f"{name}.output{side}.dense", inner) + x)

    def words(self, ids: Sequence[int]) -> Tensor:
        return (
            self.weights["embeddings.word_embeddings.weight"][list(ids)]
            + self.weights["embeddings.position_embeddings.weight"][: len(ids)]
        )

    def read(self, queries: bool, ids: Sequence[int], image: Tensor | None, mask: str) -> tuple[Tensor, Tensor]:
        """The Q-Former's last states of the queries and of the text of one pair."""
        parts = ([self.weights["query_tokens"][0]] if queries else []) + ([self.words(ids)] if ids else [])
        x = self.norm("qformer.layernorm", torch.cat(parts))
        count = len(self.weights["query_tokens"][0]) if queries else 0
        everything = list(range(len(x)))
        seen = [everything for _ in everything]
        if mask == "prefix-causal":
            seen = [everything[:count] if place < count else everything[: place + 1] for place in everything]
        for number in range(self.layers):
            name = f"qformer.encoder.layer.{number}"
            x = self.attend(f"{name}.attention", x, x, seen)
            read, text = x[:count], x[count:]
            if queries and f"{name}.crossattention.attention.query.weight" in self.weights:
                assert image is not None
                patches = [list(range(len(image)))] * count
                read = self.attend(f"{name}.crossattention", read, image, patches)
            done = [self.feed(name, "_query", read)] if queries else []
            x = torch.cat([*done, *([self.feed(name, "", text)] if ids else [])])
        return x[:count], x[count:]

    def embed_image(self, image: Tensor) -> Tensor:
        projected = self.linear("vision_projection", self.read(True, [], image, "uni-modal")[0])
        return projected / projected.norm(dim=-1, keepdim=True)

    def embed_text(self, ids: Sequence[int]) -> Tensor:
        projected = self.linear("text_projection", self.read(False, ids, None, "uni-modal")[1][0])
        return projected / projected.norm()

    def match(self, image: Tensor, ids: Sequence[int]) -> Tensor:
        queries, _ = self.read(True, ids, image, "bidirectional")
        return self.linear("itm_head", queries).mean(0)

    def write(self, image: Tensor, ids: Sequence[int]) -> list[Tensor]:
        """What each token behind the first costs, with label smoothing."""
        _, states = self.read(True, [self.dec, *ids[1:]], image, "prefix-causal")
        hidden = self.linear("itg_head.transform.dense", states)
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        hidden = self.norm("itg_head.transform.LayerNorm", hidden)
        logits = hidden @ self.weights["embeddings.word_embeddings.weight"].T + self.weights["itg_head.bias"]
        told = logits.log_softmax(1)
        return [-0.9 * told[place, ids[place + 1]] - 0.1 * told[place].mean() for place in range(len(ids) - 1)]


def drawn(scores: Sequence[float], allowed: Sequence[bool], chance: float) -> int:
    """A place by its share of exp(score) among those allowed."""
    top = max(score for score, fine in zip(scores, allowed, strict=True) if fine)
    shares = [math.exp(score - top) if fine else 0.0 for score, fine in zip(scores, allowed, strict=True)]
    left = chance * sum(shares)
    for place, share in enumerate(shares):
        if allowed[place] and left < share:
            return place
        left -= share
    return max(place for place, fine in enumerate(allowed) if fine)


def losses(
    plain: Plain,
    images: Sequence[Tensor],
    texts: Sequence[Sequence[int]],
    image_ids: Sequence[int],
    chances: Sequence[Sequence[float]],
) -> dict[str, Tensor]:
    """The means over all pairs.

    Args:
        plain: the model.
        images: features of each pair's image, `[patches, width]`.
        texts: tokens of each pair's text, without padding.
        image_ids: equal for the same image.
        chances: of the image for the text, of the text for the image.
    """
    pairs = range(len(texts))
    seen, said = [plain.embed_image(image) for image in images], [plain.embed_text(ids) for ids in texts]
    heat = plain.weights["temperature"][0]
    itc = torch.zeros(())
    image_to_text = [[(seen[i] @ said[t].detach()).max() / heat for t in pairs] for i in pairs]
    text_to_image = [[(seen[i].detach() @ said[t]).max() / heat for i in pairs] for t in pairs]
    for pair in pairs:
        right = [other for other in pairs if image_ids[other] == image_ids[pair]]
        for scores in (image_to_text[pair], text_to_image[pair]):
            told = torch.stack(scores).log_softmax(0)
            itc = itc - sum(0.9 / len(right) * told[other] for other in right) / 2 - 0.1 * told.mean() / 2
    judged = [(pair, pair, 1) for pair in pairs]
    if len(set(image_ids)) > 1:
        for pair in pairs:
            wrong = [image_ids[other] != image_ids[pair] for other in pairs]
            judged.append((drawn([s.item() for s in text_to_image[pair]], wrong, chances[pair][0]), pair, 0))
            judged.append((pair, drawn([s.item() for s in image_to_text[pair]], wrong, chances[pair][1]), 0))
    itm = torch.stack([-plain.match(images[i], texts[t]).log_softmax(0)[label] for i, t, label in judged]).mean()
    itg = torch.stack([cost for i in pairs for cost in plain.write(images[i], texts[i])]).mean()
    return {"itc": itc / len(texts), "itm": itm, "itg": itg}
