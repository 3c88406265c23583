"""What autograd keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitral.models import convolution
from vitral.models import layers as vit_layers


def kept_bytes(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes of all storages, each counted once, that a forward pass keeps for the backward pass; parameters are not
    counted. Blocks of the stem of a hybrid are taken for
    the first blocks of the model, so there is no checkpointing of hybrids here."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # held, so that no address is used twice
        return tensor

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        keep(inputs[0])

    # Checkpointing holds inputs of blocks out of autograd's sight.
    blocks = [module for module in model.modules() if isinstance(module, vit_layers.Block | convolution.Block)]
    checkpointed = blocks[: getattr(model, "checkpointed", 0) * model.training]
    hooks = [block.register_forward_pre_hook(keep_input) for block in checkpointed]
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    for hook in hooks:
        hook.remove()
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)
