"""A user's own DeepSpeed file: what it adds reaches DeepSpeed, what it contradicts is said, "auto" is filled in."""

from __future__ import annotations

import json

import pytest

from instructkit.config.settings import TrainingConfig
from instructkit.errors import UserError
from instructkit.training.deepspeed_config import deepspeed_settings, offloads_optimizer

RUN = {"max_steps": 500, "batch_size": 32, "accumulation": 4, "warmup_steps": 50, "learning_rate": 1e-4}

# As people have it for transformers' Trainer (the file that its documentation gives for ZeRO 3 with offloading).
TRAINER = {
    "fp16": {"enabled": False, "loss_scale": 0},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": "auto", "warmup_num_steps": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "steps_per_print": 2000,
}


@pytest.fixture
def settings(tmp_path):
    def settle(file, **run):
        path = tmp_path / "ds.json"
        path.write_text(file if isinstance(file, str) else json.dumps(file))
        return deepspeed_settings(TrainingConfig(**{**RUN, **run}, deepspeed=str(path)), 64)

    return settle


def test_auto_takes_over_the_runs_settings_and_the_files_own_keys_stay(settings):
    merged = settings(TRAINER, zero_stage=3, precision="bf16")
    assert merged == {
        "train_batch_size": 32,
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 1.0,
        "fp16": {"enabled": False, "loss_scale": 0},
        "bf16": {"enabled": True},
        "zero_optimization": {
            **TRAINER["zero_optimization"],
            "reduce_bucket_size": 4096,
            "stage3_prefetch_bucket_size": 3686,
            "stage3_param_persistence_threshold": 640,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2000,
        "wall_clock_breakdown": False,
    }
    assert offloads_optimizer(merged)


def test_a_file_that_says_the_same_as_the_run_is_no_contradiction(settings):
    ratios = {"warmup_min_ratio": 1e-4, "cos_min_ratio": 0.0, "warmup_type": "linear"}
    same = {
        "gradient_accumulation_steps": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.0001, "betas": [0.9, 0.999], "weight_decay": 0.05}},
        "scheduler": {"type": "WarmupCosineLR", "params": ratios},
    }
    merged = settings(same)
    assert "optimizer" not in merged
    assert "scheduler" not in merged
    assert not offloads_optimizer(merged)


@pytest.mark.parametrize(
    ("file", "run", "message"),
    [
        ({"gradient_accumulation_steps": 2}, {}, "gradient_accumulation_steps = 2, but training.accumulation = 4"),
        ({"gradient_clipping": 0.5}, {}, "gradient_clipping = 0.5, but training.gradient_clipping = 1.0"),
        ({"bf16": {"enabled": True}}, {}, "bf16.enabled = true, but training.precision = fp32"),
        (
            {"fp16": {"enabled": True}},
            {},
            "fp16.enabled = true, but .* = fp32, .* no run computes in fp16",
        ),
        ({"fp16": {"enabled": True}}, {"precision": "bf16"}, "true, but training.precision = bf16, .* no run .* fp16"),
        ({"amp": {"enabled": True}}, {}, "amp.enabled = true, but .* no run computes in fp16"),
        ({"fp16": True}, {}, "DeepSpeed does not take it"),
        ({"optimizer": "AdamW"}, {}, 'optimizer = "AdamW", which is no object'),
        ({"scheduler": ["WarmupLR"]}, {}, "scheduler = .* which is no object"),
        ({"train_batch_size": 64}, {}, "train_batch_size = 64, but training.batch_size = 32"),
        ({"train_micro_batch_size_per_gpu": 4}, {}, "gpu = 4, but training.batch_size = 32 over 1 rank and .* is 8"),
        ({"zero_optimization": {"stage": 2}}, {}, "zero_optimization.stage = 2, but training.zero_stage = 0"),
        ({"optimizer": {"type": "Lion"}}, {}, 'optimizer.type = "Lion", but the run\'s optimizer is AdamW'),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}}, {}, "lr = 0.1, but training.learning_rate = 0.0001"),
        ({"optimizer": {"type": "AdamW", "params": {"amsgrad": True}}}, {}, "amsgrad = true, but .* no such setting"),
        ({"scheduler": {"type": "WarmupLR"}}, {}, 'scheduler.type = "WarmupLR", but the run\'s schedule is a warm-up'),
        (
            {"zero_optimization": {"offload_param": {"device": "cpu"}}},
            {"zero_stage": 2},
            "ds.json needs .*zero_stage=3",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "none"}}},
            {"zero_stage": 2, "offload": "optimizer"},
            'device = "none", but training.offload=optimizer',
        ),
        ({"zero_optimization": {"sub_group_size": "auto"}}, {}, 'sub_group_size = "auto", but nothing in a run says'),
        ({"zero_optimization": {"stages": 0}}, {}, "DeepSpeed does not take it .*stages"),
        ({"zero_optimization": {"overlap_comm": "often"}}, {}, "DeepSpeed does not take it .*overlap_comm"),
        ({"bf16": True}, {}, "DeepSpeed does not take it"),
        ('{"bf16": ', {}, "ds.json: no DeepSpeed configuration can be read from it"),
        ('{"bf16": {}, "bf16": {}}', {}, "Duplicate keys"),
        ("[1]", {}, "is a JSON object"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(settings, file, run, message):
    with pytest.raises(UserError, match=message) as caught:
        settings(file, **run)
    assert "ds.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"training\.deepspeed=.*none\.json: No such file"):
        deepspeed_settings(TrainingConfig(deepspeed=str(tmp_path / "none.json")), 64)


def test_offloading_needs_a_stage_that_has_it():
    for offload, stage, least in (("optimizer", 0, "1 or more"), ("parameters", 2, "3")):
        with pytest.raises(
            UserError, match=f"training.offload={offload} needs training.zero_stage={least}, .* {stage}"
        ):
            deepspeed_settings(TrainingConfig(offload=offload, zero_stage=stage), 64)
    merged = deepspeed_settings(TrainingConfig(offload="optimizer", zero_stage=1), 64)
    assert merged["zero_optimization"] == {"stage": 1, "offload_optimizer": {"device": "cpu"}}
    merged = deepspeed_settings(TrainingConfig(offload="parameters", zero_stage=3), 64)
    assert merged["zero_optimization"]["offload_param"] == {"device": "cpu"}
    assert offloads_optimizer(merged)
