"""What an export consists of, and models in the form that other libraries have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.models.config import ViTConfig
from vitral.models.position import rows_and_columns, sincos_table
from vitral.weights.folder import FolderConfig


class Package(NamedTuple):
    """Tensors by the other library's names, its JSON files by their names, and what is worth saying."""

    tensors: dict[str, Tensor]
    files: dict[str, dict[str, Any]]
    notes: list[str]


def refuse(library: str, misfits: list[str]) -> None:
    """Raises UserError that names all that the library does not have."""
    if misfits:
        raise UserError(f"{library} has no such model", where="format", got="; ".join(misfits))


def misfits(c: ViTConfig, found: list[tuple[bool, str]]) -> list[str]:
    """What a library does not compute: of `found` that which is true, and what no other library has."""
    at = {"rope": ("layers_shared",), "relative_bias": ("layers", "layers_shared")}.get(c.positions, ("stem",))
    everywhere = [
        (c.head != "linear", "head=mlp"),
        (not c.is_even, "blocks of different sizes (pruned)"),
        (bool(c.pruner_blocks), "a pruner of patches"),
        (c.positions_at not in (None, *at), f"positions_at={c.positions_at}"),
    ]
    return [what for wrong, what in (*found, *everywhere) if wrong]


def key_biases(tensors: Mapping[str, Tensor], c: ViTConfig) -> Tensor:
    """Biases of the keys of all blocks, [depth, width]."""
    return torch.stack([tensors[f"blocks.{i}.attn.qkv.bias"].chunk(3)[1] for i in range(c.depth)])


def with_biases(tensors: dict[str, Tensor], c: ViTConfig, *, of_keys: bool) -> dict[str, Tensor]:
    """The same function with biases of queries, keys and values in one tensor, or with those of keys left out, which
    add the same number to all scores of a query."""
    if of_keys == c.key_bias:
        return tensors
    tensors = dict(tensors)
    for attn in (f"blocks.{i}.attn" for i in range(c.depth)):
        if of_keys:
            query_X, value_X = (tensors.pop(f"{attn}.{part}_bias") for part in "qv")
            tensors[f"{attn}.qkv.bias"] = torch.cat([query_X, torch.zeros_like(query_X), value_X])
        else:
            tensors[f"{attn}.q_bias"], _, tensors[f"{attn}.v_bias"] = tensors.pop(f"{attn}.qkv.bias").chunk(3)
    return tensors


def with_learned_positions(tensors: dict[str, Tensor], config: ViTConfig) -> tuple[dict[str, Tensor], ViTConfig]:
    """The same function with a learned table for every patch, where positions are of sines or of rows and columns.

    Others come back as they are.
    """
    if config.positions not in ("sincos", "learned_2d") or config.positions_at not in (None, "stem"):
        return tensors, config
    tensors = dict(tensors)
    if config.positions == "sincos":
        table = sincos_table(config.grid, config.grid, config.width)
    else:
        table = rows_and_columns(tensors.pop("pos_embed_y"), tensors.pop("pos_embed_x"), config.grid)
    return tensors | {"pos_embed": table}, config.model_copy(update={"positions": "learned", "prefix_positions": False})


def resized_sides(config: FolderConfig) -> tuple[int, int]:
    """Height and width in pixels that images are scaled to before the middle is cut out."""
    return config.preprocessing.scaled(config.preprocessing.image_size)
