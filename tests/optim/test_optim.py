"""Rates, groups and averages against closed forms."""

from __future__ import annotations

import math
from types import ModuleType

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
    cosine = rates(110, lr=1.0, warmup=10, schedule="cosine", min_lr_ratio=0.1)
    linear = rates(110, lr=1.0, warmup=10, schedule="linear", min_lr_ratio=0.1)
    for k in range(100):
        assert cosine[10 + k] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 100)))
        assert linear[10 + k] == pytest.approx(0.1 + 0.9 * (1 - k / 100))
    assert min(rates(7, warmup=20)) > 0, "a run shorter than its warm-up still moves"


def test_wsd_is_constant_until_its_last_share() -> None:
    found = rates(200, lr=2.0, warmup=0.05, schedule="wsd", cooldown=0.25, min_lr_ratio=0.1)
    assert found[:10] == pytest.approx([2 * (k + 1) / 11 for k in range(10)])
    assert found[10:150] == [2.0] * 140
    assert found[150:] == pytest.approx([2 * (0.1 + 0.9 * (1 - math.sqrt(k / 50))) for k in range(50)])
    assert rates(400, lr=2.0, warmup=10, schedule="wsd")[:160] == rates(200, lr=2.0, warmup=10, schedule="wsd")[:160]
    with pytest.raises(ValueError, match="must be at most 1"):
        OptimConfig(schedule="wsd", warmup=0.3, cooldown=0.8)


def test_a_step_schedule_falls_where_it_is_told_to() -> None:
    found = rates(10, lr=1.0, warmup=0, schedule="step", milestones=(0.3, 0.5), gamma=0.5)
    assert found == pytest.approx([1.0] * 3 + [0.5] * 2 + [0.25] * 5)


def test_rsqrt_with_the_warmup_as_timescale_is_the_transformers_own() -> None:
    found = rates(50, lr=2.0, warmup=8, schedule="rsqrt", timescale=8)
    assert found[8:] == pytest.approx([2 * math.sqrt(8 / step) for step in range(8, 50)])


@pytest.mark.parametrize("width", [512, 64])
@pytest.mark.parametrize("warmup", [8, 0.16])
def test_noam_is_equation_3_of_the_transformers_paper(width: int, warmup: float) -> None:
    found = rates(50, lr=width**-0.5, warmup=warmup, schedule="noam")
    assert found == pytest.approx([width**-0.5 * min(t**-0.5, t * 8**-1.5) for t in range(1, 51)], rel=1e-12)
    assert max(found) == found[7] == pytest.approx((width * 8) ** -0.5)
    with pytest.raises(ValueError, match="warmup"):
        OptimConfig(schedule="noam", warmup=0)


class Tried(nn.Module):
    """An objective's shape: a model, and a part of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.decoder = model, nn.Linear(3, 2)


class Cnn(nn.Module):
    """Names of a CNN with stages, of registers, layer scale and tables of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.reg_token, self.pos_embed_x = nn.Parameter(torch.zeros(1, 2, 4)), nn.Parameter(torch.zeros(3, 4))
        self.stages = nn.ModuleList(
            nn.ModuleDict({"blocks": nn.ModuleList([nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)])}) for _ in range(3)
        )
        self.norm, self.head = nn.GroupNorm(2, 4), nn.Linear(4, 2)


def in_groups(module: nn.Module, layer_decay: float) -> dict[str, tuple[float, float]]:
    """Decay and scale by name; every trained parameter is found exactly once."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = parameter_groups(module, 0.1, layer_decay)
    found = [(names[id(p)], (g["weight_decay"], g["lr_scale"])) for g in groups for p in g["params"]]
    assert len({(g["weight_decay"], g["lr_scale"]) for g in groups}) == len(groups)
    assert sorted(name for name, _ in found) == sorted(n for n, p in module.named_parameters() if p.requires_grad)
    return dict(found)


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_every_trained_parameter_is_in_one_group_and_only_matrices_decay(layer_decay: float) -> None:
    for model in (
        create_model("vit_micro_patch2_8", head="mlp"),
        create_model("vit_micro_patch2_8", pool="avg"),
        Cnn(),
    ):
        for name, (decay, _) in in_groups(Tried(model), layer_decay).items():
            module = Tried(model).get_submodule(name.rpartition(".")[0])
            bare = isinstance(module, nn.LayerNorm | nn.GroupNorm) or not name.endswith(".weight")
            assert decay == (0.0 if bare else 0.1), name
    frozen = Tried(create_model("vit_micro_patch2_8"))
    frozen.model.requires_grad_(False)
    assert in_groups(frozen, layer_decay) == {"decoder.weight": (0.1, 1.0), "decoder.bias": (0.0, 1.0)}


def test_layer_decay_falls_from_the_head_to_the_stem() -> None:
    found = in_groups(Tried(create_model("vit_micro_patch2_8")), 0.5)
    scales = {name: scale for name, (_, scale) in found.items()}
    for name in ("patch_embed.proj.weight", "cls_token", "pos_embed"):
        assert scales[f"model.{name}"] == 0.5**5
    for block in range(4):
        assert scales[f"model.blocks.{block}.attn.qkv.weight"] == 0.5 ** (4 - block)
    for name in ("model.norm.weight", "model.head.weight", "decoder.weight"):
        assert scales[name] == 1
    cnn = in_groups(Tried(Cnn()), 0.5)
    expected = {"stem.weight": 4, "reg_token": 4, "pos_embed_x": 4, "stages.0.blocks.0.weight": 3, "head.bias": 0}
    assert {name: cnn[f"model.{name}"][1] for name in expected} == {name: 0.5**k for name, k in expected.items()}


@pytest.mark.oracle
def test_layer_decay_equals_timms(timm: ModuleType) -> None:
    """But for the final norm, which timm counts to the last block; BEiT and MAE, as we do, to the head."""
    peer = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    from timm.optim import param_groups_layer_decay

    names = {id(parameter): name for name, parameter in peer.named_parameters()}
    groups = param_groups_layer_decay(peer, 0.1, ("cls_token", "pos_embed"), layer_decay=0.65)
    theirs = {names[id(p)]: (g["weight_decay"], g["lr_scale"]) for g in groups for p in g["params"]}
    ours = in_groups(Tried(create_model("vit_tiny_patch16_224")), 0.65)
    for name, (decay, scale) in theirs.items():
        norm = name in ("norm.weight", "norm.bias")
        assert ours[f"model.{name}"] == (decay, pytest.approx(1 if norm else scale)), name


def test_adam_adds_the_decay_to_the_gradient() -> None:
    layer = nn.Linear(3, 2).double()
    before = layer.weight.detach().clone()
    optimizer = make_optimizer(layer, OptimConfig(name="adam", lr=0.1, weight_decay=0.5))
    layer.weight.grad = torch.randn_like(before)
    optimizer.step()
    grad = layer.weight.grad + 0.5 * before  # Kingma and Ba 2014, algorithm 1, of the loss with an L2 term
    torch.testing.assert_close(layer.weight.detach(), before - 0.1 * grad / (grad.abs() + 1e-8))


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


def test_ema_leaves_frozen_weights_alone() -> None:
    model, average = nn.Linear(2, 2), nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    ema = WeightEMA(model, average, decay=0.5)
    with torch.no_grad():
        model.weight.add_(1)
    ema.update()
    assert torch.equal(average.bias, model.bias)
    assert not torch.equal(average.weight, model.weight)


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


def test_the_averages_memory_is_a_share_of_the_run_or_constant_without_a_warmup() -> None:
    for warmup in (0.0, 3.0):
        model, average = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()
        ema = WeightEMA(model, average, decay=0.9, warmup=warmup)
        expected = model.weight.detach().clone()
        for t in range(50):
            with torch.no_grad():
                model.weight.add_(torch.randn_like(model.weight))
            ema.update()
            decay = min(0.9, (1 + t) / (1 + warmup + t))
            assert decay == 0.9 or 1 / (1 - decay) == pytest.approx(1 + (1 + t) / warmup)
            expected = decay * expected + (1 - decay) * model.weight.detach()
        torch.testing.assert_close(average.weight, expected)


def test_a_short_run_is_not_averaged_with_its_random_start() -> None:
    model, average = nn.Linear(4, 4), nn.Linear(4, 4)
    ema = WeightEMA(model, average, decay=0.9999)
    with torch.no_grad():
        model.weight.fill_(1.0)
    for _ in range(100):
        ema.update()
    assert (average.weight - 1).abs().max() < 1e-4
