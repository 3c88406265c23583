"""Clipping of the gradient as a whole and of each parameter, and the weight decay's course."""

import math

import pytest
import torch
from torch import nn

from vitral.optim.clipping import clip_gradients
from vitral.optim.config import OptimConfig
from vitral.optim.schedules import weight_decay


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2, 2, 2), (7,))]
    for scale, parameter in zip((10.0, 0.01, 1.0), made, strict=False):
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return made


def norms(made: list[nn.Parameter]) -> list[float]:
    return [parameter.grad.norm().item() for parameter in made if parameter.grad is not None]


@pytest.mark.parametrize("largest", [0.05, 1.0, 1e9])
def test_each_gradient_is_bounded_by_itself(largest: float) -> None:
    made = parameters()
    before = norms(made)
    whole = clip_gradients(made, largest, each=True)
    assert whole.item() == pytest.approx(math.sqrt(sum(norm**2 for norm in before))), "the norm before clipping"
    assert norms(made) == pytest.approx([min(norm, largest) for norm in before], rel=1e-4)
    assert made[3].grad is None


def test_the_whole_gradient_is_bounded_without_each() -> None:
    made = parameters()
    before = norms(made)
    whole = clip_gradients(made, 0.5).item()
    assert norms(made) == pytest.approx([norm * 0.5 / whole for norm in before], rel=1e-4)


def test_nothing_is_changed_without_a_limit() -> None:
    made = parameters()
    before = norms(made)
    clip_gradients(made, None)
    assert norms(made) == before


def test_the_decay_goes_along_half_a_cosine() -> None:
    config = OptimConfig(weight_decay=0.04, weight_decay_final=0.4)
    assert weight_decay(0, 101, config) == pytest.approx(0.04)
    assert weight_decay(50, 101, config) == pytest.approx(0.22)
    assert weight_decay(100, 101, config) == pytest.approx(0.4)
    assert weight_decay(70, 101, OptimConfig(weight_decay=0.04)) == 0.04
