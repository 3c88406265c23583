"""Call an objective in one process, or in several with gradient exchange (DDP).

DDP: Li et al. 2020, arXiv 2006.15704.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vitral import distributed
from vitral.structs import Batch, StepOutput


class Parallel:
    """How the loop calls an objective: as it is, or wrapped by DDP, which averages gradients over the processes."""

    def __init__(self, objective: nn.Module, *, ddp: bool = False, unused: bool = False, each: bool = False) -> None:
        """unused: some parameters take part in some steps only. each: gradients are exchanged after each micro-batch,
        for what is taken from there at once."""
        self.call: Callable[[Mapping[str, Batch], int], StepOutput] = objective
        self.each = each
        self._ddp: DistributedDataParallel | None = None
        if ddp and distributed.world() > 1:
            self._ddp = DistributedDataParallel(objective, find_unused_parameters=unused, gradient_as_bucket_view=True)
            self.call = self._ddp

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around one micro-batch: gradients add up here and are exchanged once, with the last one, if not `each`. FSDP
        exchanges each time, since adding up would take room for all gradients."""
        return nullcontext() if self._ddp is None or self.each or last else self._ddp.no_sync()
