"""Learning rate and weight decay as pure functions of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vitral.optim.config import OptimConfig

if TYPE_CHECKING:
    from torch.optim import Optimizer


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """The rate for step 0..total-1: linear warm-up to the peak, then the schedule.

    The first step's rate is peak / (warm-up steps + 1), never 0. Cosine and linear end just above `min_lr_ratio` times
    the peak. rsqrt is peak / sqrt(1 + t / timescale), t steps after the warm-up. noam is lr * min(t^-0.5, t *
    warmup^-1.5), t from 1: with lr = width^-0.5 equation 3 of Vaswani et al. 2017 (arXiv 1706.03762). wsd stays at the
    peak until the `cooldown`, the last share of the run, and falls by 1 - sqrt(x) there to `min_lr_ratio`, x from 0 to
    1 (Hu et al. 2024, arXiv 2404.06395; the form: Haegele et al. 2024, arXiv 2405.18392): a longer run shares its
    beginning with a shorter one.
    """
    warmup = config.warmup if config.warmup >= 1 else config.warmup * total
    if config.schedule == "noam":
        return config.lr * min((step + 1) ** -0.5, (step + 1) * warmup**-1.5)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(total - warmup, 1)
    match config.schedule:
        case "cosine":
            share = config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            share = config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 - done)
        case "constant":
            share = 1.0
        case "step":
            share = config.gamma ** sum(step >= drop * total for drop in config.milestones)
        case "wsd":
            fallen = max(step / total - (1 - config.cooldown), 0) / config.cooldown
            share = config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 - math.sqrt(fallen))
        case "rsqrt":
            share = (1 + (step - warmup) / config.timescale) ** -0.5
    return config.lr * share


def weight_decay(step: int, total: int, config: OptimConfig) -> float:
    """The decay of matrices for step 0..total-1: from `weight_decay` to `weight_decay_final`, if set, along half a
    cosine (DINO, arXiv 2104.14294, section 3)."""
    start, end = config.weight_decay, config.weight_decay_final
    if end is None:
        return start
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * step / max(total - 1, 1)))


def schedule(optimizer: Optimizer, step: int, total: int, config: OptimConfig) -> None:
    """Set the learning rate of every parameter group for this step, and the weight decay of those that decay."""
    lr = learning_rate(step, total, config)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        if config.weight_decay_final is not None and group["adapt"]:
            group["weight_decay"] = weight_decay(step, total, config)
