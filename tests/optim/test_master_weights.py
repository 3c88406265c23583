"""bfloat16 with float32 originals: gradients add up in float32, small steps are not lost, a resume changes nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.helpers import TINY
from vitral.models.create import create_model
from vitral.optim.master_weights import ComputeCopy
from vitral.run.config import load_config
from vitral.run.train import run
from vitral.weights.tensors import load_tensors


def test_gradients_are_those_of_a_bfloat16_model_and_add_up_in_float32() -> None:
    torch.manual_seed(0)
    masters = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    compute_copy, plain = ComputeCopy(masters), copy.deepcopy(masters).bfloat16()
    expected = [torch.zeros_like(parameter) for parameter in masters.parameters()]
    for _ in range(4):
        x_B5 = torch.randn(6, 5).bfloat16()
        compute_copy.module(x_B5).square().sum().backward()
        compute_copy.collect()
        plain.zero_grad()
        plain(x_B5).square().sum().backward()
        for total, parameter in zip(expected, plain.parameters(), strict=True):
            assert parameter.grad is not None
            total += parameter.grad
    assert all(parameter.grad is None for parameter in compute_copy.module.parameters())
    for total, parameter in zip(expected, masters.parameters(), strict=True):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert torch.equal(parameter.grad, total)


def test_steps_below_bfloat16_are_kept() -> None:
    """Half of 2^-8 is rounded off 1 in bfloat16 each time; sixteen of them are not."""
    masters = nn.Linear(1, 1, bias=False)
    nn.init.ones_(masters.weight)
    compute_copy = ComputeCopy(masters)
    for _ in range(16):
        with torch.no_grad():
            masters.weight += 2**-9
        compute_copy.refresh()
    assert compute_copy.module.get_parameter("weight").item() == 1 + 16 * 2**-9


def test_batch_statistics_are_shared() -> None:
    model = create_model("resnet20_cifar", blocks=(1, 1), image_size=8)
    compute_copy = ComputeCopy(model)
    compute_copy.module(torch.rand(4, 3, 8, 8)).float().square().mean().backward()
    compute_copy.collect()
    statistics = dict(model.named_buffers())["stem.norm.running_mean"]
    assert statistics.dtype == torch.float32
    assert statistics.abs().sum() > 0


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    keys: dict[str, Any] = {**TINY, "precision": "bfloat16_params", "train.ema": 0.5, "train.micro_batch": 6}
    run(load_config("digits", {**keys, "train.steps": 6, "out": str(tmp_path / "whole")}))
    cut = {**keys, "train.steps": 6, "train.save_seconds": 0.0, "out": str(tmp_path / "cut")}
    assert _stopped(cut, 3) == 3
    run(load_config("digits", {**cut, "resume": True}))
    whole, cut_weights = (load_tensors(tmp_path / name / "model/model.safetensors")[0] for name in ("whole", "cut"))
    assert all(tensor.dtype == torch.float32 for tensor in whole.values())
    assert all(torch.equal(whole[name], cut_weights[name]) for name in whole)


def _stopped(keys: dict[str, Any], step: int) -> int:
    """Run until a state of this step is saved."""
    from vitral.training.train_state import TrainState

    save = TrainState.save

    def stop(self: TrainState, path: Path, **how: bool) -> None:
        save(self, path, **how)
        if self.progress.step == step:
            raise _Stop

    TrainState.save = stop  # pyright: ignore[reportAttributeAccessIssue]
    try:
        run(load_config("digits", keys))
    except _Stop:
        return step
    finally:
        TrainState.save = save
    return -1


class _Stop(Exception):
    pass
