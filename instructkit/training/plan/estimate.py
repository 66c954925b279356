"""`instructkit plan`: what a run will take, before a GPU is rented. Bytes are those of the model and of DeepSpeed.

Memory and operations are counted on the real model (`record.py`, `memory.py`). Times are operations over an
assumed speed and bytes over an assumed bandwidth; nothing here was measured on a device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from instructkit import sources
from instructkit.config.settings import RunConfig, TrainingConfig, dtype_of
from instructkit.errors import UserError
from instructkit.evaluation.select import wanted_benchmarks
from instructkit.models.instruct_blip import InstructBlip
from instructkit.models.towers import trained_and_frozen
from instructkit.prompts.protocols import VOCABULARY, Protocol
from instructkit.training.datasets import refuse_retrieval
from instructkit.training.deepspeed_config import merged_settings
from instructkit.training.length import planned_steps
from instructkit.training.plan.memory import RankMemory, Weights, ranks_memory, weights_of
from instructkit.training.plan.record import StepRecord, at_size, record_forward, record_step
from instructkit.training.plan.shapes import Lengths, model_on_shapes, rows_on_shapes

MODES = ((0, "none"), (1, "none"), (2, "none"), (2, "optimizer"), (3, "none"), (3, "optimizer"), (3, "parameters"))
"""ZeRO stages and what is offloaded."""

_GB = 1e9


class Assumed(NamedTuple):
    """Numbers that nothing here can know.

    Attributes:
        memory: of a GPU, GB (10^9 bytes).
        reserve: of it that CUDA, NCCL, kernels' workspaces and fragments take, GB.
        peak: operations a second of a GPU in bf16, TFLOP/s; H100 SXM, dense.
        peak_fp32: likewise in fp32.
        efficiency: share of the peak that training reaches.
        link: bytes a second between GPUs of a machine, each way and GPU, GB/s.
        network: bytes a second and GPU between machines, GB/s; rings run over all network cards of a machine.
        memory_bandwidth: of a GPU, GB/s; bounds generation, which reads all weights for each token.
        per_machine: GPUs of a machine.
        lengths: tokens of a row.
        candidate: tokens of a candidate that is ranked.
        questions: of a benchmark whose size no release states.
    """

    memory: float = 80.0
    reserve: float = 4.0
    peak: float = 989.0
    peak_fp32: float = 67.0
    efficiency: float = 0.35
    link: float = 300.0
    network: float = 25.0
    memory_bandwidth: float = 3350.0
    per_machine: int = 8
    lengths: Lengths = Lengths()
    candidate: int = 3
    questions: int = 5000


class Mode(NamedTuple):
    """A ZeRO stage with or without offloading.

    Attributes:
        stage: 0 to 3.
        offload: none, optimizer or parameters.
        chosen: it is the config's own.
        memory: of a rank.
        fits: whether that fits, with the reserve.
        largest: image groups of the largest micro-batch that fits; 0 for none.
    """

    stage: int
    offload: str
    chosen: bool
    memory: RankMemory
    fits: bool
    largest: int


class Scale(NamedTuple):
    """A step on so many GPUs, the global batch kept as long as every rank gets a group.

    Attributes:
        ranks: GPUs.
        batch: image groups a step, over all ranks.
        compute: seconds of a rank's operations.
        communication: seconds of its transfers.
        step: seconds in all.
        traffic: bytes that a rank sends.
        share: of computing in the step.
    """

    ranks: int
    batch: int
    compute: float
    communication: float
    step: float
    traffic: float
    share: float


class Benchmark(NamedTuple):
    """An evaluation: name, questions, whether their number is assumed, candidates or generated tokens, seconds."""

    name: str
    questions: int
    assumed: bool
    work: str
    seconds: float


class Plan(NamedTuple):
    """All that is known before a run; see `instructkit.training.plan.text` for the words.

    Attributes:
        name: the model.
        ranks: GPUs.
        groups: image groups a micro-batch.
        rows: examples a micro-batch.
        accumulation: micro-batches a step and rank.
        steps: of the run.
        towers: trained and frozen parameters.
        modes: memory by ZeRO stage.
        forward: operations of a rank's forward passes in a step.
        backward: of its backward passes.
        scales: steps on each number of GPUs that was asked for.
        ends: from so many GPUs on transfers take longer than computing; None where that is never so.
        checkpoint: bytes of one.
        checkpoints: bytes on disk at most, the one being written included.
        saved: bytes of the model that is saved.
        loading: bytes of a machine's memory while its ranks load the model.
        benchmarks: of the evaluation at the end.
        assumed: what the numbers rest on.
        notes: what is left out.
    """

    name: str
    ranks: int
    groups: int
    rows: int
    accumulation: int
    steps: int
    towers: dict[str, tuple[int, int]]
    modes: list[Mode]
    forward: int
    backward: int
    scales: list[Scale]
    ends: int | None
    checkpoint: int
    checkpoints: int
    saved: int
    loading: int
    benchmarks: list[Benchmark]
    assumed: Assumed
    notes: list[str]


def make_plan(config: RunConfig, ranks: list[int], assumed: Assumed | None = None, device: str = "cuda") -> Plan:
    """Plan a run.

    Args:
        config: of the run.
        ranks: numbers of GPUs; memory and checkpoints are those of the first.
        assumed: what cannot be known.
        device: "cuda", or "cpu" for a run without a GPU.

    Raises:
        UserError: the batch cannot be split over the ranks, or settings contradict each other.
    """
    config, length = planned_steps(config)
    assumed = _within_limits(assumed or Assumed(), config)
    training, first = config.training, ranks[0]
    groups = _groups(training, first)
    model = model_on_shapes(config)
    records = _Records(model, config, assumed.lengths, device, groups)
    modes, zero, weights = [], None, None
    for stage, offload in MODES:
        chosen = (stage, offload) == (training.zero_stage, training.offload)
        if stage == 3 and config.model.llm_bits is not None:
            continue
        settings = training if chosen else _other_mode(training, stage, offload)
        zero_settings = _zero(training, settings, model, first)
        counted = weights_of(model, settings, zero_settings, config.model.llm_bits)
        if chosen:
            zero, weights = zero_settings, counted
        modes.append(_mode(records, counted, settings, zero_settings, first, assumed, device, chosen, groups))
    if zero is None or weights is None:  # such as ZeRO 1 with offloading
        zero = _zero(training, training, model, first)
        weights = weights_of(model, training, zero, config.model.llm_bits)
        modes.append(_mode(records, weights, training, zero, first, assumed, device, True, groups))
    scales = [_scale(records, config, zero, weights, count, assumed) for count in ranks]
    record = records.at(groups)
    return Plan(
        name=config.model.base,
        ranks=first,
        groups=groups,
        rows=groups * config.data.group_size,
        accumulation=training.accumulation,
        steps=training.max_steps,
        towers=trained_and_frozen(model),
        modes=modes,
        forward=record.forward_flops * training.accumulation,
        backward=record.backward_flops * training.accumulation,
        scales=scales,
        ends=_ends(records, config, zero, weights, assumed),
        **_storage(config, model, weights, min(first, assumed.per_machine)),
        benchmarks=_benchmarks(config, model, first, assumed, device),
        assumed=assumed,
        notes=[*([length] if length else []), *_notes(config)],
    )


class _Records:
    """Micro-batches of every size, from two that were run."""

    def __init__(self, model: InstructBlip, config: RunConfig, lengths: Lengths, device: str, groups: int) -> None:
        # Packing treats a single row otherwise; two sizes of several rows lie on one line.
        self._sizes = (max(2, groups), 2 * max(2, groups))
        self._small, self._large = (
            record_step(model, rows_on_shapes(model, size, lengths, config.data.group_size), device)
            for size in self._sizes
        )

    def at(self, groups: float) -> StepRecord:
        """The record of so many image groups."""
        return at_size(self._small, self._large, self._sizes, groups)


def _mode(
    records: _Records,
    weights: Weights,
    settings: TrainingConfig,
    zero: DeepSpeedZeroConfig,
    ranks: int,
    assumed: Assumed,
    device: str,
    chosen: bool,
    groups: int,
) -> Mode:
    room = (assumed.memory - assumed.reserve) * _GB

    def memory(size: int) -> RankMemory:
        return ranks_memory(records.at(size), weights, settings, zero, ranks, device)

    largest, above = 0, 1
    while above <= 1 << 20 and memory(above).total <= room:
        largest, above = above, 2 * above
    while above - largest > 1:
        middle = (largest + above) // 2
        largest, above = (middle, above) if memory(middle).total <= room else (largest, middle)
    own = memory(groups)
    return Mode(settings.zero_stage, settings.offload, chosen, own, own.total <= room, largest)


def _scale(
    records: _Records, config: RunConfig, zero: DeepSpeedZeroConfig, weights: Weights, ranks: int, assumed: Assumed
) -> Scale:
    training = config.training
    groups = max(1.0, training.batch_size / (ranks * training.accumulation))
    record = records.at(groups)
    flops = (record.forward_flops + record.backward_flops) * training.accumulation
    compute = flops / _speed(training.precision == "bf16", assumed)
    traffic = _traffic(training, zero, weights, ranks)
    rings = assumed.link if ranks <= assumed.per_machine else min(assumed.link, assumed.network * assumed.per_machine)
    communication = traffic / (rings * _GB)
    step = max(compute, communication) if zero.overlap_comm else compute + communication
    batch = round(groups * ranks * training.accumulation)
    return Scale(ranks, batch, compute, communication, step, traffic, compute / step)


def _ends(
    records: _Records, config: RunConfig, zero: DeepSpeedZeroConfig, weights: Weights, assumed: Assumed
) -> int | None:
    """The first power of two at which a rank's transfers take longer than its operations."""
    counts = (1 << power for power in range(1, 15))
    scales = (_scale(records, config, zero, weights, count, assumed) for count in counts)
    return next((scale.ranks for scale in scales if scale.communication > scale.compute), None)


def _traffic(training: TrainingConfig, zero: DeepSpeedZeroConfig, weights: Weights, ranks: int) -> float:
    """Bytes that a rank sends in a step: rings of (ranks - 1) / ranks of a vector, twice for an all-reduce."""
    ring = (ranks - 1) / ranks
    trained = weights.trained * weights.bytes_each
    if training.zero_stage == 0:
        return 2 * ring * trained
    if training.zero_stage < 3:  # DeepSpeed all-reduces buckets that belong to several ranks, then gathers weights
        reductions = training.accumulation if training.zero_stage == 2 else 1
        return ring * trained * (2 * reductions + 1)
    whole = trained + weights.frozen_bytes - weights.small * weights.bytes_each
    kept = weights.total <= int(zero.max_reuse_distance)  # then the backward pass finds them still there
    gathered = whole if kept else whole + weights.backward * weights.bytes_each
    return ring * training.accumulation * (gathered + trained)


def _speed(half: bool, assumed: Assumed) -> float:
    """Operations a second that a GPU is assumed to reach."""
    return (assumed.peak if half else assumed.peak_fp32) * 1e12 * assumed.efficiency


def _groups(training: TrainingConfig, ranks: int) -> int:
    groups = training.batch_size // (ranks * training.accumulation)
    if groups * ranks * training.accumulation != training.batch_size:
        raise UserError(
            f"batch_size={training.batch_size} cannot be split over {ranks} GPUs and {training.accumulation} "
            f"micro-batches; make it a multiple of {ranks * training.accumulation}"
        )
    return groups


def _within_limits(assumed: Assumed, config: RunConfig) -> Assumed:
    """Lengths as the run would cut them."""
    instruction, answer, qformer = assumed.lengths
    cut = Lengths(
        min(instruction, config.data.instruction_tokens), min(answer, config.data.answer_tokens), min(qformer, 128)
    )
    return assumed._replace(lengths=cut)


def _other_mode(training: TrainingConfig, stage: int, offload: str) -> TrainingConfig:
    optimizer = training.optimizer if stage == 0 else "adamw"  # Muon needs whole matrices
    return msgspec.structs.replace(training, zero_stage=stage, offload=offload, optimizer=optimizer, deepspeed=None)


def _zero(own: TrainingConfig, settings: TrainingConfig, model: InstructBlip, ranks: int) -> DeepSpeedZeroConfig:
    """DeepSpeed's settings of a mode, with the bucket sizes and thresholds that the user's file states."""
    width = model.language_model.config.hidden_size
    with _as_ranks(ranks):
        tree = merged_settings(settings, width)["zero_optimization"]
        theirs = merged_settings(own, width)["zero_optimization"]
    sizes = {key: value for key, value in theirs.items() if key != "stage" and not key.startswith("offload")}
    return DeepSpeedZeroConfig(**{**sizes, **tree})


@contextmanager
def _as_ranks(ranks: int) -> Iterator[None]:
    """Within it settings are those of so many ranks, as a launcher would tell."""
    before = os.environ.get("WORLD_SIZE")
    os.environ["WORLD_SIZE"] = str(ranks)
    try:
        yield
    finally:
        if before is None:
            del os.environ["WORLD_SIZE"]
        else:
            os.environ["WORLD_SIZE"] = before


def _storage(config: RunConfig, model: InstructBlip, weights: Weights, local: int) -> dict[str, int]:
    """Bytes of checkpoints, of the saved model, and of a machine's memory while its ranks load."""
    training = config.training
    copies = training.zero_stage > 0 or training.precision == "bf16"  # of what AdamW steps on
    checkpoint = weights.trained * weights.bytes_each + 4 * (3 * weights.trained if copies else weights.moments)
    kept = training.keep_checkpoints + 1 + (1 if config.evaluation.every else 0)
    if not training.checkpoint_every and not config.evaluation.every:
        kept = 1
    towers = {config.towers.vision, config.towers.qformer, config.towers.llm}
    whole = (config.model.name == "nano" and not config.model.joined) or towers == {"full"}
    own = sum(weight.numel() for weight in model.parameters())
    return {
        "checkpoint": checkpoint,
        "checkpoints": checkpoint * kept,
        "saved": (own if whole else weights.trained) * weights.bytes_each,
        # Every rank reads the whole model into its own memory before DeepSpeed moves or shards it.
        "loading": local * (weights.trained * weights.bytes_each + weights.frozen_bytes),
    }


def _benchmarks(config: RunConfig, model: InstructBlip, ranks: int, assumed: Assumed, device: str) -> list[Benchmark]:
    if not config.evaluation.benchmarks:
        return []
    half = dtype_of(config) != "float32"
    llm = sum(weight.numel() for weight in model.language_model.parameters())
    rows = config.evaluation.eval_batch_size
    flops = {}
    found = []
    for wanted in wanted_benchmarks(config.evaluation.benchmarks):
        protocol = wanted.protocol
        refuse_retrieval(protocol)
        frames = protocol.frames if protocol.task.startswith("video") else 1
        if frames not in flops:
            inputs = rows_on_shapes(model, rows, assumed.lengths._replace(answer=1), frames=frames)
            flops[frames] = record_forward(model, inputs, device).forward_flops / rows
        published = sources.source(protocol.source).splits[protocol.split].published
        questions = min(published or assumed.questions, config.evaluation.limit or 10**9)
        work, tokens, passes = _answering(protocol, assumed)
        speed = _speed(half, assumed)
        each = (flops[frames] + 2 * llm * tokens) / speed
        # Each generated token waits for all weights of the LLM, once a batch.
        waiting = passes * llm * (2 if half else 4) / (assumed.memory_bandwidth * _GB) / rows
        found.append(
            Benchmark(protocol.benchmark, questions, published is None, work, questions * max(each, waiting) / ranks)
        )
    return found


def _answering(protocol: Protocol, assumed: Assumed) -> tuple[str, int, int]:
    """What an answer takes, in words; tokens that the LLM computes for it; passes that read its weights again."""
    if protocol.mode == "generate":
        beams, new = protocol.decoding.num_beams, protocol.decoding.max_new_tokens
        return f"at most {new} tokens, {beams} beams", beams * new, new
    if isinstance(protocol.candidates, list):
        count = sum(1 if isinstance(each, str) else len(each) for each in protocol.candidates)
        words = f"{count} candidates"
    elif protocol.candidates == VOCABULARY:
        top = protocol.vocabulary.top if protocol.vocabulary else None
        count, words = top or 2000, f"{top:,} candidates" if top else "2,000 candidates (assumed)"
    else:
        count = 100 if protocol.task == "visual_dialog" else 4
        words = f"{count} candidates (assumed)"
    return words, count * assumed.candidate, 1


def _notes(config: RunConfig) -> list[str]:
    notes = []
    if config.training.compile:
        notes.append("training.compile=true: kernels that fuse operations need less than is counted here")
    if config.throughput.feature_cache:
        notes.append("throughput.feature_cache: counted as if empty; kept features save the image encoder's operations")
    if config.model.llm_bits:
        notes.append(f"model.llm_bits={config.model.llm_bits}: ZeRO 3 is left out, which does not shard such weights")
    return notes
