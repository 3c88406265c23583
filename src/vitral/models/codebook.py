"""Tables of codes that are fixed parts of a model. Shape letters: K codes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn

from vitral.errors import UserError


class Codebook(nn.Module):
    """A module whose buffers are in float32 or better whatever the model computes in: rounded, they would be other
    codes."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves as usual, but buffers are never cast to fewer bits than float32."""
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            moved: Tensor = getattr(self, name)
            if not tensor.is_meta and moved.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, tensor.to(moved.device))
        return self


def check_codes(codes: Tensor, count: int, what: str = "codebook") -> None:
    """Raises UserError for codes that are not 0 to count - 1."""
    if not codes.numel():  # a process's share of few images
        return
    least, most = int(codes.min()), int(codes.max())
    if least < 0 or most >= count:
        raise UserError(f"codes outside the {what}", got=f"{least} to {most}", expected=f"0 to {count - 1}")


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Computes as the weights are; on "meta", which knows no autocast, nothing is computed at all."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def wide(x: Tensor) -> Tensor:
    """In float32, or float64 where it is that: what softmax, logarithms and sums over many are computed in, also under
    autocast."""
    return x if x.dtype == torch.float64 else x.float()
