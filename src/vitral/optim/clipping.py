"""Gradient clipping by norm."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vitral import distributed


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], largest: float | None, *, each: bool = False) -> Tensor:
    """Scales gradients down so that their global norm, or with `each` the norm of every parameter's own, is at most
    `largest` (None: as they are). Returns the global norm before that, on their device."""
    with_grads = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.clip_grad_norm_(with_grads, math.inf if largest is None or each else largest)
    if each and largest is not None:
        grads = [parameter.grad for parameter in with_grads if parameter.grad is not None]
        norms: list[Tensor] = list(torch._foreach_norm(grads))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage, reportUnknownArgumentType]
        factors = [(largest / (own + 1e-6)).clamp(max=1.0) for own in norms]
        torch._foreach_mul_(grads, factors)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return distributed.gather_full(norm)
