"""Muon against PyTorch's own, against the decomposition that it stands for, and where it is refused."""

import pytest
import torch

from instructkit.config import TrainingConfig
from instructkit.errors import UserError
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
