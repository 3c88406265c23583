"""Similarity and norm of the patch tokens of each layer.

Shape letters: B batch, C channels, H W image height and width, N patches, T tokens, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.interpret.attention import grid_of
from vitral.interpret.tokens import Grid, pick, token_rows
from vitral.models.vit import VisionTransformer


@torch.no_grad()
def patch_tokens(model: VisionTransformer, images_BCHW: Tensor, layers: Sequence[int] | None = None) -> Tensor:
    """The patches after each layer, before any final norm: [B, L, N, D], row by row. Raises UserError for a layer that
    is not there."""
    names = [f"blocks.{layer}" for layer in pick(layers, model.config.depth, "layers")]
    captured = model.encode(images_BCHW, capture=names).captured
    return torch.stack([captured[name][:, model.prefix_tokens :] for name in names], dim=1)


def patch_similarity(
    model: VisionTransformer, images_BCHW: Tensor, patch: Grid, layers: Sequence[int] | None = None
) -> Tensor:
    """Cosine of one patch (row, column) with every patch, after each layer: [B, L, N] in [-1,1]."""
    row = token_rows(model.config, f"{patch[0]},{patch[1]}", grid_of(model, images_BCHW))[0] - model.prefix_tokens
    unit_BLND = F.normalize(patch_tokens(model, images_BCHW, layers), dim=-1)
    return torch.einsum("blnd,bld->bln", unit_BLND, unit_BLND[:, :, row])


def mean_similarity(tokens_ND: Tensor) -> Tensor:
    """The mean cosine of all pairs of two patches, [...] of [..., N, D]; near 1 all patches say the same.

    From the length of the sum of the unit vectors, |sum|^2 = N + sum over pairs, so no N x N matrix is made. NaN where
    there is one patch only.
    """
    unit_ND = F.normalize(tokens_ND.double(), dim=-1)
    count = unit_ND.shape[-2]
    return (unit_ND.sum(-2).square().sum(-1) - count) / (count * (count - 1) or torch.nan)


def patch_norms(model: VisionTransformer, images_BCHW: Tensor, layers: Sequence[int] | None = None) -> Tensor:
    """Euclidean length of every patch after each layer, [B, L, N]. A few far longer than the others are tokens that a
    model without registers has made into its notepad (arXiv 2309.16588)."""
    return patch_tokens(model, images_BCHW, layers).norm(dim=-1)
