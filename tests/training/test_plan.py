"""`instructkit plan` against what PyTorch's allocator reports of real steps, and against itself."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from instructkit.cli import app
from instructkit.config.read import find_config, load_config
from instructkit.config.settings import RunConfig
from instructkit.errors import UserError
from instructkit.models.load.join import join
from instructkit.models.load.presets import build
from instructkit.models.save import save_model
from instructkit.models.towers import prepare_towers
from instructkit.training.plan.estimate import Assumed, Mode, Plan, make_plan
from instructkit.training.plan.record import at_size, record_step
from instructkit.training.plan.shapes import Lengths, model_on_shapes, rows_on_shapes, shape_of
from tests.models.checkpoints import write_bert, write_blip2, write_encoder, write_instructblip, write_llm
from tests.tiny import tiny_config, tiny_model
from tests.training.mini import launch

SHAPES = {
    "nano": ["model.name=nano"],
    "lora": ["model.name=nano", "towers.vision=frozen", "towers.llm=lora"],
    "t5": ["towers.vision=frozen", "towers.llm=frozen"],
}
STAGES = (0, 2, 3)
SMALL_BUCKETS = {"zero_optimization": {"reduce_bucket_size": 200_000, "allgather_bucket_size": 200_000}}
"""DeepSpeed's own buckets, 2 GB each in fp32, would hide everything else of so small a model."""


def cases(folder: Path) -> dict[str, list[str]]:
    """Settings of every case; ZeRO 3 comes last, as it replaces torch's linear layer for the whole process."""
    file = folder / "ds.json"
    file.write_text(json.dumps(SMALL_BUCKETS))
    common = [f"data.root={folder}", "batch_size=16", f"deepspeed={file}"]
    wide = {"t5": [f"model.name={wide_t5(folder)}"]}
    found = {
        f"{shape}-zero{stage}-{precision}": [
            *words,
            *wide.get(shape, []),
            *common,
            f"zero_stage={stage}",
            f"precision={precision}",
        ]
        for stage in STAGES
        for shape, words in SHAPES.items()
        for precision in ("fp32", "bf16")
        if precision == "fp32" or shape == "nano"
    }
    found["nano-zero2-two"] = [*found["nano-zero2-fp32"], "accumulation=2"]
    found["nano-zero0-recomputed"] = [*found["nano-zero0-fp32"], "activation_checkpointing=true"]
    return dict(sorted(found.items(), key=lambda case: "zero3" in case[0]))


def wide_t5(folder: Path) -> Path:
    """A T5 model of nano's size on disk: configuration alone, as the weights are drawn anew."""
    config = tiny_config("t5", 1024, 1024)
    for part, width, wider in ((config.vision_config, 128, 512), (config.qformer_config, 128, 512)):
        part.hidden_size, part.intermediate_size = width, wider
    config.vision_config.image_size = 64
    config.qformer_config.encoder_hidden_size = 128
    config.text_config.d_model, config.text_config.d_kv, config.text_config.d_ff = 128, 32, 384
    place = folder / "wide_t5"
    config.save_pretrained(place)
    return place


def planned_over_allocated(folder: Path, names: list[str]) -> dict[str, float]:
    """How the planned peak of some cases, all where none is named, compares with that of two ranks that train."""
    runs = {name: words for name, words in cases(folder).items() if name in names or not names}
    (folder / "cases.json").write_text(json.dumps(runs))
    said = launch(2, Path(__file__).with_name("allocated.py"), [str(folder / "cases.json")], timeout=1200)
    line = next(line for line in said.splitlines() if line.startswith("RESULT "))
    found = json.loads(line.removeprefix("RESULT "))
    mini = Path(__file__).with_name("mini.yaml")
    return {
        name: chosen(make_plan(load_config(mini, words), [2], device="cpu")).memory.total / found[name]
        for name, words in runs.items()
    }


def chosen(plan: Plan) -> Mode:
    return next(mode for mode in plan.modes if mode.chosen)


def test_planned_memory_is_what_two_ranks_allocate(tmp_path):
    off = planned_over_allocated(tmp_path, ["lora-zero0-fp32", "t5-zero2-fp32", "nano-zero3-fp32"])
    assert len(off) == 3
    assert {name: ratio for name, ratio in off.items() if not 0.85 <= ratio <= 1.15} == {}


@pytest.mark.full
def test_planned_memory_is_what_two_ranks_allocate_in_every_shape_and_stage(tmp_path):
    off = planned_over_allocated(tmp_path, [])
    assert len(off) == 14
    assert {name: ratio for name, ratio in off.items() if not 0.85 <= ratio <= 1.15} == {}


def config(*words: str, name: str = "vicuna_7b") -> RunConfig:
    return load_config(find_config(name), words)


MINI = ("model.name=nano", "evaluation.benchmarks=[]", "zero_stage=2", "towers.llm=frozen", "precision=bf16")


@pytest.fixture(scope="module")
def base() -> Plan:
    return make_plan(config(*MINI, "batch_size=32"), [2])


def test_a_larger_micro_batch_needs_more_activations_and_operations(base):
    larger = make_plan(config(*MINI, "batch_size=64"), [2])
    assert chosen(larger).memory.activations > 1.8 * chosen(base).memory.activations
    assert larger.forward == pytest.approx(2 * base.forward, rel=0.01)
    split = make_plan(config(*MINI, "batch_size=64", "accumulation=2"), [2])
    assert chosen(split).memory.activations == chosen(base).memory.activations
    assert split.forward == pytest.approx(larger.forward, rel=0.01)


def test_stages_and_offloading_take_from_the_gpu_what_they_should(base):
    modes = {(mode.stage, mode.offload): mode.memory for mode in base.modes}
    assert modes[0, "none"].optimizer == pytest.approx(2 * modes[1, "none"].optimizer, rel=0.01)
    assert modes[2, "none"].gradients <= modes[1, "none"].gradients
    assert modes[2, "optimizer"].optimizer == 0 < modes[2, "optimizer"].host
    assert modes[3, "none"].optimizer == modes[2, "none"].optimizer
    assert modes[3, "parameters"].weights < modes[3, "none"].weights
    assert modes[3, "parameters"].host > modes[3, "optimizer"].host


def test_what_costs_less_memory_costs_less_in_the_plan(base):
    lora = make_plan(config(*MINI, "batch_size=32", "towers.llm=lora"), [2])
    full = make_plan(config(*MINI, "batch_size=32", "towers.llm=full"), [2])
    assert chosen(base).memory.optimizer < chosen(lora).memory.optimizer < chosen(full).memory.optimizer
    assert lora.checkpoint < full.checkpoint
    again = make_plan(config(*MINI, "batch_size=32", "activation_checkpointing=true"), [2])
    assert chosen(again).memory.activations < chosen(base).memory.activations
    assert again.backward > base.backward
    assert chosen(make_plan(config(*MINI, "batch_size=32"), [4])).memory.optimizer < chosen(base).memory.optimizer
    bits = make_plan(config(*MINI, "batch_size=32", "llm_bits=4"), [2])
    assert chosen(bits).memory.weights < chosen(base).memory.weights
    assert all(mode.stage < 3 for mode in bits.modes)


def test_the_largest_micro_batch_fits_and_one_more_does_not(base):
    assumed = Assumed(memory=1.5, reserve=0.0)
    largest = chosen(make_plan(config(*MINI, "batch_size=32"), [2], assumed)).largest
    for groups, fits in ((largest, True), (largest + 1, False)):
        mode = chosen(make_plan(config(*MINI, f"batch_size={2 * groups}"), [2], assumed))
        assert mode.fits == fits


@pytest.mark.parametrize("llm", ["llama", "t5"])
def test_a_micro_batch_between_two_that_were_run_is_on_their_line(llm, tmp_path):
    model, texts = tiny_model(llm)
    save_model(model, texts, tmp_path)
    shapes = model_on_shapes(config(f"model.name={tmp_path}"))
    records = {size: record_step(shapes, rows_on_shapes(shapes, size, Lengths(9, 5, 7)), "cpu") for size in (4, 8, 11)}
    found = at_size(records[4], records[8], (4, 8), 11)
    assert found.forward_flops == records[11].forward_flops
    assert found.moments.sum(1).max() == pytest.approx(records[11].moments.sum(1).max(), rel=0.01)


def test_operations_are_those_that_pytorch_counts_on_real_tensors():
    settings = config("model.name=nano", "precision=fp32")
    shapes = model_on_shapes(settings)
    planned = record_step(shapes, rows_on_shapes(shapes, 3, Lengths(9, 5, 7)), "cuda")
    model = build(shape_of(settings.model))
    prepare_towers(model, settings.towers)
    inputs = rows_on_shapes(model, 3, Lengths(9, 5, 7))
    inputs["pixel_values"] = torch.randn(inputs["pixel_values"].shape)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.answer_loss(**inputs).total.backward()
    total = planned.forward_flops + planned.backward_flops
    assert total == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_transfers_end_the_scaling_and_a_faster_network_moves_that():
    slow, fast = (
        make_plan(config("evaluation.benchmarks=[]", "zero_stage=2", *MINI[:1]), [8, 64, 512], Assumed(network=speed))
        for speed in (1.0, 1000.0)
    )
    assert [scale.ranks for scale in slow.scales] == [8, 64, 512]
    assert slow.scales[2].communication > fast.scales[2].communication
    assert slow.scales[0].traffic == pytest.approx(fast.scales[0].traffic)
    assert slow.scales[2].share < slow.scales[0].share
    # An all-reduce and a gathering of what is trained: three rings of 7/8 of its bytes.
    trained = sum(first for first, _ in slow.towers.values())
    assert slow.scales[0].traffic == pytest.approx(3 * 7 / 8 * trained * 2)


def marks_what_is_assumed(output: str) -> None:
    lines = [
        line
        for line in output.splitlines()
        if any(word in line for word in ("steps", "speeds", "Evaluation,", "transfers take"))
    ]
    assert len(lines) > 2
    for line in lines:
        assert "assumed" in line, line


def test_the_command_marks_what_is_assumed():
    done = CliRunner().invoke(app, ["plan", "--config", "easy_vqa", "--gpus", "8,512", "--memory", "80"])
    assert done.exit_code == 0, done.output
    marks_what_is_assumed(done.output)


@pytest.mark.full
def test_the_command_plans_13b_without_a_gpu_and_marks_what_is_assumed():
    began = time.process_time()
    done = CliRunner().invoke(app, ["plan", "--config", "vicuna_13b", "--gpus", "8,512", "--memory", "80"])
    assert done.exit_code == 0, done.output
    assert time.process_time() - began < 60
    assert "13,015,874,560" in done.output
    assert "3 *   none" in done.output
    marks_what_is_assumed(done.output)
    lines = done.output.splitlines()
    assert all(option in done.output for option in ("--peak ", "--efficiency", "--network", "--link"))
    assert any(line.startswith("msrvtt_qa") for line in lines)


def test_the_plan_as_json_has_the_same_numbers():
    words = ["plan", "--config", "easy_vqa", "--gpus", "2", "--device", "cpu", "batch_size=16", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    mine = make_plan(config("batch_size=16", name="easy_vqa"), [2], device="cpu")
    assert plan["forward"] == mine.forward
    assert [mode["memory"]["activations"] for mode in plan["modes"]] == [mode.memory.activations for mode in mine.modes]


@pytest.mark.parametrize(
    ("vision", "qformer", "llm"),
    [("clip", "bert", "qwen2"), ("siglip", "blip2", "gpt2"), ("resnet", None, "t5"), (None, "bert", None)],
)
def test_a_joined_models_shapes_are_those_of_the_model_that_is_loaded(vision, qformer, llm, tmp_path):
    base = write_instructblip(tmp_path / "blip")
    words = [f"model.name={base}"]
    if vision:
        words.append(f"model.vision={write_encoder(tmp_path / 'vision', vision)}")
    if qformer:
        words.append(f"model.qformer={(write_bert if qformer == 'bert' else write_blip2)(tmp_path / 'qformer')}")
    if llm:
        words.append(f"model.llm={write_llm(tmp_path / 'llm', llm)}")
    settings = config(*words, "precision=fp32", "evaluation.benchmarks=[]", "zero_stage=2")
    loaded, _ = join(settings.model, torch.float32, lambda: None)
    planned = model_on_shapes(settings)
    assert {name: weight.shape for name, weight in planned.named_parameters()} == {
        name: weight.shape for name, weight in loaded.named_parameters()
    }
    assert chosen(make_plan(settings, [2])).memory.activations > 0


def test_mistakes_are_told_in_one_line():
    with pytest.raises(UserError, match="batch_size=10 cannot be split over 4 GPUs"):
        make_plan(config(*MINI, "batch_size=10"), [4])
    with pytest.raises(UserError, match="no such config"):
        find_config("vicuna_99b")
