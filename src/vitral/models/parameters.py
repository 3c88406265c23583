"""Facts in parameter names (the layer, part of the head or not), and copies of parameters."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import nn

from vitral.models.registry import FAMILIES

Module = TypeVar("Module", bound=nn.Module)


def is_head(name: str) -> bool:
    """Whether a parameter belongs to the head: the part that is not taken over from another model."""
    return name.split(".")[0] in {part for family in FAMILIES.values() for part in family.head}


def trains_head_only(model: nn.Module) -> bool:
    """Whether nothing but the head takes gradients: the encoder is frozen and runs as in evaluation."""
    return all(is_head(name) for name, parameter in model.named_parameters() if parameter.requires_grad)


def is_pruner(name: str) -> bool:
    """Whether a parameter belongs to a learned pruner, which a model may have or not."""
    return name.startswith("reduce.")


def layer_of(name: str, depth: int) -> int:
    """The layer that a parameter is in, from 0 to depth + 1, by the rule of BEiT and MAE.

    Block i of a Transformer, or stage i of a CNN, is layer i + 1; final norm, pooling, pruner and head are layer depth
    + 1; everything before the blocks (patch embedding, positions, class token, registers) is layer 0.
    """
    blocks = "|".join({re.escape(family.blocks) for family in FAMILIES.values()})
    found = re.match(rf"(?:{blocks})\.(\d+)\.", name)
    if found:
        return int(found[1]) + 1
    last = {part for family in FAMILIES.values() for part in (*family.last, *family.head)}
    return depth + 1 if name.split(".")[0] in last else 0


def depth_of(names: Iterable[str]) -> int:
    """How many blocks or stages the model with these parameters has."""
    return max((layer_of(name, -1) for name in names), default=0)


def freeze_encoder(model: nn.Module) -> None:
    """Leave only the head to be trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_head(name))


def compute_copy_of(module: Module) -> Module:
    """A copy with parameters in bfloat16 and the same buffers; batch norms keep float32, as their statistics do."""
    shared: dict[int, torch.Tensor] = {id(buffer): buffer for buffer in module.buffers()}
    copied = copy.deepcopy(module, shared)  # pyright: ignore[reportArgumentType] - a memo of what is not to be copied
    for part in copied.modules():
        if not isinstance(part, nn.BatchNorm2d):
            for parameter in part.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)
    return copied
