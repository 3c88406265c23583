"""LARS against the paper's algorithm 1; and what every optimizer here leaves alone when it is told to skip a step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitral.models.create import create_model
from vitral.optim.config import OptimConfig
from vitral.optim.optimizer import make_optimizer


def test_two_steps_equal_the_papers() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 3).double()
    w, b = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = make_optimizer(
        layer, OptimConfig(name="lars", lr=0.5, weight_decay=0.1, momentum=0.8, trust_coefficient=0.02)
    )
    v, u = torch.zeros_like(w), torch.zeros_like(b)
    for _ in range(2):
        g, h = torch.randn_like(w), torch.randn_like(b)
        layer.weight.grad, layer.bias.grad = g.clone(), h.clone()
        optimizer.step()
        ratio = 0.02 * w.norm() / (g.norm() + 0.1 * w.norm())
        v = 0.8 * v + 0.5 * ratio * (g + 0.1 * w)
        u = 0.8 * u + 0.5 * h  # biases: plain SGD
        w, b = w - v, b - u
        torch.testing.assert_close(layer.weight.detach(), w)
        torch.testing.assert_close(layer.bias.detach(), b)


def test_a_head_of_zeros_moves_too() -> None:
    layer = nn.Linear(5, 3, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = make_optimizer(layer, OptimConfig(name="lars", lr=0.5))
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    assert torch.equal(layer.weight, torch.full_like(layer.weight, -0.5))


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "muon", "lars"])
@pytest.mark.parametrize("first", [True, False])
def test_a_skipped_step_leaves_no_trace(name: str, first: bool) -> None:
    """Also where it is the first one, when the optimizer has no state yet; and a zero skips nothing."""

    def run(bad: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = create_model("vit_micro_patch2_8")
        optimizer = make_optimizer(model, OptimConfig(name=name, lr=0.01))  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        for step in range(4):
            if bad and step == (0 if first else 2):
                optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
                for parameter in model.parameters():
                    parameter.grad = torch.full_like(parameter, float("nan"))
                optimizer.step()
            optimizer.found_inf = torch.zeros(()) if bad else None  # type: ignore[attr-defined]
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        return model.state_dict()

    clean, skipped = run(False), run(True)
    for key, tensor in clean.items():
        assert torch.equal(tensor, skipped[key]), key
