"""Parse the names of layers, heads and tokens, and locate tokens.

Shape letters: T tokens (prefix and patches).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from vitral.errors import UserError, nearest
from vitral.models.config import ViTConfig
from vitral.models.model import ImageModel
from vitral.models.registry import token_encoder
from vitral.models.vit import VisionTransformer

Grid = tuple[int, int]


def require_transformer(model: ImageModel, what: str) -> VisionTransformer:
    """The model itself. Raises UserError for other models, whose tokens are no patches or that have none; hybrids are
    Vision Transformers."""
    if (encoder := token_encoder(model)) is not None:
        return encoder
    raise UserError(
        f"{what} is for Vision Transformers, and this model is none", got=model.config.family,
        expected="vit", hint="Integrated gradients work on any model of pixels: methods=integrated_gradients.",
    )  # fmt: skip


def pick(numbers: Sequence[int] | None, count: int, what: str) -> list[int]:
    """The selected numbers, each once, or all `count`, from 0; negative ones count from the end. Raises UserError for
    others."""
    if numbers is None:
        return list(range(count))
    for number in numbers:
        if not -count <= number < count:
            raise UserError(f"no such {what[:-1]}", where=what, got=number, expected=f"0 to {count - 1}")
    return list(dict.fromkeys(number % count for number in numbers))


def default_token(config: ViTConfig) -> str:
    """What the head reads: "cls", or "mean", the mean over the patches (MAP pooling too, whose weights are its own)."""
    return "cls" if config.pool in ("cls", "cls_avg") else "mean"


def token_names(config: ViTConfig) -> list[str]:
    """Names of the prefix tokens, in their order."""
    names = ["cls"] * config.class_token + ["distill"] * config.distill_token
    return names + [f"register:{number}" for number in range(config.registers)]


def token_rows(config: ViTConfig, token: str | None, grid: Grid) -> list[int]:
    """Places among all tokens of what a name stands for.

    token: "cls", "distill", "register:0" (the first), "3,5" (the patch in row 3 and column 5, from 0), "mean" (all
    patches, to be averaged), or None for `default_token`. Raises UserError for a token that this model lacks.
    """
    token, prefix = token or default_token(config), config.prefix_tokens
    names = token_names(config)
    if token == "mean":
        return list(range(prefix, prefix + grid[0] * grid[1]))
    if token in names:
        return [names.index(token)]
    place = patch_of(token)
    if place is not None and place[0] < grid[0] and place[1] < grid[1]:
        return [prefix + place[0] * grid[1] + place[1]]
    patches = f"a patch from 0,0 to {grid[0] - 1},{grid[1] - 1}"
    raise UserError(
        "this model has no such token", where="token", got=token, expected=", ".join([*names, "mean", patches]),
        nearest=nearest(token, [*names, "mean"]),
    )  # fmt: skip


def patch_of(token: str) -> Grid | None:
    """Row and column of a token that is named as a patch."""
    match = re.fullmatch(r"(\d{1,9})\s*,\s*(\d{1,9})", token)
    return None if match is None else (int(match[1]), int(match[2]))


def on_grid(values_T: Tensor, prefix: int, grid: Grid) -> Tensor:
    """Values of all tokens, [..., T], as those of the patches where they lie, [..., rows, columns]."""
    return values_T[..., prefix:].unflatten(-1, grid)
