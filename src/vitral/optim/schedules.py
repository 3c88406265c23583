"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from vitral.optim.config import OptimConfig


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """The rate for step 0..total-1: linear warm-up to the peak, then the schedule down to `final` times the peak.

    The first step's rate is peak / (warm-up steps + 1), never 0; the last step's is just above the final one.
    """
    warmup = config.warmup if config.warmup >= 1 else config.warmup * total
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(total - warmup, 1)
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[config.schedule]
    floor = 1.0 if config.schedule == "constant" else config.final
    return config.lr * (floor + (1 - floor) * left)
