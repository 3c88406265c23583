"""LARS: SGD whose rate is, for each matrix, in proportion to the size of its weights (You et al. 2017, arXiv
1708.03888)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """v <- m v + lr l (g + b w), w <- w - v, with the trust ratio l = trust |w| / (|g| + b |w|), b the weight decay.

    For groups that do not `adapt` (biases, norms, tokens), and where |w| or |g| is 0 (a head starts at zero), l is 1.
    `found_inf`: where this number is 1, nothing moves, as in torch's fused optimizers.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float, trust_coefficient: float) -> None:
        super().__init__(
            groups,
            {
                "lr": lr,
                "momentum": momentum,
                "trust_coefficient": trust_coefficient,
                "weight_decay": 0.0,
                "adapt": True,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group)

    def _move(self, p: Tensor, group: dict[str, Any]) -> None:
        state, decay = self.state[p], group["weight_decay"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        assert p.grad is not None
        grad, buffer = p.grad.add(p, alpha=decay), state["momentum_buffer"]
        ratio = _trust_ratio(p, p.grad, decay, group["trust_coefficient"]) if group["adapt"] else 1.0
        velocity = buffer * group["momentum"] + grad * (group["lr"] * ratio)
        if self.found_inf is None:
            buffer.copy_(velocity)
            p.sub_(velocity)
        else:
            is_nonfinite = self.found_inf > 0
            buffer.copy_(torch.where(is_nonfinite, buffer, velocity))
            p.sub_(torch.where(is_nonfinite, 0, velocity))


def _trust_ratio(weight: Tensor, gradient: Tensor, decay: float, trust_coefficient: float) -> Tensor:
    size, grad = weight.norm(), gradient.norm()
    return torch.where((size > 0) & (grad > 0), trust_coefficient * size / (grad + decay * size), 1.0)
