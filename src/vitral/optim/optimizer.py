"""The optimizer over an objective's parameters: which of them decay, how fast each layer moves, by which algorithm."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vitral.models.parameters import depth_of, layer_of
from vitral.optim.config import OptimConfig

_MODEL = "model."  # where an objective keeps the model; what else it trains is as near to the loss as the head


def parameter_groups(objective: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Groups of equal `weight_decay` and `lr_scale`, the factor of the rate; every parameter that takes gradients is in
    exactly one.

    Matrices decay, that is what is called weight and has two axes or more; biases, norms, tokens and positions do not,
    as in the paper's own code. lr_scale = layer_decay^(depth + 1 - layer), with the layers of `layer_of`.
    """
    named = dict(objective.named_parameters())
    depth = depth_of(name.removeprefix(_MODEL) for name in named if name.startswith(_MODEL))
    groups: dict[tuple[float, int], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        if parameter.requires_grad:
            scaled = layer_decay != 1 and name.startswith(_MODEL)
            below = depth + 1 - layer_of(name.removeprefix(_MODEL), depth) if scaled else 0
            decays = parameter.ndim > 1 and name.rsplit(".", 1)[-1] == "weight"
            groups.setdefault((weight_decay if decays else 0.0, below), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": layer_decay**below}
        for (decay, below), parameters in groups.items()
    ]


def make_optimizer(objective: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (decoupled decay), Adam or SGD with momentum (decay added to the gradient); the first two fused: one
    kernel for all parameters of a group."""
    groups = parameter_groups(objective, config.weight_decay, config.layer_decay)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    if config.name == "adam":
        return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, fused=True)
    # Not fused: that kernel takes no weights that are cut into shards, nor any that join later (objective.head_first).
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, foreach=True)
