"""Training in bfloat16 with float32 master weights: compute on a copy; update, average and save the originals."""

from __future__ import annotations

import torch
from torch import nn

from vitral.models.parameters import compute_copy_of


class ComputeCopy:
    """A bfloat16 copy of `masters` for the forward and the backward pass (mixed precision: arXiv 1710.03740, section
    3.1).

    Gradients add up in float32, so micro-batches lose nothing to each other. Everything that lasts is the masters': the
    optimizer's state, the average, checkpoints, evaluation.
    """

    def __init__(self, masters: nn.Module) -> None:
        self.module = compute_copy_of(masters).train()
        self._pairs = list(zip(masters.parameters(), self.module.parameters(), strict=True))

    @torch.no_grad()
    def collect(self) -> None:
        """Add the copy's gradients to the masters' and empty them; to be called after each backward pass."""
        for master, parameter in self._pairs:
            if parameter.grad is not None:
                if master.grad is None:
                    master.grad = parameter.grad.to(master.dtype, copy=True)  # DDP writes into its own again
                else:
                    master.grad += parameter.grad
                parameter.grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the masters' values into the copy; to be called when they have moved."""
        for master, parameter in self._pairs:
            parameter.copy_(master)
