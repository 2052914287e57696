"""Muon and AdamW as one: who gets what, and checkpoints."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR

from mlpot.models.potential import Potential
from mlpot.train.optimizer import hidden_matrices, make_optimizer
from tests.helpers import random_potential


def gradients(model: nn.Module, step: int) -> None:
    rng = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=rng, dtype=torch.float32).to(p.dtype)


def run(model: nn.Module, optimizer: Any, steps: range) -> list[torch.Tensor]:
    for step in steps:
        gradients(model, step)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def test_matrices_are_muons_and_the_rest_is_adamws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # what torch's iterates in
    model, twin = random_potential(), random_potential()
    got = run(model, make_optimizer(model, "muon", 1e-3, 0.01), range(3))

    names = {id(p): n for n, p in twin.named_parameters()}
    matrices = hidden_matrices(twin)
    told = {names[id(p)] for p in matrices}
    assert "backbone.layers.1.qkv.weight" in told and "backbone.radial.weight" in told
    assert not {"backbone.embedding.weight", "head.result.weight", "head.hidden.bias"} & told
    others = [p for n, p in twin.named_parameters() if n not in told]
    muon = Muon(matrices, lr=1e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adam = AdamW(others, lr=1e-3, weight_decay=0.01)
    for step in range(3):
        gradients(twin, step)
        muon.step()
        adam.step()
    for (name, expected), p in zip(twin.named_parameters(), got, strict=True):
        assert torch.allclose(p, expected, rtol=0, atol=1e-6 if name in told else 0), name


def test_steps_are_orthogonal_whatever_the_shape() -> None:
    model = nn.Sequential(nn.Linear(8, 20), nn.Linear(8, 20), nn.Linear(20, 8)).double()
    before = [p.detach().clone() for p in model.parameters()]
    gradients(model, 0)
    make_optimizer(model, "muon", 1e-3, 0.0).step()
    for old, new in zip(before, model.parameters(), strict=True):
        if old.ndim == 2:
            values = torch.linalg.svdvals((old - new) / (1e-3 * 0.2 * 20**0.5))
            assert values.min() > 0.6 and values.max() < 1.3  # what five iterations give


def test_a_checkpoint_goes_on_exactly() -> None:
    def fresh() -> tuple[Potential, Any, LambdaLR]:
        model = random_potential()
        optimizer = make_optimizer(model, "muon", 1e-3, 0.01)
        return model, optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def go(model: Potential, optimizer: Any, schedule: LambdaLR, steps: range) -> None:
        for step in steps:
            run(model, optimizer, range(step, step + 1))
            schedule.step()

    whole = fresh()
    go(*whole, range(6))
    first = fresh()
    go(*first, range(3))
    told = copy.deepcopy([part.state_dict() for part in first])
    second = fresh()
    for part, state in zip(second, told, strict=True):
        part.load_state_dict(state)
    go(*second, range(3, 6))
    pairs = zip(whole[0].parameters(), second[0].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert second[1].param_groups[0]["lr"] == second[1].param_groups[1]["lr"] < 1e-3


def test_a_closure_is_called_once() -> None:
    model, calls = random_potential(), []
    optimizer = make_optimizer(model, "muon", 1e-3, 0.0)

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        gradients(model, 0)
        return 2.5

    with torch.no_grad():
        assert optimizer.step(closure) == 2.5
    assert calls == [True]
