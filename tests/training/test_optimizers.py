"""Muon against PyTorch's own, against the decomposition that it stands for, and where it is refused."""

import pytest
import torch

from instructkit.config.settings import TowersConfig, TrainingConfig
from instructkit.errors import UserError
from instructkit.models.towers import prepare_towers
from instructkit.training.deepspeed_config import users_settings
from instructkit.training.optimizers import Muon, build_optimizer, optimizer_name, orthogonalize, parameter_groups
from tests.tiny import tiny_model


@pytest.mark.parametrize("shape", [(5, 24, 40), (3, 40, 24), (2, 16, 16)])
def test_orthogonalizing_keeps_the_singular_vectors_and_evens_the_values_out(shape):
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    rotated = left.mT @ orthogonalize(matrices) @ right.mT
    even = rotated.diagonal(dim1=-2, dim2=-1)
    assert even[values > 0.018 * matrices.norm(dim=(-2, -1))[:, None]].min() > 0.68
    assert even.max() < 1.21
    torch.testing.assert_close(rotated, torch.diag_embed(even), atol=1e-4, rtol=0)


def test_steps_are_those_of_pytorchs_muon_up_to_its_bfloat16():
    shapes = [(24, 40), (40, 24), (24, 40)]
    draw = torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    start = [parameter.detach().clone() for parameter in ours]
    muon = Muon([{"params": ours, "orthogonal": True}], lr=0.01, weight_decay=0.1)
    torchs = torch.optim.Muon(
        theirs, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw", ns_steps=3
    )
    for _ in range(6):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=draw)
            other.grad = mine.grad.clone()
        muon.step()
        torchs.step()
    for mine, other, first in zip(ours, theirs, start, strict=True):
        assert (mine - other).abs().max() < 0.02 * (mine - first).abs().max()


def test_what_is_no_matrix_steps_as_under_adamw_and_a_loaded_state_goes_on_alike():
    model, _ = tiny_model()
    config = TrainingConfig(optimizer="muon", learning_rate=0.01)
    groups = parameter_groups(model, config)
    matrices = {id(p) for group in groups if group.get("orthogonal") for p in group["params"]}
    named = dict(model.named_parameters())
    assert id(named["language_projection.weight"]) in matrices
    for name in ("query_tokens", "language_model.lm_head.weight", "qformer.embeddings.word_embeddings.weight"):
        assert id(named[name]) not in matrices
    twin, _ = tiny_model()
    twin.load_state_dict(model.state_dict())
    muon = build_optimizer(model, config)
    adamw = build_optimizer(twin, TrainingConfig(learning_rate=0.01))
    for _ in range(2):
        for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
            parameter.grad = torch.randn_like(parameter)
            other.grad = parameter.grad.clone()
        saved = muon.state_dict()
        muon.step()
        adamw.step()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, other) == (id(parameter) not in matrices), name
    again = build_optimizer(model, config)
    again.load_state_dict(saved)
    assert [group.get("orthogonal") for group in again.param_groups] == [g.get("orthogonal") for g in groups]
    parameter = named["language_projection.weight"]
    assert torch.equal(again.state[parameter]["exp_avg"], saved["state"][_index(muon, parameter)]["exp_avg"])


@pytest.mark.parametrize("settings", [{"zero_stage": stage} for stage in (1, 2, 3)] + [{"precision": "bf16"}])
def test_muon_is_refused_where_matrices_are_cut_up(settings):
    config = TrainingConfig(optimizer="muon", **settings)
    (name, value), *_ = settings.items()
    for ask in (
        lambda: optimizer_name(config),
        lambda: build_optimizer(torch.nn.Linear(2, 2), config),
        lambda: users_settings(config),  # before any model is loaded
    ):
        with pytest.raises(UserError, match=rf"optimizer=muon cannot be used with training\.{name}={value}"):
            ask()
    assert type(build_optimizer(torch.nn.Linear(2, 2), TrainingConfig(**settings))) is torch.optim.AdamW
    assert type(build_optimizer(torch.nn.Linear(2, 2), TrainingConfig(optimizer="muon"))) is Muon


def _index(optimizer, parameter):
    return [id(p) for group in optimizer.param_groups for p in group["params"]].index(id(parameter))


def scales_of(config, **towers):
    """What each trained parameter's learning rate is multiplied by, read off the optimizer's groups."""
    model, _ = tiny_model()
    prepare_towers(model, TowersConfig(**towers))
    groups = build_optimizer(model, config).param_groups
    found = {id(parameter): group.get("scale", 1.0) for group in groups for parameter in group["params"]}
    return {name: found[id(parameter)] for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_each_tower_has_its_own_rate():
    config = TrainingConfig(learning_rate=1e-4, rates={"vision": 1e-5, "llm": 5e-5})
    scales = scales_of(config, vision="full", qformer="full", llm="lora")
    for name, scale in scales.items():
        with_qformer = not name.startswith(("vision_model.", "language_model.")) or "post_layernorm" in name
        expected = 1.0 if with_qformer else 0.1 if name.startswith("vision_model.") else 0.5
        assert scale == pytest.approx(expected), name
    assert len(set(scales.values())) == 3
    assert set(scales_of(TrainingConfig(), vision="full").values()) == {1.0}


def test_rates_fall_layer_by_layer_from_the_image_encoders_end():
    """As LAVIS scales them: the last of two layers once, the first twice, the embeddings three times."""
    config = TrainingConfig(learning_rate=1e-4, layer_decay=0.5, rates={"vision": 2e-4})
    scales = scales_of(config, vision="full", qformer="full")
    expected = {"embeddings.": 0.25, "encoder.layers.0.": 0.5, "encoder.layers.1.": 1.0, "post_layernorm.": 1.0}
    for name, scale in scales.items():
        if name.startswith("vision_model."):
            (wanted,) = (each for stem, each in expected.items() if name.startswith(f"vision_model.{stem}"))
            assert scale == pytest.approx(wanted), name
        else:
            assert scale == 1.0
    lora = scales_of(config, vision="lora", qformer="full")
    assert {round(scale, 4) for name, scale in lora.items() if ".lora_" in name} == {0.5, 1.0}


def test_an_encoder_without_layers_has_no_layer_decay():
    with pytest.raises(UserError, match=r"training\.layer_decay: this image encoder is no row of layers"):
        parameter_groups(torch.nn.Linear(2, 2), TrainingConfig(layer_decay=0.9))
