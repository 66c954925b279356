"""A run's settings, each explained: what a config file and `key=value` words may set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from instructkit.files import NOT_BLANK

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
Instructions = Literal["full", "none", "name"]
PairLoss = Literal["itc", "itm", "lm", "vqa"]


class WholeModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model is evaluated.

    Attributes:
        name: an InstructBLIP, or a BLIP-2 with an LLM: `nano` (starts from random weights), `mini` (the mini-world's
            BLIP-2, which comes with instructkit), a published size such as `vicuna-7b`, a model folder, a name on the
            Hugging Face hub, or a `.pth` file of LAVIS. A LAVIS file gets image encoder and LLM from the published
            model of its size.
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
        exchanged: ask each question about another picture of its benchmark, so that the score is that of a model which
            sees nothing.
    """

    words: Text | None = None
    exchanged: bool = False


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
        queries: number of query tokens, of a Q-Former that has none of its own: nano's or a BERT; null for 8 and 32.
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
    queries: Annotated[int, Meta(ge=1, le=1024)] | None = None
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
        world: draw the mini-world of that size below `root`/raw, if it is not there, and convert its releases; null
            draws nothing.
        weights: factors that multiply a dataset's square-root weight (paper, section 3.3), by its name in `train`.
        group_size: maximum number of questions about one image in a group.
        augment: crop and flip pictures at random.
        workers: processes that prepare batches; 0 prepares them in the training process. A conversion inside the run
            uses as many processes, or one per core if this is 0.
        prompt: what the model reads beside the picture, in place of the training templates: Jinja over an example's
            fields, such as "Question: {{ question }} Answer:"; none for nothing, as in BLIP-2's second stage; null for
            the templates.
        instructions: full for the training templates; none for the bare input, such as the question; name for that
            with the names of task and dataset in front, as in [vqa:vqav2]: InstructBLIP's multitask baselines (figure
            4).
        prefix: cut each target between two words, at a place that follows from the seed; the model reads what stands
            before it behind the prompt (BLIP-2's prefix LM, for encoder-decoder LLMs). Needs a prompt.
        instruction_tokens: maximum length of an instruction in LLM tokens; longer ones lose their beginning.
        answer_tokens: maximum length of a target in LLM tokens; longer ones lose their end.
        caption_tokens: maximum length of a caption in BLIP-2's first stage, in the Q-Former's tokens with `[CLS]` and
            `[SEP]`; longer ones lose their end.
        text: file that recipes/pretrain_text.py trains a language model on, in place of datasets: a JSON object with
            the key `text` a line; `training/text.py` says what else it may hold.
        text_tokens: longest row of that text in the LLM's tokens; a longer document is read in pieces.
    """

    train: Annotated[list[Text], Meta(min_length=1)] = msgspec.field(default_factory=lambda: ["easy_vqa"])
    raw: dict[Text, Text] = {}
    world: Literal["tiny", "small", "full"] | None = None
    weights: dict[Text, Factor] = {}
    group_size: Positive = 1
    augment: bool = False
    workers: Annotated[int, Meta(ge=0, le=1024)] = 0
    prompt: Text | None = None
    instructions: Instructions = "full"
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
        prompts: full for the protocols' prompts; none or name for the bare input in their place, as a run with the same
            `data.instructions` trains on it (paper, figure 4). Of a held-out dataset name is the task's alone.
        dtype: precision of the model. null: float32, or the run's precision if the evaluation ends a training run.
    """

    benchmarks: list[Text] = []
    limit: Positive | None = None
    eval_batch_size: Positive = 64
    spread: Count = 0
    prompts: Instructions = "full"
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


def to_dict(config: RunConfig) -> dict[str, Any]:
    """A config as plain values, for YAML and reports."""
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return plain
