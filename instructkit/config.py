"""A run's settings: one YAML file, `key=value` words behind it, checked by type, range and name.

    deepspeed recipes/instruct.py --config recipes/configs/easy_vqa.yaml max_steps=20 towers.llm=frozen

A file may begin with `base: other.yaml`, a file beside it or the name of a config: its own keys then go over those of
that file, which has no base itself. Words go over files; `epochs` in one takes the place of `max_steps` below it.

A word names a key with its group (`training.max_steps`) or, where no two groups share it, without (`max_steps`).
`data=mine/receipts.jsonl` is short for `data.raw.jsonl=mine/receipts.jsonl data.train=[jsonl/receipts]`, and
`data=mine`, a folder, for `data.raw.jsonl=mine data.train=[jsonl/train]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from instructkit.errors import QUOTED, UserError, did_you_mean, quote
from instructkit.files import NOT_BLANK, fit, parse_yaml, read_yaml

Text = Annotated[str, Meta(pattern=NOT_BLANK)]
Positive = Annotated[int, Meta(ge=1, le=10**9)]
Count = Annotated[int, Meta(ge=0, le=10**9)]
Factor = Annotated[float, Meta(ge=0, le=1e6)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
Rate = Annotated[float, Meta(gt=0, le=1e6)]
Setting = Literal["frozen", "lora", "full"]
Tower = Literal["vision", "qformer", "llm"]
Dtype = Literal["float32", "bfloat16", "float16"]
PairLoss = Literal["itc", "itm", "lm", "vqa"]


class WholeModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model is evaluated.

    Attributes:
        name: an InstructBLIP, or a BLIP-2 with an LLM: `nano` (starts from random weights), a published size such as
            `vicuna-7b`, a model folder, a name on the Hugging Face hub, or a `.pth` file of LAVIS. A LAVIS file gets
            image encoder and LLM from the published model of its size.
        allow_packages: allow a model folder to name a Python package for its LLM. Code of that package runs. A package
            that you name yourself in `llm` needs no permission.
    """

    name: Text = "nano"
    allow_packages: bool = False


class EvaluatedModelConfig(WholeModelConfig, frozen=True, forbid_unknown_fields=True):
    """Which model is evaluated, and what it sees.

    Attributes:
        words: file that says what is in each picture, such as the world's descriptions.jsonl. `name` then is an LLM, or
            a model whose LLM it is, that reads the descriptions in front of the prompt in place of the pictures.
    """

    words: Text | None = None


class ModelConfig(WholeModelConfig, frozen=True, forbid_unknown_fields=True):
    """Which model is trained.

    Attributes:
        vision: image encoder that replaces `name`'s, by folder or hub name: BLIP-2, InstructBLIP, CLIP, SigLIP, DINO,
            or another encoder whose features are patches or a feature map, such as EfficientNet; or `package:MODULE`
            for a Python package that contains one.
        vision_layer: layer of the image encoder whose output is read: 1 is the first, -1 the last. In encoders with
            stages a stage counts as a layer. null reads the final features (of CLIP, those one layer earlier).
        text: BERT that BLIP's text transformer starts from, by folder or hub name; `vision` then names a ViT or DeiT.
        sharing: what BLIP's text encoder and decoder have in common (table 3 of its paper).
        qformer: Q-Former and query tokens that replace `name`'s, by folder, hub name or `package:MODULE`: BLIP-2,
            InstructBLIP or BERT.
        llm: LLM that replaces `name`'s: a causal or T5-like one by folder or hub name, a GGUF file, or
            `package:MODULE` for a Python package that assembles or contains one.
        llm_bits: store the LLM's linear layers in 4 or 8 bits (bitsandbytes); the LLM must be frozen or trained by
            LoRA. null uses the run's precision.
        image_size: pixels of a side of the pictures, for BLIP's own image encoder, whose position embeddings are then
            interpolated; null for the size that the encoder was trained on.
        instruction_aware: whether the Q-Former reads the instruction; false is the paper's ablation.
        vocabulary: vocabulary size of the tokenizers that are trained for `nano` and on `data.text`.
    """

    vision: Text | None = None
    vision_layer: Annotated[int, Meta(ge=-10_000, le=10_000)] | None = None
    text: Text | None = None
    sharing: Literal["all", "all_but_cross_attention", "all_but_self_attention", "none"] = "all_but_self_attention"
    qformer: Text | None = None
    llm: Text | None = None
    llm_bits: Literal[4, 8] | None = None
    image_size: Annotated[int, Meta(ge=1, le=4096)] | None = None
    instruction_aware: bool = True
    vocabulary: Positive = 1024

    @property
    def joined(self) -> bool:
        """Whether the parts are loaded one by one: some come from elsewhere than `name`, or are loaded otherwise."""
        return any((self.vision, self.qformer, self.llm, self.llm_bits)) or self.vision_layer is not None

    @property
    def base(self) -> str:
        """The model in words: `name` and the parts instead of its own."""
        parts = {"vision": self.vision, "qformer": self.qformer, "llm": self.llm}
        return " ".join([self.name, *(f"{part}={name}" for part, name in parts.items() if name)])


class TowersConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What of the model is trained: each tower frozen, by LoRA, or in full.

    Attributes:
        vision: image encoder.
        qformer: Q-Former; the query tokens and the projection to the LLM are trained unless it is frozen.
        llm: language model.
        lora_rank: rank of the LoRA adapters.
        lora_alpha: LoRA's alpha; adapters are scaled by lora_alpha / lora_rank.
        lora_targets: linear layers that get adapters, as shell patterns over their full names, such as
            `language_model.*.q_proj`. Empty: all linear layers of the LoRA towers. The output head never gets one.
    """

    vision: Setting = "frozen"
    qformer: Setting = "full"
    llm: Setting = "frozen"
    lora_rank: Positive = 8
    lora_alpha: Positive = 16
    lora_targets: list[Text] = []


class ConvertedConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where converted data are.

    Attributes:
        root: folder of converted datasets, `<root>/<source>/<split>`.
    """

    root: Text = "data"


class DataConfig(ConvertedConfig, frozen=True, forbid_unknown_fields=True):
    """What is trained on.

    Attributes:
        train: datasets to train on: a source, or source/split for another split than the source's default.
        raw: release folder of each source that the run should convert. Sources that come as a Python package need
            none. For `jsonl` (your own data) a folder or a file.
        weights: factors that multiply a dataset's square-root weight (paper, section 3.3), by its name in `train`.
        group_size: maximum number of questions about one image in a group.
        augment: crop and flip pictures at random.
        workers: processes that prepare batches; 0 prepares them in the training process. A conversion inside the run
            uses as many processes, or one per core if this is 0.
        prompt: what the model reads beside the picture, in place of the training templates: Jinja over an example's
            fields, such as "Question: {{ question }} Answer:"; none for nothing, as in BLIP-2's second stage; null for
            the templates.
        prefix: cut each target between two words, at a place that follows from the seed; the model reads what stands
            before it behind the prompt (BLIP-2's prefix LM, for encoder-decoder LLMs). Needs a prompt.
        instruction_tokens: maximum length of an instruction in LLM tokens; longer ones lose their beginning.
        answer_tokens: maximum length of a target in LLM tokens; longer ones lose their end.
        caption_tokens: maximum length of a caption in BLIP-2's first stage, in the Q-Former's tokens with `[CLS]` and
            `[SEP]`; longer ones lose their end.
        text: file that recipes/pretrain_text.py trains a language model on, in place of datasets: a JSON object with
            the key `text` a line.
        text_tokens: longest row of that text in the LLM's tokens; a longer document is read in pieces.
    """

    train: Annotated[list[Text], Meta(min_length=1)] = msgspec.field(default_factory=lambda: ["easy_vqa"])
    raw: dict[Text, Text] = {}
    weights: dict[Text, Factor] = {}
    group_size: Positive = 1
    augment: bool = False
    workers: Annotated[int, Meta(ge=0, le=1024)] = 0
    prompt: Text | None = None
    prefix: bool = False
    instruction_tokens: Positive = 128
    answer_tokens: Positive = 256
    caption_tokens: Annotated[int, Meta(ge=3, le=10**9)] = 32
    text: Text | None = None
    text_tokens: Annotated[int, Meta(ge=2, le=10**9)] = 512


class TrainingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How it is trained.

    Attributes:
        max_steps: number of optimizer steps.
        epochs: length of the run in epochs, instead of max_steps; fractions are allowed. An epoch is as many samples as
            the mixture has examples. In a mixture, small datasets are passed more than once per epoch and large ones
            less than once; the log says how often.
        batch_size: image groups per step over all ranks; with group_size 1, examples.
        accumulation: micro-batches per rank and step.
        optimizer: adamw, or muon for models that start from random weights. muon needs zero_stage=0 and
            precision=fp32.
        learning_rate: peak learning rate.
        rates: peaks by tower (vision, qformer, llm) in place of learning_rate: warm-up and cosine are scaled with them.
            Query tokens, projection and the layer norm over the image features go with the Q-Former.
        layer_decay: the rate of the image encoder's last layer is multiplied by it, of the one before by its square,
            and so on down to the embeddings, as in LAVIS; 1 treats all layers alike.
        warmup_steps: steps of linear warm-up.
        warmup_from: learning rate of the first step.
        schedule: what follows the warm-up, down to min_learning_rate: a cosine, or steps, each of which multiplies the
            rate by `decay`.
        decay: factor of a step of schedule=step.
        decay_every: optimizer steps between two decays; null for an epoch.
        min_learning_rate: lowest learning rate behind the warm-up, which the cosine ends with.
        weight_decay: weight decay of matrices; biases, norms and embeddings have none.
        betas: betas of AdamW.
        gradient_clipping: maximum norm of the gradient; 0 turns clipping off.
        precision: fp32 or bf16.
        zero_stage: what DeepSpeed shards over the ranks: 0 nothing, 1 the optimizer state, 2 also gradients, 3 also
            weights.
        offload: what is kept in CPU memory: none, optimizer (its state and its step; ZeRO 1 to 3), or parameters (both;
            ZeRO 3).
        deepspeed: your own DeepSpeed configuration file (JSON). Its keys override those that these settings produce;
            "auto" takes their value. A contradiction is an error.
        activation_checkpointing: recompute each layer in the backward pass instead of storing its activations. It saves
            memory, takes about a third longer, and changes neither loss nor gradients.
        compile: compile the layers with torch.compile (ZeRO 0 to 2). On the CPU this needs a C++ compiler. Losses
            change by rounding only.
        log_every: steps between log lines.
        checkpoint_every: steps between checkpoints; 0 writes only the last one.
        keep_checkpoints: number of checkpoints to keep.
    """

    max_steps: Positive = 1000
    epochs: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    batch_size: Positive = 32
    accumulation: Positive = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: Rate = 1e-5
    rates: dict[Tower, Rate] = {}
    layer_decay: Annotated[float, Meta(gt=0, le=1)] = 1.0
    warmup_steps: Count = 1000
    warmup_from: Factor = 1e-8
    schedule: Literal["cosine", "step"] = "cosine"
    decay: Annotated[float, Meta(gt=0, le=1)] = 0.9
    decay_every: Positive | None = None
    min_learning_rate: Factor = 0.0
    weight_decay: Factor = 0.05
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    gradient_clipping: Factor = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "parameters"] = "none"
    deepspeed: Text | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    log_every: Positive = 10
    checkpoint_every: Count = 0
    keep_checkpoints: Positive = 2


class PairsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What BLIP is trained for, over pairs of picture and caption.

    Attributes:
        losses: itc (which text belongs to an image), itm (whether the two belong together), lm (write the caption). itc
            and itm go together. vqa (write the answers of a question about the picture) stands alone.
        negatives: where the wrong images and texts of itm come from: all ranks, or each rank's own pairs, as in LAVIS,
            where itc compares these alone with the queue, too.
        similarity: what wrong ones are drawn by: similarity to what the momentum encoder makes of them (BLIP's
            pre-training), or the trained encoders (its finetuning for retrieval).
        queue: pairs of former steps that itc compares with; batch_size must divide it.
        momentum: share of the momentum encoder's weights that stays at a step.
        alpha: weight of the momentum encoder's similarities in the targets of itc, reached in two epochs from 0.
    """

    losses: Annotated[list[PairLoss], Meta(min_length=1)] = msgspec.field(default_factory=lambda: ["itc", "itm", "lm"])
    negatives: Literal["all", "rank"] = "all"
    similarity: Literal["momentum", "online"] = "momentum"
    queue: Positive = 57_600
    momentum: Annotated[float, Meta(ge=0, le=1)] = 0.995
    alpha: Annotated[float, Meta(ge=0, le=1)] = 0.4

    @property
    def compares(self) -> bool:
        """Whether images and texts are compared with each other."""
        return "itc" in self.losses


class ThroughputConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Work that a training step can skip without changing its loss.

    Attributes:
        share_images: encode each image once per micro-batch instead of once per row.
        share_keys: compute the keys and values of the Q-Former's cross-attention once per image, and do not pad its
            instructions.
        packing: do not pad the LLM's rows. A decoder-only LLM reads them end to end, with attention that separates
            them; an encoder-decoder LLM reads rows of similar length together.
        answers_only: project only answer positions onto the vocabulary.
        feature_cache: folder that stores the frozen image encoder's features of every image seen. It needs a run
            without augmentation; null stores nothing.
    """

    share_images: bool = True
    share_keys: bool = True
    packing: bool = True
    answers_only: bool = True
    feature_cache: Text | None = None


class BenchmarksConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model is evaluated on.

    Attributes:
        benchmarks: `held-out`, `held-in`, names of protocols (`templates/eval`), or NAME/SPLIT for another split than
            the protocol's.
        limit: number of examples of each benchmark, from the start of its split; null evaluates all.
        eval_batch_size: questions per forward pass.
        spread: number of training wordings that are evaluated in addition to each protocol's prompt.
        dtype: precision of the model. null: float32, or the run's precision if the evaluation ends a training run.
    """

    benchmarks: list[Text] = []
    limit: Positive | None = None
    eval_batch_size: Positive = 64
    spread: Count = 0
    dtype: Dtype | None = None


class EvaluationConfig(BenchmarksConfig, frozen=True, forbid_unknown_fields=True):
    """What is evaluated during training and at its end.

    Attributes:
        every: steps between evaluations during training; the last step is evaluated too. 0 turns them off. The best
            checkpoint is kept and becomes the model.
        watch: protocols to evaluate during training.
        validation: datasets (source or source/split) to compute the loss on during training.
        watch_limit: number of examples of each, drawn by the seed; every evaluation uses the same ones.
        best: logged value that decides which checkpoint is best: `watch/<protocol>` or `validation_loss`. null: the
            mean over the protocols, or the loss if there are none.
        patience: stop training after this many evaluations without improvement; null never stops early.
    """

    every: Count = 0
    watch: list[Text] = []
    validation: list[Text] = []
    watch_limit: Positive = 200
    best: Text | None = None
    patience: Positive | None = None


class EvaluationRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of an evaluation. They have the same names as in a training run.

    Attributes:
        output: folder of the run: responses in `evaluation/`, report in `report/`.
    """

    output: Text
    model: EvaluatedModelConfig = EvaluatedModelConfig()
    data: ConvertedConfig = ConvertedConfig()
    evaluation: BenchmarksConfig = BenchmarksConfig()


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of a run.

    Attributes:
        output: folder of the run: config, log, checkpoints, model, report.
        seed: determines order, wordings, augmentation, initial weights and dropout.
        resume: continue from the last checkpoint in `output`.
        recipe: the recipe that the settings are for, `recipes/<recipe>.py`; no other takes them.
        project: project on Weights & Biases, if a key or WANDB_MODE=offline is set.
    """

    output: Text = "runs/easy_vqa"
    seed: Seed = 0
    resume: bool = False
    recipe: Literal["instruct", "pretrain_qformer", "pretrain_blip", "pretrain_text"] = "instruct"
    project: Text = "instructkit"
    model: ModelConfig = ModelConfig()
    towers: TowersConfig = TowersConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    pairs: PairsConfig = PairsConfig()
    throughput: ThroughputConfig = ThroughputConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


class CaptionerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What writes captions for web pictures.

    Attributes:
        model: a BLIP that was finetuned to write captions: a folder, a name on the Hugging Face hub, or a `.pth` file
            of BLIP or LAVIS. null writes none: the web's own texts are filtered.
        decoding: nucleus draws a caption from the most probable words, beams searches for the most probable one.
        captions: number of captions for each picture; more than one are drawn.
        prompt: what the model was trained to begin captions with, which is no part of them; null for nothing.
        top_p: probability that the words of the nucleus have together.
        beams: number of beams.
        min_tokens: minimum length of a caption in tokens, without prompt and end.
        max_tokens: maximum length.
    """

    model: Text | None = None
    decoding: Literal["nucleus", "beams"] = "nucleus"
    captions: Annotated[int, Meta(ge=1, le=1000)] = 1
    prompt: Text | None = "a picture of"
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.9
    beams: Annotated[int, Meta(ge=1, le=1000)] = 3
    min_tokens: Annotated[int, Meta(ge=0, le=512)] = 5
    max_tokens: Annotated[int, Meta(ge=1, le=512)] = 20


class FilterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What drops texts that do not fit their picture.

    Attributes:
        model: a BLIP that was finetuned for retrieval; the captioner's name means the same model, whose image encoder
            then reads a picture once for both. null drops nothing.
        score: itm is the probability of a match, 0 to 1; itc the similarity of the embeddings, -1 to 1.
        threshold: texts with a lower score are dropped. null: 0.5 for itm, where ITM says unmatched; for itc one must
            be given unless `keep` is.
        keep: BLIP-2's rule in place of the threshold: so many texts of each picture with the highest scores are kept.
    """

    model: Text | None = None
    score: Literal["itm", "itc"] = "itm"
    threshold: Annotated[float, Meta(ge=-1, le=1)] | None = None
    keep: Positive | None = None

    @property
    def least(self) -> float | None:
        """The threshold that applies; None where there is none."""
        if self.threshold is None and self.keep is None and self.score == "itm":
            return 0.5
        return self.threshold


class WebPairsConfig(ConvertedConfig, frozen=True, forbid_unknown_fields=True):
    """Which pairs of picture and text are used.

    Attributes:
        web: converted datasets whose texts are filtered and whose pictures get captions: a source, or source/split for
            another split than its default.
        human: datasets whose pairs are added to those that are kept, as they are.
    """

    web: list[Text] = []
    human: list[Text] = []


class CapFiltRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of a run of CapFilt.

    Attributes:
        output: folder of the run: what was computed in `blocks/`, the list of pairs `capfilt.json`, the same converted
            in `data/`, what was dropped in `dropped.jsonl`, and `report/`.
        recipe: the recipe that the settings are for.
        seed: captions are drawn from it and from the name of their picture.
        batch_size: pictures, and texts, a forward pass.
        dtype: precision of the models.
        data: web and human pairs.
        captioner: what writes captions.
        filter: what drops texts.
    """

    output: Text = "runs/capfilt"
    recipe: Literal["capfilt"] = "capfilt"
    seed: Seed = 0
    batch_size: Positive = 32
    dtype: Dtype = "float32"
    data: WebPairsConfig = WebPairsConfig()
    captioner: CaptionerConfig = CaptionerConfig()
    filter: FilterConfig = FilterConfig()


GROUPS: dict[str, type[msgspec.Struct]] = {
    "model": ModelConfig,
    "towers": TowersConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "pairs": PairsConfig,
    "throughput": ThroughputConfig,
    "evaluation": EvaluationConfig,
}


def load_config(path: Path, words: Sequence[str] = ()) -> RunConfig:
    """Read a config file and put `key=value` words over it.

    Raises:
        UserError: a missing file, an unknown key, a value of the wrong type or out of range, settings that contradict
            each other.
    """
    tree = _with_base(path, RunConfig)
    config: RunConfig = fit(tree, RunConfig, str(path))
    given: set[str] = set()
    for word in words:
        given |= _override(tree, word)
        if len(given) > 1:
            raise UserError(f"{quote(word)}: {_BOTH_LENGTHS}")
        for name in LENGTHS - given if given else ():  # the file's
            tree["training"].pop(name, None)
        config = fit(tree, RunConfig, quote(word))
    for problem in _contradictions(config):
        raise UserError(f"{path}{' with ' + quote(' '.join(words)) if words else ''}: {problem}")
    return config


LENGTHS = frozenset(("max_steps", "epochs"))
"""Settings of which one says how long a run is."""
_BOTH_LENGTHS = "training.epochs and training.max_steps both say how long the run is; give one of the two"


def load_capfilt(path: Path, words: Sequence[str] = ()) -> CapFiltRun:
    """Read a config file of CapFilt and put `key=value` words over it.

    Raises:
        UserError: as `load_config`.
    """
    tree = _with_base(path, CapFiltRun)
    for word in words:
        key, sign, text = word.partition("=")
        if not sign:
            raise UserError(f"{quote(word)}: settings are given as key=value, such as filter.threshold=0.4")
        *groups, name = _locate(key, CapFiltRun)
        value = parse_yaml(text, quote(word))
        inner = tree
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = value
        fit(tree, CapFiltRun, quote(word))
    config: CapFiltRun = fit(tree, CapFiltRun, str(path))
    for problem in _capfilt_contradictions(config):
        raise UserError(f"{path}{' with ' + quote(' '.join(words)) if words else ''}: {problem}")
    return config


def load_settings(path: Path, words: Sequence[str] = ()) -> RunConfig | CapFiltRun:
    """Read a config file of any recipe and put `key=value` words over it.

    Raises:
        UserError: as `load_config`.
    """
    return load_capfilt(path, words) if _recipe_of(path) == "capfilt" else load_config(path, words)


def _recipe_of(path: Path) -> Any:
    """The recipe that a config file names, or the one that it goes over; None where none does."""
    tree = _mapping(path)
    base = tree.get("base")
    if "recipe" not in tree and isinstance(base, str) and base.strip():
        tree = _mapping(_base_file(path, base))
    return tree.get("recipe")


def _with_base(path: Path, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The keys of a config file over those of the one that it names as its `base`."""
    _check_kind(path, _recipe_of(path), kind)
    tree = _read(path, kind)
    if "base" not in tree:
        return tree
    name = tree.pop("base")
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{path}: base = {quote(name)}: Expected the name of a config or a file beside this one")
    below = _base_file(path, name)
    base = _read(below, kind)
    if "base" in base:
        raise UserError(f"{path}: its base {below} has a base itself; a base is one level deep")
    return _over(base, tree, kind)


def _base_file(path: Path, name: str) -> Path:
    beside = [path.parent / name, path.parent / f"{name}.yaml"]
    for place in beside:
        if place.is_file():
            return place
    if name.endswith((".yaml", ".yml")):
        raise UserError(f"{path}: base = {quote(name)}: no such file; it is looked for at {quote(str(beside[0]))}")
    try:
        return find_config(name)
    except UserError as error:
        raise UserError(f"{path}: base = {error}") from error


_NEEDED = ("model.name", "evaluation.benchmarks", "output")
_FORMER = {
    "out": "output=... is its name now",
    "batch_size": "eval_batch_size=... is its name now",
    "data": "the folder of converted datasets is data.root=...",
}


def evaluation_settings(values: Mapping[str, Any]) -> EvaluationRun:
    """Settings of an evaluation by key, with or without its group; `benchmarks` may be one text with commas.

    Args:
        values: such as {"model": "runs/easy_vqa/model", "benchmarks": "gqa,vsr", "output": "runs/gqa"}; `model` with a
            text is short for `model.name`.

    Raises:
        UserError: a key is unknown or missing, or a value does not fit.
    """
    tree: dict[str, Any] = {}
    for key, value in values.items():
        if key in _FORMER and not (key in EvaluationRun.__struct_fields__ and isinstance(value, dict)):
            raise UserError(f"{key}={quote(value)}: {_FORMER[key]}")
        path = ["model", "name"] if key == "model" and not isinstance(value, dict) else _locate(key, EvaluationRun)
        if path[-1] == "benchmarks" and (value is None or isinstance(value, str)):
            value = [name.strip() for name in (value or "").split(",") if name.strip()]
        inner = tree.setdefault(path[0], {}) if len(path) > 1 else tree
        inner[path[-1]] = value
        fit({"output": "-"} | tree, EvaluationRun, "evaluation settings")
    for needed in _NEEDED:
        group, _, name = needed.rpartition(".")
        if not (tree.get(group, {}) if group else tree).get(name):
            raise UserError(f"evaluation needs {name if group == 'evaluation' else needed}=...")
    run: EvaluationRun = fit(tree, EvaluationRun, "evaluation settings")
    dtype = run.evaluation.dtype or "float32"
    return msgspec.structs.replace(run, evaluation=msgspec.structs.replace(run.evaluation, dtype=dtype))


def evaluation_words(words: Sequence[str]) -> EvaluationRun:
    """Settings of an evaluation from words such as `model.name=runs/easy_vqa/model limit=100`.

    Raises:
        UserError: a word is no `key=value`, or its key or value does not fit.
    """
    values: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign:
            raise UserError(f"{quote(word)}: settings are given as key=value, such as limit=100")
        values[name] = parse_yaml(text, quote(word))
    return evaluation_settings(values)


def dtype_of(config: RunConfig) -> Dtype:
    """What the evaluation at the end of a run computes in: what is set, or else the run's precision."""
    return config.evaluation.dtype or ("bfloat16" if config.training.precision == "bf16" else "float32")


def evaluation_of(config: RunConfig) -> EvaluationRun:
    """The settings of the evaluation that a training run ends with."""
    asked = {name: getattr(config.evaluation, name) for name in BenchmarksConfig.__struct_fields__}
    return EvaluationRun(
        output=config.output,
        # The folder was written by the run, from what its own config names.
        model=EvaluatedModelConfig(name=str(Path(config.output) / "model"), allow_packages=True),
        data=ConvertedConfig(root=config.data.root),
        evaluation=BenchmarksConfig(**{**asked, "dtype": dtype_of(config)}),
    )


def _mapping(path: Path) -> dict[str, Any]:
    """The keys of one config file, unchecked."""
    if not path.is_file():
        raise UserError(f"{path}: no such config file")
    tree = read_yaml(path)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values, not {quote(tree)}")
    return tree


def _read(path: Path, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The keys of one config file, checked by name, type and range."""
    tree = _mapping(path)
    fit({key: value for key, value in tree.items() if key != "base"}, kind, str(path))
    if kind is RunConfig and all(tree.get("training", {}).get(name) is not None for name in LENGTHS):
        raise UserError(f"{path}: {_BOTH_LENGTHS}")
    return tree


def _check_kind(path: Path, recipe: Any, kind: type[msgspec.Struct]) -> None:
    """Refuse a file whose keys are those of another kind of recipe, before they are called unknown."""
    wrong = recipe == "capfilt" if kind is RunConfig else recipe not in (None, "capfilt")
    if wrong:
        wanted = "a recipe that trains" if kind is RunConfig else "recipes/capfilt.py"
        raise UserError(f"{path}: recipe = {quote(recipe)}: these settings are for that recipe, not for {wanted}")


def _over(base: dict[str, Any], tree: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """One file's keys over another's, key by key in each group; one that says how long a run is replaces the other."""
    both = base | tree
    for name in _groups(kind):
        if name in base and name in tree:
            lengths = any(tree[name].get(key) is not None for key in LENGTHS)
            below = {key: value for key, value in base[name].items() if not (lengths and key in LENGTHS)}
            both[name] = below | tree[name]
    return both


def _capfilt_contradictions(config: CapFiltRun) -> Iterator[str]:
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


def _contradictions(config: RunConfig) -> Iterator[str]:
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


def recipes_folder() -> Path:
    """The folder `recipes/`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def config_names() -> dict[str, Path]:
    """The configs that are found by name, sorted: those of `recipes/configs` here, then those that are shipped."""
    folders = [recipes_folder() / "configs", Path("recipes") / "configs"]
    return dict(sorted((path.stem, path) for folder in folders for path in folder.glob("*.yaml")))


def described(config: Path) -> str:
    """The first sentence of a config file's heading comment."""
    lines = takewhile(lambda line: line.startswith("# "), config.read_text(encoding="utf-8").splitlines())
    return re.split(r"(?<=\w)\.(?: |$)", " ".join(line[2:] for line in lines), maxsplit=1)[0]


def find_config(name: str) -> Path:
    """A config file by its path, or by its name in `recipes/configs` of this folder or of the toolkit.

    Raises:
        UserError: there is none.
    """
    if Path(name).is_file() or name.endswith((".yaml", ".yml")):
        return Path(name)
    known = config_names()
    if name not in known:
        raise UserError(f"{name}: no such config file, and no config has that name; {did_you_mean(name, list(known))}")
    return known[name]


def to_dict(config: RunConfig) -> dict[str, Any]:
    """A config as plain values, for YAML and reports."""
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return plain


def _override(tree: dict[str, Any], word: str) -> set[str]:
    """Put a word over a tree; returns which of `LENGTHS` it gives."""
    key, sign, text = word.partition("=")
    if not sign:
        raise UserError(f"{quote(word)}: settings are given as key=value, such as max_steps=20")
    path = _locate(key)
    value = parse_yaml(text, quote(word))
    if key == "data" and isinstance(value, str):
        _train_on_own(tree.setdefault("data", {}), value)
        return set()
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    if path[0] in GROUPS and len(path) == 1 and isinstance(value, dict):
        tree.setdefault(key, {}).update(value)
    else:
        tree[path[-1]] = value
    group = value if path == ["training"] and isinstance(value, dict) else {path[-1]: value}
    return {name for name in LENGTHS if path[0] == "training" and group.get(name) is not None}


def _train_on_own(data: dict[str, Any], place: str) -> None:
    """Put the settings that convert your own file or folder, and train on it, into the group `data`."""
    data["raw"] = {**data.get("raw", {}), "jsonl": place}
    data["train"] = [f"jsonl/{Path(place).stem if place.endswith('.jsonl') else 'train'}"]


def _locate(key: str, kind: type[msgspec.Struct] = RunConfig) -> list[str]:
    """Where a key stands: itself at the top, in the group it names, or in the only group that has it.

    Behind a setting that is a mapping, such as `data.weights`, stands one of its keys, whatever letters that has.
    """
    groups = GROUPS if kind is RunConfig else _groups(kind)
    first, *more = key.split(".")
    if first in groups and more:
        known = groups[first].__struct_fields__
        if more[0] not in known:
            raise UserError(f"unknown key {_shown(key)}; {did_you_mean(more[0], known)}")
        path, inner = [first, more[0]], more[1:]
    elif first in kind.__struct_fields__:
        path, inner = [first], more
    else:
        found = [name for name, group in groups.items() if first in group.__struct_fields__]
        if not found:
            everything = [*kind.__struct_fields__]
            everything += [field for group in groups.values() for field in group.__struct_fields__]
            everywhere = f"there are {', '.join(kind.__struct_fields__)}; instructkit/config.py explains all their keys"
            raise UserError(f"unknown key {_shown(key)}; {did_you_mean(first, everything, everywhere)}")
        if len(found) > 1:
            names = " or ".join(f"{group}.{key}" for group in found)
            raise UserError(f"key {_shown(key)} is in several groups: write {names}")
        path, inner = [found[0], first], more
    if inner:
        value = get_type_hints(groups[path[0]])[path[1]] if len(path) > 1 else None
        if get_origin(value) is not dict:
            raise UserError(f"unknown key {_shown(key)}; {'.'.join(path)} is a single value")
        path.append(".".join(inner))
    return path


def _groups(kind: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct]]:
    hints = get_type_hints(kind)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, msgspec.Struct)}


def _shown(key: str) -> str:
    return key if key.isprintable() and len(key) <= QUOTED else quote(key)
