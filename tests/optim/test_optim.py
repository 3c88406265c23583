"""Rates, groups and averages against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vitral.models.create import create_model
from vitral.optim.config import OptimConfig
from vitral.optim.ema import WeightEMA
from vitral.optim.optimizer import make_optimizer, parameter_groups
from vitral.optim.schedules import learning_rate


def rates(total: int, **keys: object) -> list[float]:
    config = OptimConfig(**keys)  # type: ignore[arg-type]
    return [learning_rate(step, total, config) for step in range(total)]


def test_warmup_is_linear_and_reaches_the_peak_as_the_schedule_starts() -> None:
    found = rates(100, lr=2.0, warmup=10, schedule="constant")
    assert found[:10] == pytest.approx([2 * (k + 1) / 11 for k in range(10)])
    assert found[10:] == [2.0] * 90
    assert rates(100, lr=2.0, warmup=0.1, schedule="constant") == found
    assert rates(10, lr=2.0, warmup=0, schedule="constant") == [2.0] * 10


def test_cosine_and_linear_follow_their_formulas() -> None:
    cosine = rates(110, lr=1.0, warmup=10, schedule="cosine", final=0.1)
    linear = rates(110, lr=1.0, warmup=10, schedule="linear", final=0.1)
    for k in range(100):
        assert cosine[10 + k] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 100)))
        assert linear[10 + k] == pytest.approx(0.1 + 0.9 * (1 - k / 100))
    assert min(rates(7, warmup=20)) > 0, "a run shorter than its warm-up still moves"


def test_every_parameter_is_in_one_group_and_only_matrices_decay() -> None:
    model = create_model("vit_micro_patch2_8", head="mlp")
    decaying, plain = (group["params"] for group in parameter_groups(model, 0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert isinstance(decaying, list)
    assert isinstance(plain, list)
    found = sorted(names[id(parameter)] for parameter in (*decaying, *plain))
    assert found == sorted(names.values())
    assert {names[id(parameter)].rsplit(".", 1)[-1] for parameter in decaying} == {"weight"}
    assert {"cls_token", "pos_embed", "norm.weight", "head.bias"} <= {names[id(parameter)] for parameter in plain}


def test_adamw_step_equals_the_paper() -> None:
    layer = nn.Linear(3, 2).double()
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = make_optimizer(layer, OptimConfig(lr=0.1, weight_decay=0.5, betas=(0.9, 0.99)))
    layer.weight.grad, layer.bias.grad = torch.randn_like(before), torch.randn_like(bias)
    optimizer.step()
    # First step: moments corrected for their start are g and g^2 (Loshchilov and Hutter, algorithm 2).
    step = layer.weight.grad / (layer.weight.grad.abs() + 1e-8)
    torch.testing.assert_close(layer.weight.detach(), before * (1 - 0.1 * 0.5) - 0.1 * step)
    torch.testing.assert_close(layer.bias.detach(), bias - 0.1 * layer.bias.grad / (layer.bias.grad.abs() + 1e-8))


def test_sgd_gathers_momentum() -> None:
    layer = nn.Linear(2, 1, bias=False).double()
    before = layer.weight.detach().clone()
    optimizer = make_optimizer(layer, OptimConfig(name="sgd", lr=0.1, weight_decay=0.0, momentum=0.5))
    for _ in range(3):
        layer.weight.grad = torch.ones_like(before)
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before - 0.1 * (1 + 1.5 + 1.75))


def test_ema_is_the_weighted_sum_of_all_weights_so_far() -> None:
    model, average = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()
    ema = WeightEMA(model, average, decay=0.9)
    assert torch.equal(average.weight, model.weight)
    expected = model.weight.detach().clone()
    for t in range(40):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        ema.update()
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.weight, expected)
    assert not average.weight.requires_grad
    assert not average.training
    assert average.weight.data_ptr() != model.weight.data_ptr()


def test_a_short_run_is_not_averaged_with_its_random_start() -> None:
    model, average = nn.Linear(4, 4), nn.Linear(4, 4)
    ema = WeightEMA(model, average, decay=0.9999)
    with torch.no_grad():
        model.weight.fill_(1.0)
    for _ in range(100):
        ema.update()
    assert (average.weight - 1).abs().max() < 1e-4
