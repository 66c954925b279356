"""A plan in words and tables."""

from __future__ import annotations

from instructkit.conversion.catalogue import table
from instructkit.training.plan.estimate import Assumed, Mode, Plan, Scale

_GB = 1e9


def plan_text(plan: Plan) -> str:
    """What `instructkit plan` prints."""
    parts = [_head(plan), _towers(plan), _memory(plan), _time(plan), _scaling(plan), _storage(plan), _evaluation(plan)]
    return "\n\n".join([*parts, _assumptions(plan.assumed), *plan.notes])


def _head(plan: Plan) -> str:
    return (
        f"{plan.name} on {plan.ranks} GPU{'s' if plan.ranks > 1 else ''}: {plan.groups} image groups, {plan.rows} "
        f"examples a micro-batch and GPU, {plan.accumulation} micro-batch{'es' if plan.accumulation > 1 else ''} a step"
    )


def _towers(plan: Plan) -> str:
    rows = [("tower", "trained", "frozen")]
    rows += [(name, f"{trained:,}", f"{frozen:,}") for name, (trained, frozen) in plan.towers.items()]
    return table(rows, right=[1, 2])


def _memory(plan: Plan) -> str:
    heads = [
        "ZeRO",
        "offload",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "buckets",
        "total",
        "peak in",
        "fits",
        "micro-batch",
        "host",
    ]
    rows = [tuple(heads)]
    rows += [_mode(mode) for mode in plan.modes]
    room = plan.assumed.memory - plan.assumed.reserve
    return (
        f"Memory of a GPU at the peak of a step, GB (10^9 bytes); * is the config's own. It fits up to {room:g} GB; "
        "micro-batch is the\nlargest that fits, in image groups; host is the CPU's memory a GPU\n\n"
        + table(rows, right=range(2, len(heads)))
    )


def _mode(mode: Mode) -> tuple[str, ...]:
    memory = mode.memory
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.logits, memory.buckets)
    return (
        f"{mode.stage}{' *' if mode.chosen else ''}",
        mode.offload,
        *(_gb(part) for part in (*parts, memory.total)),
        memory.peak,
        "yes" if mode.fits else "no",
        f"{mode.largest:,}" if mode.largest else "none",
        _gb(memory.host),
    )


def _time(plan: Plan) -> str:
    scale = plan.scales[0]
    days = scale.step * plan.steps / 86_400
    return (
        f"A step computes {_flops(plan.forward)} forward and {_flops(plan.backward)} backward a GPU: "
        f"{_seconds(scale.step)} (assumed), {plan.steps:,} steps {_days(days)} (assumed)"
    )


def _scaling(plan: Plan) -> str:
    rows: list[tuple[str, ...]] = [
        ("GPUs", "batch", "computing", "transfers", "GB sent", "step", "groups/s", "computing share", "run")
    ]
    rows += [_scale(scale, plan.steps) for scale in plan.scales]
    end = "Transfers never take longer than computing on up to 16,384 GPUs"
    if plan.ends is not None:
        end = f"From {plan.ends:,} GPUs on transfers take longer than computing: there scaling ends"
    return f"Scaling (assumed speeds)\n\n{table(rows, right=range(len(rows[0])))}\n\n{end} (assumed)"


def _scale(scale: Scale, steps: int) -> tuple[str, ...]:
    return (
        f"{scale.ranks:,}",
        f"{scale.batch:,}",
        _seconds(scale.compute),
        _seconds(scale.communication),
        _gb(scale.traffic),
        _seconds(scale.step),
        f"{scale.batch / scale.step:,.0f}",
        f"{scale.share:.0%}",
        _days(scale.step * steps / 86_400),
    )


def _storage(plan: Plan) -> str:
    return (
        f"Disk      a checkpoint {_gb(plan.checkpoint)} GB, all at once {_gb(plan.checkpoints)} GB; the model that is "
        f"saved {_gb(plan.saved)} GB\nLoading   {_gb(plan.loading)} GB of a machine's memory: each of its ranks reads "
        "the whole model"
    )


def _evaluation(plan: Plan) -> str:
    if not plan.benchmarks:
        return "Evaluation: no benchmarks"
    rows = [("benchmark", "questions", "an answer takes", "time (assumed)")]
    rows += [
        (each.name, f"{each.questions:,}{' (assumed)' if each.assumed else ''}", each.work, _seconds(each.seconds))
        for each in plan.benchmarks
    ]
    total = sum(each.seconds for each in plan.benchmarks)
    return f"Evaluation, {_seconds(total)} in all (assumed)\n\n{table(rows, right=[1, 3])}"


def _assumptions(assumed: Assumed) -> str:
    lengths = assumed.lengths
    values = [
        ("--memory", f"{assumed.memory:g} GB a GPU"),
        ("--reserve", f"{assumed.reserve:g} GB of it for CUDA, NCCL, workspaces and fragments"),
        ("--peak", f"{assumed.peak:g} TFLOP/s in bf16 (H100 SXM, dense)"),
        ("--peak-fp32", f"{assumed.peak_fp32:g} TFLOP/s in fp32"),
        ("--efficiency", f"{assumed.efficiency:g} of the peak is reached"),
        ("--link", f"{assumed.link:g} GB/s a GPU inside a machine"),
        ("--network", f"{assumed.network:g} GB/s a GPU between machines of {assumed.per_machine} GPUs"),
        ("--memory-bandwidth", f"{assumed.memory_bandwidth:g} GB/s"),
        ("--instruction", f"{lengths.instruction} tokens for the LLM, {lengths.qformer} for the Q-Former"),
        ("--answer", f"{lengths.answer} tokens; in evaluations {assumed.candidate} a candidate"),
    ]
    return "Assumed (options change it)\n" + "\n".join(f"  {name:<19} {value}" for name, value in values)


def _gb(size: float) -> str:
    value = size / _GB
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.01 or not value else f"{value:.4f}"


def _flops(count: float) -> str:
    return f"{count / 1e12:,.2f} TFLOP" if count >= 1e10 else f"{count / 1e9:.3f} GFLOP"


def _seconds(value: float) -> str:
    if value >= 7200:
        return f"{value / 3600:,.1f} h"
    if value >= 120:
        return f"{value / 60:.1f} min"
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.2f} ms"


def _days(days: float) -> str:
    return f"{days:,.1f} days" if days >= 1 else _seconds(days * 86_400)
