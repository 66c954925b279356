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
Setting = Literal["frozen", "lora", "full"]
Dtype = Literal["float32", "bfloat16", "float16"]


class WholeModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model is evaluated.

    Attributes:
        name: a preset that starts from random weights (`nano`), the name of a published size (`vicuna-7b`), a folder
            that `save_pretrained` wrote, a name on the Hugging Face hub, or a `.pth` file of LAVIS, whose image encoder
            and LLM are those of the published model of its size. It is an InstructBLIP, or a BLIP-2 with an LLM.
        allow_packages: whether the folder that `name` names may itself name a Python package for its LLM, whose code
            then runs; what `llm` names here needs no leave.
    """

    name: Text = "nano"
    allow_packages: bool = False


class ModelConfig(WholeModelConfig, frozen=True, forbid_unknown_fields=True):
    """Which model is trained.

    Attributes:
        vision: image encoder in place of `name`'s: a BLIP-2 or InstructBLIP, a CLIP, SigLIP or DINO, or another that
            gives features of patches or a map of them, such as an EfficientNet; by folder or hub name, like qformer
            and llm.
        vision_layer: layer of the image encoder that is read: n for what leaves the n-th, negative numbers from the
            end (-1 the last); stages count as layers where transformers' hidden_states has one of each. null for its
            final features, of CLIP those one layer before.
        qformer: Q-Former and query tokens in place of `name`'s: a BLIP-2, an InstructBLIP or a BERT.
        llm: LLM in place of `name`'s: a causal or T5-like one, a GGUF file, or `package:MODULE` for a Python package
            that assembles or holds one.
        llm_bits: 4 or 8 keeps the LLM's linear layers in so many bits (bitsandbytes), for an LLM that is frozen or
            trained by LoRA; null in the run's precision.
        instruction_aware: whether the Q-Former reads the instruction; false is the paper's ablation.
        vocabulary: at most so many tokens in each tokenizer that a preset trains on its own text.
    """

    vision: Text | None = None
    vision_layer: Annotated[int, Meta(ge=-10_000, le=10_000)] | None = None
    qformer: Text | None = None
    llm: Text | None = None
    llm_bits: Literal[4, 8] | None = None
    instruction_aware: bool = True
    vocabulary: Positive = 1024

    @property
    def joined(self) -> bool:
        """Whether the parts are loaded one by one: some come from elsewhere than `name`, or are loaded otherwise."""
        return any((self.vision, self.qformer, self.llm, self.llm_bits)) or self.vision_layer is not None

    @property
    def base(self) -> str:
        """The model in words: `name` and the parts in place of its own."""
        parts = {"vision": self.vision, "qformer": self.qformer, "llm": self.llm}
        return " ".join([self.name, *(f"{part}={name}" for part, name in parts.items() if name)])


class TowersConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What of the model is trained: each tower frozen, by LoRA, or in full.

    Attributes:
        vision: image encoder.
        qformer: Q-Former; the query tokens and the projection to the LLM are trained unless it is frozen.
        llm: language model.
        lora_rank: rank of LoRA towers.
        lora_alpha: scale of LoRA towers, times 1/rank.
        lora_targets: shell patterns over full paths of linear layers, such as `language_model.*.q_proj`, that LoRA
            stands beside; none for every linear layer of the LoRA towers. The output head never has LoRA.
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
        train: sources, or source/split where it is not the source's default.
        raw: release folder by source, for sources to be converted by the run; those that come as a Python package
            need none. For `jsonl`, data of one's own, a folder or a file.
        weights: factors on a dataset's square-root weight (paper, section 3.3), by its name in `train`.
        group_size: at most so many questions of one image stand together in a batch.
        augment: random crops and flips of pictures.
        workers: processes that prepare batches; 0 prepares them in the training process. A conversion inside the run
            has as many, or one a core where this is 0.
        instruction_tokens: instructions are cut to so many LLM tokens, from the left.
        answer_tokens: targets are cut to so many LLM tokens.
    """

    train: Annotated[list[Text], Meta(min_length=1)] = msgspec.field(default_factory=lambda: ["easy_vqa"])
    raw: dict[Text, Text] = {}
    weights: dict[Text, Factor] = {}
    group_size: Positive = 1
    augment: bool = False
    workers: Annotated[int, Meta(ge=0, le=1024)] = 0
    instruction_tokens: Positive = 128
    answer_tokens: Positive = 256


class TrainingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How it is trained.

    Attributes:
        max_steps: optimizer steps.
        epochs: the length of the run in place of max_steps. An epoch is as many samples as the datasets of the mixture
            hold examples. Each is drawn by its probability, so of a mixture of several a small one is passed more than
            once in an epoch and a large one not wholly; the log says how often. Broken numbers are fine; the last step
            is a whole one.
        batch_size: image groups a step over all ranks; with group_size 1, examples.
        accumulation: micro-batches that a rank's share of a step is cut into.
        optimizer: adamw, or muon for models that start from random weights, which needs zero_stage=0 and
            precision=fp32.
        learning_rate: peak.
        warmup_steps: steps of linear warm-up.
        warmup_from: learning rate of the first step.
        min_learning_rate: where the cosine ends.
        weight_decay: of matrices; biases, norms and embeddings have none.
        betas: of AdamW.
        gradient_clipping: largest norm of the gradient; 0 does not clip.
        precision: fp32 or bf16.
        zero_stage: what DeepSpeed shards over the ranks: 0 nothing, 1 optimizer state, 2 and gradients, 3 and weights.
        offload: what lies in the CPU's memory in place of the GPU's: the optimizer's state and step (ZeRO 1 to 3), or
            these and the parameters (ZeRO 3).
        deepspeed: a DeepSpeed configuration file (JSON) of the user's own; its keys go over those that these settings
            come to, which it may not contradict, and "auto" in it takes them over.
        activation_checkpointing: layers keep only their inputs for the backward pass and are computed again in it: less
            memory for a third more time; loss and gradients stay the same.
        compile: layers are compiled by torch.compile in the first steps, for ZeRO 0 to 2; needs a C++ compiler on the
            CPU. Losses move by rounding.
        log_every: steps between log lines.
        checkpoint_every: steps between checkpoints; 0 writes only the last.
        keep_checkpoints: older ones are removed.
    """

    max_steps: Positive = 1000
    epochs: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    batch_size: Positive = 32
    accumulation: Positive = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: Annotated[float, Meta(gt=0, le=1e6)] = 1e-5
    warmup_steps: Count = 1000
    warmup_from: Factor = 1e-8
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


class ThroughputConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a training step leaves out without changing its loss; each costs speed or memory when it is off.

    Attributes:
        share_images: the vision encoder sees an image once a micro-batch, not once a row.
        share_keys: the Q-Former's cross-attention makes keys and values once an image, and its instructions are not
            padded.
        packing: no padding in the LLM: rows of a decoder-only LLM are laid end to end with attention that keeps them
            apart, those of an encoder-decoder grouped by length.
        answers_only: only answer positions are projected onto the vocabulary.
        feature_cache: folder that keeps the frozen vision encoder's features of every image that was seen; for runs
            without augmentation; null keeps none.
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
        limit: at most so many examples of each, the first of the split; null for all.
        eval_batch_size: questions a forward pass.
        spread: so many training wordings are evaluated beside each protocol's prompt.
        dtype: that the model computes in; null for float32, behind a training run for that one's precision.
    """

    benchmarks: list[Text] = []
    limit: Positive | None = None
    eval_batch_size: Positive = 64
    spread: Count = 0
    dtype: Dtype | None = None


class EvaluationConfig(BenchmarksConfig, frozen=True, forbid_unknown_fields=True):
    """What is evaluated when training has ended, and while it goes on.

    Attributes:
        every: steps between evaluations during training, which the last step ends with too; 0 has none. The best
            checkpoint is kept and becomes the model.
        watch: names of protocols that they evaluate.
        validation: sources, or source/split, that they compute the loss on.
        watch_limit: so many examples of each, drawn by the seed, the same every time.
        best: value of the log that says which checkpoint is best (`watch/<protocol>`, `validation_loss`); null for the
            mean of the protocols, or the loss where there are none.
        patience: training stops after so many of these evaluations without a gain; null never stops it.
    """

    every: Count = 0
    watch: list[Text] = []
    validation: list[Text] = []
    watch_limit: Positive = 200
    best: Text | None = None
    patience: Positive | None = None


class EvaluationRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of an evaluation: those of a training run that it needs, under the same names.

    Attributes:
        output: folder of the run: responses in `evaluation/`, report in `report/`.
    """

    output: Text
    model: WholeModelConfig = WholeModelConfig()
    data: ConvertedConfig = ConvertedConfig()
    evaluation: BenchmarksConfig = BenchmarksConfig()


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of a run.

    Attributes:
        output: folder of the run: config, log, checkpoints, model, report.
        seed: order, wordings, augmentation, weights and dropout follow from it.
        resume: go on from the last checkpoint of `output`.
        project: project on Weights & Biases; used where a key or WANDB_MODE=offline is set.
    """

    output: Text = "runs/easy_vqa"
    seed: Seed = 0
    resume: bool = False
    project: Text = "instructkit"
    model: ModelConfig = ModelConfig()
    towers: TowersConfig = TowersConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    throughput: ThroughputConfig = ThroughputConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


GROUPS: dict[str, type[msgspec.Struct]] = {
    "model": ModelConfig,
    "towers": TowersConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "throughput": ThroughputConfig,
    "evaluation": EvaluationConfig,
}


def load_config(path: Path, words: Sequence[str] = ()) -> RunConfig:
    """Read a config file and put `key=value` words over it.

    Raises:
        UserError: a missing file, an unknown key, a value of the wrong type or out of range, settings that contradict
            each other.
    """
    tree = _with_base(path)
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


def _with_base(path: Path) -> dict[str, Any]:
    """The keys of a config file over those of the one that it names as its `base`."""
    tree = _read(path)
    if "base" not in tree:
        return tree
    name = tree.pop("base")
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{path}: base = {quote(name)}: Expected the name of a config or a file beside this one")
    below = _base_file(path, name)
    base = _read(below)
    if "base" in base:
        raise UserError(f"{path}: its base {below} has a base itself; a base is one level deep")
    return _over(base, tree)


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
        model=WholeModelConfig(name=str(Path(config.output) / "model"), allow_packages=True),
        data=ConvertedConfig(root=config.data.root),
        evaluation=BenchmarksConfig(**{**asked, "dtype": dtype_of(config)}),
    )


def _read(path: Path) -> dict[str, Any]:
    """The keys of one config file, checked by name, type and range."""
    if not path.is_file():
        raise UserError(f"{path}: no such config file")
    tree = read_yaml(path)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values, not {quote(tree)}")
    fit({key: value for key, value in tree.items() if key != "base"}, RunConfig, str(path))
    if all(tree.get("training", {}).get(name) is not None for name in LENGTHS):
        raise UserError(f"{path}: {_BOTH_LENGTHS}")
    return tree


def _over(base: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """One file's keys over another's, key by key in each group; one that says how long a run is replaces the other."""
    both = base | tree
    for name in GROUPS:
        if name in base and name in tree:
            lengths = any(tree[name].get(key) is not None for key in LENGTHS)
            below = {key: value for key, value in base[name].items() if not (lengths and key in LENGTHS)}
            both[name] = below | tree[name]
    return both


def _contradictions(config: RunConfig) -> Iterator[str]:
    """Settings that one by one are right but not together."""
    towers, training, evaluation = config.towers, config.training, config.evaluation
    trained = (towers.vision, towers.qformer, towers.llm)
    if set(trained) == {"frozen"}:
        yield "towers.vision, towers.qformer and towers.llm are frozen, so there is nothing to train; set one to full"
    if towers.lora_targets and "lora" not in trained:
        yield "towers.lora_targets picks layers for LoRA, but no tower is set to lora"
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
    """Put the settings that convert a file or folder of one's own, and train on it, into the group `data`."""
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
            raise UserError(f"unknown key {_shown(key)}; {did_you_mean(first, everything)}")
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
