"""An image encoder and a Q-Former of BLIP-2's first stage learn to look, from labels: facts of the mini-world.

The Q-Former reads what is looked for (`world/looks.py`), and each fact is told from its queries by a linear head, which
is left behind. Pictures are drawn as they are needed, those of the second stage first. One process trains, on all its
cores; it keeps its state, and goes on from there.
"""

from __future__ import annotations

import io
import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from instructkit.config.settings import ModelConfig, TrainingConfig
from instructkit.data.media import image_pixels
from instructkit.errors import UserError
from instructkit.files import replacing, write_atomically
from instructkit.models.batches import Captions
from instructkit.models.blip2 import Blip2Pretraining
from instructkit.models.load.pretraining import join_pretraining
from instructkit.models.save import save_pretraining
from instructkit.training.optimizers import Muon, parameter_groups
from instructkit.training.schedule import learning_rate
from instructkit.world.draw import SIDE, draw_picture
from instructkit.world.looks import VALUES_OF, looks_of
from instructkit.world.pairs import pictured

PICTURES = 16
"""Of a step; each is looked at some ten times."""
TOKENS = 96
"""Of a text, at most."""
SAY_EVERY, KEEP_EVERY = 100, 500
"""Steps."""


class Batch(NamedTuple):
    """Pictures and what they are looked at for.

    Attributes:
        pixels: `[pictures, 3, height, width]`.
        image_index: picture of each look, `[looks]`.
        input_ids: what the Q-Former reads, `[looks, tokens]`.
        attention_mask: `[looks, tokens]`.
        facts: number of the true value of each fact, -1 where it is not looked for, `[looks]` each.
    """

    pixels: Tensor
    image_index: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    facts: Mapping[str, Tensor]


def batch_of(captions: Captions, seed: int, step: int) -> Batch:
    """The pictures of a step, and looks at each."""
    numbers = range(step * PICTURES, (step + 1) * PICTURES)
    scenes = [pictured(number, seed) for number in numbers]
    rngs = [random.Random(f"{seed}/looks/{number}") for number in numbers]
    looks = [
        (place, look)
        for place, (rng, scene) in enumerate(zip(rngs, scenes, strict=True))
        for look in looks_of(rng, scene)
    ]
    pixels = torch.from_numpy(np.stack([image_pixels(draw_picture(scene), SIDE) for scene in scenes]))
    facts = {
        fact: torch.tensor([values.index(look.facts[fact]) if fact in look.facts else -1 for _, look in looks])
        for fact, values in VALUES_OF.items()
    }
    rows = captions.rows([look.text for _, look in looks])
    index = torch.tensor([place for place, _ in looks])
    return Batch(pixels, index, **rows, facts=facts)


class Looking(nn.Module):
    """A model of BLIP-2's first stage with a linear head for each fact.

    Args:
        model: the model.
    """

    def __init__(self, model: Blip2Pretraining) -> None:
        super().__init__()
        self.model = model
        width = model.query_tokens.shape[1] * model.query_tokens.shape[2]
        self.heads = nn.ModuleDict({fact: nn.Linear(width, len(values)) for fact, values in VALUES_OF.items()})

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, tuple[int, int]]]:
        """The sum over the facts of each one's mean cross entropy; and how many were told right, of how many."""
        features = self.model.encode_images(batch.pixels)
        read = self.model.look(features, batch.image_index, batch.input_ids, batch.attention_mask).flatten(1)
        losses, right = [], {}
        for fact, head in self.heads.items():
            asked = batch.facts[fact] >= 0
            if asked.any():
                told, true = head(read[asked]), batch.facts[fact][asked]
                losses.append(nn.functional.cross_entropy(told, true))
                right[fact] = int((told.argmax(1) == true).sum()), len(true)
        return torch.stack(losses).sum(), right


def train_looks(
    folder: Path, settings: ModelConfig, config: TrainingConfig, *, frozen: bool, seed: int, say: Callable[[str], None]
) -> None:
    """Train until `folder/model` is there, from where a stopped training was.

    Args:
        folder: of the part.
        settings: image encoder, Q-Former and number of queries that are begun with.
        config: steps and learning rate.
        frozen: leave the image encoder as it is.
        seed: of the heads, and of the pictures.
        say: takes a line now and then.

    Raises:
        UserError: a part cannot be loaded, or the loss is not finite.
    """
    if (folder / "model").is_dir():
        return
    model, captions = join_pretraining(settings, torch.float32, _no_tokenizer, TOKENS, seed)
    model.vision_model.requires_grad_(not frozen)
    torch.manual_seed(seed)
    looking = Looking(model)
    groups = [*parameter_groups(model, config), {"params": list(looking.heads.parameters()), "weight_decay": 0.0}]
    optimizer = Muon(groups, lr=config.learning_rate, betas=config.betas)
    state: dict[str, Any] = {"step": 0}
    kept = folder / "state.pt"
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        looking.load_state_dict(state["looking"])
        optimizer.load_state_dict(state["optimizer"])
    right: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for step in range(state["step"], config.max_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        loss, found = looking(batch_of(captions, seed, step))
        if not loss.isfinite():
            raise UserError(f"{folder}: the loss of step {step + 1} is {loss.item()}; lower learning_rate")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(looking.parameters(), config.gradient_clipping)
        optimizer.step()
        for fact, counts in found.items():
            right[fact] = [before + now for before, now in zip(right[fact], counts, strict=True)]
        if (step + 1) % SAY_EVERY == 0:
            shares = ", ".join(f"{fact} {100 * good / count:.0f}%" for fact, (good, count) in right.items())
            say(f"step {step + 1:,}/{config.max_steps:,}  loss {loss.item():.2f}  right: {shares}")
            right.clear()
        if (step + 1) % KEEP_EVERY == 0:
            _keep(kept, {"step": step + 1, "looking": looking.state_dict(), "optimizer": optimizer.state_dict()})
    with replacing(folder / "model") as aside:
        save_pretraining(model, captions, aside)
    kept.unlink(missing_ok=True)


def _keep(path: Path, state: dict[str, Any]) -> None:
    held = io.BytesIO()
    torch.save(state, held)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, held.getvalue())


def _no_tokenizer() -> Any:
    raise UserError("model.qformer: looks need a Q-Former with a tokeniser")
