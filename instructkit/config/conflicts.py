"""Settings that one by one are right but not together."""

from __future__ import annotations

from collections.abc import Iterator

from instructkit.config.settings import CapFiltRun, ModelConfig, PairsConfig, RunConfig
from instructkit.errors import UserError, quote


def conflicts_of_capfilt(config: CapFiltRun) -> Iterator[str]:
    """Settings of CapFilt that one by one are right but not together."""
    captioner, filtering, data = config.captioner, config.filter, config.data
    if not data.web:
        yield "data.web names no dataset; such as data.web=[cc3m]"
    for key, entries in (("data.web", data.web), ("data.human", data.human)):
        if twice := [entry for number, entry in enumerate(entries) if entry in entries[:number]]:
            yield f"{key} names {quote(twice[0])} twice"
    if captioner.model is None and filtering.model is None:
        yield "captioner.model and filter.model are both null, so nothing would be done; name one of them"
    if captioner.min_tokens > captioner.max_tokens:
        yield f"captioner.min_tokens = {captioner.min_tokens} is above captioner.max_tokens = {captioner.max_tokens}"
    if captioner.decoding == "beams" and captioner.captions > 1:
        yield f"captioner.captions = {captioner.captions}: beams give one caption; take captioner.decoding=nucleus"
    if filtering.keep is not None and filtering.threshold is not None:
        yield "filter.keep and filter.threshold both say what is kept; give one of the two"
    if filtering.score == "itm" and filtering.threshold is not None and filtering.threshold < 0:
        yield f"filter.threshold = {filtering.threshold:g}: for filter.score=itm it is a probability, 0 to 1"
    if filtering.model is not None and filtering.keep is None and filtering.least is None:
        yield "filter.score=itc needs filter.threshold, a similarity of -1 to 1, or filter.keep"


def conflicts_of(config: RunConfig) -> Iterator[str]:
    """Settings that one by one are right but not together."""
    towers, training, evaluation = config.towers, config.training, config.evaluation
    trained = (towers.vision, towers.qformer, towers.llm)
    if set(trained) == {"frozen"}:
        yield "towers.vision, towers.qformer and towers.llm are frozen, so there is nothing to train; set one to full"
    if towers.lora_targets and "lora" not in trained:
        yield "towers.lora_targets picks layers for LoRA, but no tower is set to lora"
    if config.data.text is not None and config.recipe != "pretrain_text":
        yield f"data.text={config.data.text} is for recipes/pretrain_text.py alone; leave it out"
    if config.data.prefix and config.data.prompt is None:
        yield "data.prefix cuts targets behind a prompt of the run's own; set data.prompt, such as data.prompt=none"
    if config.data.prompt is not None and config.data.instructions != "full":
        yield "data.prompt and data.instructions both say what the model reads beside the picture; give one of the two"
    for tower in training.rates:
        if getattr(towers, tower) == "frozen":
            yield f"training.rates.{tower} is the learning rate of a tower that is frozen; set towers.{tower}"
    if training.schedule != "step" and (training.decay, training.decay_every) != (0.9, None):
        yield "training.decay and decay_every belong to schedule=step, and the schedule is a cosine; set schedule=step"
    if training.layer_decay < 1 and towers.vision == "frozen":
        yield "training.layer_decay lowers the rates of an image encoder that is frozen; set towers.vision"
    for name in ("warmup_from", "min_learning_rate"):
        if (value := getattr(training, name)) > training.learning_rate:
            yield f"training.{name} = {value:g} is above training.learning_rate = {training.learning_rate:g}"
    for key, entries in (
        ("data.train", config.data.train),
        ("evaluation.benchmarks", evaluation.benchmarks),
        ("evaluation.watch", evaluation.watch),
        ("evaluation.validation", evaluation.validation),
    ):
        if twice := [entry for number, entry in enumerate(entries) if entry in entries[:number]]:
            yield f"{key} names {quote(twice[0])} twice"
    yield from _exclusive(config)
    yield from _of_pairs(config)


def _of_pairs(config: RunConfig) -> Iterator[str]:
    """Settings of BLIP that are in the wrong place, or do not go together."""
    pairs, training = config.pairs, config.training
    if config.recipe != "pretrain_blip":
        given = [
            f"pairs.{key}" for key in pairs.__struct_fields__ if getattr(pairs, key) != getattr(PairsConfig(), key)
        ]
        given += [
            f"model.{key}" for key in ("text", "sharing") if getattr(config.model, key) != getattr(ModelConfig(), key)
        ]
        for name in given:
            yield f"{name} is for BLIP (recipe=pretrain_blip), and these settings are for recipe={config.recipe}"
        return
    if "vqa" in pairs.losses and len(pairs.losses) > 1:
        yield "pairs.losses: vqa reads questions and the others read captions; name vqa alone, or the others"
    if len(set(pairs.losses)) < len(pairs.losses):
        yield f"pairs.losses = {', '.join(pairs.losses)} names one twice"
    if ("itc" in pairs.losses) != ("itm" in pairs.losses):
        yield "pairs.losses: itm draws its wrong pairs by itc, so itc and itm go together; name both or neither"
    elif pairs.compares and pairs.queue % training.batch_size:
        near = max(1, round(pairs.queue / training.batch_size)) * training.batch_size
        yield (
            f"pairs.queue = {pairs.queue} is no multiple of training.batch_size = {training.batch_size}, and a step "
            f"fills the queue with its pairs; take queue={near}"
        )


def _exclusive(config: RunConfig) -> Iterator[str]:
    """Settings of which one cannot be honoured beside the other."""
    model, towers, training = config.model, config.towers, config.training
    if (bits := model.llm_bits) is not None and (towers.llm == "full" or training.zero_stage == 3):
        reason = "towers.llm=full" if towers.llm == "full" else "training.zero_stage=3"
        yield (
            f"model.llm_bits={bits} cannot be used with {reason}: quantised weights are neither trained nor sharded; "
            "set towers.llm=lora or frozen, and a zero_stage of at most 2"
        )
    if training.compile and training.zero_stage == 3:
        yield (
            "training.compile=true: ZeRO 3 fetches weights inside layers, where graphs would break; take zero_stage=2 "
            "or leave compile out"
        )
    cache = config.throughput.feature_cache
    if cache is not None and (config.data.augment or towers.vision != "frozen"):
        reason = "data.augment=true" if config.data.augment else f"towers.vision={towers.vision}"
        yield (
            f"throughput.feature_cache={cache} cannot be used with {reason}: an image's features would not stay the "
            "same; set data.augment=false and towers.vision=frozen, or no cache"
        )


def check_recipe(config: RunConfig, name: str) -> None:
    """Refuse settings that are for another recipe than the one that got them.

    Raises:
        UserError: they are.
    """
    if config.recipe != name:
        raise UserError(
            f"these settings are for recipes/{config.recipe}.py (recipe={config.recipe}), not for recipes/{name}.py; "
            "instructkit train takes the right one"
        )
