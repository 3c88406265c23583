"""Learned position tables on another grid of patches. N prefix tokens and patches, D width, gh gw rows and columns."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def interpolate_positions(
    pos_1ND: Tensor, prefix_tokens: int, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Tensor:
    """Position embeddings for `new_grid` (rows, columns) from those learned on `old_grid`; differentiable.

    The first `prefix_tokens` rows belong to no place and are kept. The others are resampled by antialiased bicubic
    interpolation in float32 or better (arXiv 2010.11929, section 3.2, "2D interpolation"; Google's own code is
    bilinear and corner-aligned instead). At the same grid the very same tensor comes back.
    """
    if old_grid == new_grid:
        return pos_1ND
    width = pos_1ND.shape[-1]
    assert pos_1ND.shape[1] == prefix_tokens + old_grid[0] * old_grid[1], (pos_1ND.shape, prefix_tokens, old_grid)
    wide = torch.promote_types(pos_1ND.dtype, torch.float32)
    table_1Dhw = pos_1ND[:, prefix_tokens:].to(wide).reshape(1, *old_grid, width).permute(0, 3, 1, 2)
    table_1Dhw = F.interpolate(table_1Dhw, size=new_grid, mode="bicubic", antialias=True, align_corners=False)
    table_1ND = table_1Dhw.permute(0, 2, 3, 1).reshape(1, -1, width).to(pos_1ND.dtype)
    return torch.cat([pos_1ND[:, :prefix_tokens], table_1ND], dim=1)
