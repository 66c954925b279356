"""BLIP as captioner and as filter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from instructkit.config.settings import CapFiltRun, CaptionerConfig, FilterConfig
from instructkit.errors import UserError
from instructkit.evaluation.capfilt.judge import Models, Scored
from instructkit.evaluation.nucleus import NucleusDraw
from instructkit.models.batches import Captions
from instructkit.models.blip import Blip
from instructkit.models.load.blip_tasks import blip_tasks, open_blip
from instructkit.runs.waiting import first_on_machine, on_first_rank


class BlipTool:
    """A BLIP that writes captions, scores texts, or both.

    Args:
        model: put into evaluation mode.
        captions: its tokeniser.
        captioner: how captions are written.
        scorer: how texts are scored.
    """

    def __init__(self, model: Blip, captions: Captions, captioner: CaptionerConfig, scorer: FilterConfig) -> None:
        self.model, self.captions, self.captioner, self.scorer = model.eval(), captions, captioner, scorer
        self.size: int = model.config.vision_config.image_size

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Features of pictures, `[pictures, patches + 1, width]`."""
        weight = self.model.itm_head.weight
        return self.model.encode_images(pixel_values.to(weight.device, weight.dtype))

    def write(self, features: Tensor, draws: Sequence[Sequence[Random]]) -> list[list[str]]:
        """Captions of each picture, one for each generator; beams leave those unused."""
        how, flat = self.captioner, [draw for each in draws for draw in each]
        counts = torch.tensor([len(each) for each in draws])
        states = features.repeat_interleave(counts.to(features.device), dim=0)
        prompt = self.captions.encode([how.prompt])[0][0][:-1] if how.prompt is not None else []
        options: dict[str, Any] = {"min_new_tokens": how.min_tokens, "max_new_tokens": how.max_tokens}
        if how.decoding == "nucleus":
            options["logits_processor"] = LogitsProcessorList([NucleusDraw(flat, how.top_p)])
        else:
            options["num_beams"] = how.beams
        begin = torch.tensor([prompt], device=features.device).expand(len(states), -1) if prompt else None
        written = self.model.generate(states, begin, do_sample=False, **options)
        texts = iter(self.captions.tokenizer.batch_decode(written[:, max(1, len(prompt)) :], skip_special_tokens=True))
        return [[next(texts) for _ in each] for each in draws]

    def score(self, features: Tensor, image_index: Tensor, texts: Sequence[str]) -> Scored:
        """The probability of "matches", or the similarity of the embeddings."""
        ids, cut = self.captions.encode(texts)
        rows = {name: each.to(features.device) for name, each in self.captions.padded(ids).items()}
        if self.scorer.score == "itm":
            return Scored(self.model.judge(features, image_index, **rows).softmax(-1)[:, 1], cut)
        images, words = self.model.embed_images(features), self.model.embed_texts(**rows)
        return Scored((images[image_index] * words[:, None]).sum(-1).amax(1), cut)


def load_models(config: CapFiltRun) -> Models:
    """The captioner and the filter of a run, where they compute; one object where both are one model.

    Raises:
        UserError: a model is not there, or is no BLIP that can do its work.
    """
    captioner, scorer = config.captioner, config.filter
    on_first_rank(lambda: _check(captioner.model, "captioner", "captioning"))
    on_first_rank(lambda: _check(scorer.model, "filter", "retrieval"))
    tools = {
        name: first_on_machine(partial(_load, name, config))
        for name in dict.fromkeys((captioner.model, scorer.model))
        if name is not None
    }
    return Models(
        None if captioner.model is None else tools[captioner.model],
        None if scorer.model is None else tools[scorer.model],
    )


def _check(name: str | None, role: str, task: str) -> None:
    """Look what a model can do before it is loaded."""
    tasks = () if name is None else blip_tasks(name)
    if name is not None and task not in tasks:
        can = f"a BLIP for {' and '.join(tasks)}" if tasks else "no BLIP"
        raise UserError(f"{role}.model={name}: is {can}; CapFilt's {role} is a BLIP for {task}")


def _load(name: str, config: CapFiltRun) -> BlipTool:
    model, captions = open_blip(name, dtype=getattr(torch, config.dtype))
    model.to(f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu")
    return BlipTool(model, captions, config.captioner, config.filter)
