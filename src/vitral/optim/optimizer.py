"""Build the optimizer of an objective: parameter groups by decay and layer, and the algorithm."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitral import distributed
from vitral.errors import UserError
from vitral.models.layers import Attention, SwiGLU
from vitral.models.parameters import depth_of, layer_of
from vitral.optim.config import OptimConfig
from vitral.optim.lars import LARS
from vitral.optim.muon import Muon

_MODEL = "model."  # where an objective keeps the model; what else it trains is as near to the loss as the head


def parameter_groups(
    objective: nn.Module, weight_decay: float, layer_decay: float = 1.0, *, muon: bool = False
) -> list[dict[str, Any]]:
    """Groups of equal `weight_decay` and `lr_scale`, the factor of the rate; every parameter that takes gradients is in
    exactly one.

    Matrices decay (`adapt` is true of them), that is what is called weight (weight_v where lengths are apart) and has
    two axes or more; biases, norms, lengths, tokens and positions do not, as in the paper's own code.
    lr_scale = layer_decay^(depth + 1 - layer), with the layers of `layer_of`. With `muon` the `parts` of a group are
    those of `muon_parts`, without it 0.
    """
    named = dict(objective.named_parameters())
    depth = depth_of(name.removeprefix(_MODEL) for name in named if name.startswith(_MODEL))
    parts = muon_parts(objective) if muon else {}
    groups: dict[tuple[bool, int, int], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        if parameter.requires_grad:
            scaled = layer_decay != 1 and name.startswith(_MODEL)
            below = depth + 1 - layer_of(name.removeprefix(_MODEL), depth) if scaled else 0
            decays = parameter.ndim > 1 and name.rsplit(".", 1)[-1] in ("weight", "weight_v")
            groups.setdefault((decays, below, parts.get(name, 0)), []).append(parameter)
    return [
        {
            "params": parameters, "weight_decay": weight_decay if decays else 0.0, "lr_scale": layer_decay**below,
            "adapt": decays, "parts": count,
        }
        for (decays, below, count), parameters in groups.items()
    ]  # fmt: skip


def muon_parts(objective: nn.Module) -> dict[str, int]:
    """Names of the matrices that Muon moves, and of how many packed ones each consists.

    They are the dense layers of blocks and the stacks of their low-rank adapters; not convolutions, nor what lies
    before and behind the blocks.
    """
    packed = {
        f"{name}.{layer}.weight": count
        for name, module in objective.named_modules()
        for kind, layer, count in ((Attention, "qkv", 3), (SwiGLU, "fc1", 2))
        if isinstance(module, kind)
    }
    return {
        name: packed.get(name, 1)
        for name, parameter in objective.named_parameters()
        if re.search(r"\bblocks\.\d+\.", name)
        and ((parameter.ndim == 2 and name.endswith(".weight")) or re.search(r"\.lora_[ab]$", name))
    }


def make_optimizer(objective: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of this name; torch's own are fused: one kernel for all parameters of a group. All of them leave
    everything as it is where their attribute `found_inf`, a number on the device, is 1."""
    is_muon = config.name == "muon"
    groups = parameter_groups(objective, config.weight_decay, config.layer_decay, muon=is_muon)
    momentum = config.momentum if config.momentum != "auto" else 0.95 if is_muon else 0.9
    match config.name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, fused=True)
        case "muon":
            if not any(group["parts"] for group in groups):
                raise UserError(
                    "muon moves matrices of blocks, and none is trained here", where="optim.name", expected="adamw, sgd"
                )
            return Muon(groups, config.lr, config.betas, momentum)
        case "lars":
            return LARS(groups, config.lr, momentum, config.trust_coefficient)
        case "sgd":
            return _sgd(groups, config.lr, momentum)


class _ShardedSGD(torch.optim.SGD):
    """SGD of weights that are cut over processes, which the fused kernel does not take. The others refuse
    `found_inf`, so it is read here."""

    found_inf: Tensor | None = None

    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert closure is None
        is_nonfinite, self.found_inf = self.found_inf, None
        if is_nonfinite is None or not is_nonfinite:
            super().step()


def _sgd(groups: list[dict[str, Any]], lr: float, momentum: float) -> torch.optim.SGD:
    """SGD whose momentum starts at zero: torch's would take the first gradient it sees, even one to be skipped,
    and could not take parameters that join later."""
    if any(distributed.is_sharded(parameter) for group in groups for parameter in group["params"]):
        optimizer = _ShardedSGD(groups, lr=lr, momentum=momentum, foreach=True)
    else:
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True)
    for group in groups if momentum else ():
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
