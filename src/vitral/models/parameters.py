"""What the name of a model's parameter says: its layer, and whether it belongs to the head."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

_HEAD = ("head", "head_dist", "pre_logits")  # what a new task replaces
_LAST = ("norm", "fc_norm", "attn_pool", "reduce", *_HEAD)


def is_head(name: str) -> bool:
    """Whether a parameter belongs to the head: the part that is not taken over from another model."""
    return name.split(".")[0] in _HEAD


def is_pruner(name: str) -> bool:
    """Whether a parameter belongs to a learned pruner, which a model may have or not."""
    return name.startswith("reduce.")


def layer_of(name: str, depth: int) -> int:
    """The layer that a parameter is in, from 0 to depth + 1, by the rule of BEiT and MAE.

    Block i of a Transformer, or stage i of a CNN, is layer i + 1; final norm, pooling, pruner and head are layer depth
    + 1; everything before the blocks (patch embedding, positions, class token, registers) is layer 0.
    """
    found = re.match(r"(?:blocks|stages)\.(\d+)\.", name)
    if found:
        return int(found[1]) + 1
    return depth + 1 if name.split(".")[0] in _LAST else 0


def depth_of(names: Iterable[str]) -> int:
    """How many blocks or stages the model with these parameters has."""
    return max((layer_of(name, -1) for name in names), default=0)


def freeze_encoder(model: nn.Module) -> None:
    """Leave only the head to be trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_head(name))
