"""The optimizer over an objective's parameters: which of them decay, and by which algorithm they move."""

from __future__ import annotations

import torch
from torch import nn

from vitral.optim.config import OptimConfig

_TOKENS = ("cls_token", "pos_embed")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups, decaying matrices and the rest; every parameter that takes gradients is in exactly one.

    The rest: one-dimensional parameters (biases, norms), class token and positions, as in the paper's own code.
    """
    decaying: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim <= 1 or name.rsplit(".", 1)[-1] in _TOKENS
            (plain if exempt else decaying).append(parameter)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def make_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (decoupled decay) or SGD with momentum, fused: one kernel for all parameters of a group."""
    groups = parameter_groups(module, config.weight_decay)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
