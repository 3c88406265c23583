"""What autograd keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def kept_bytes(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes of all storages, each counted once, that a forward pass keeps for the backward pass; parameters are not
    counted."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # held, so that no address is used twice
        return tensor

    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)
