"""RoIAlign (Mask R-CNN, arXiv 1703.06870, section 3): features of boxes, by bilinear interpolation on a pyramid.

Shape letters: B batch, F features, h w rows and columns of a map, A cells of all maps, R boxes of an image, P points of
a box, S bins along a side, L maps, 4 a box (x0, y0, x1, y1) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

import torch
import torch.nn.functional as F
from torch import Tensor


def box_levels(boxes_BR4: Tensor, strides: Sequence[int], side: float) -> Tensor:
    """The place [B, R] of the map that each box is on: the finest whose boxes, up to `side` strides on the longer side,
    it fits among; the last one takes all that are larger. Strides increase."""
    side_BR = (boxes_BR4[..., 2:] - boxes_BR4[..., :2]).amax(-1)
    limits = [side * stride for stride in strides[:-1]]
    return sum(((side_BR > limit).long() for limit in limits), torch.zeros_like(side_BR, dtype=torch.long))


def take(rows_BAX: Tensor, place_BR: Tensor) -> Tensor:
    """Rows [B, R, ..., X] at places [B, R, ...] of each image. One lookup for the whole batch, which exports and their
    runtimes compute too."""
    first_B = rows_BAX.shape[1] * torch.arange(rows_BAX.shape[0], device=place_BR.device)
    return F.embedding(place_BR + first_B.view(-1, *[1] * (place_BR.dim() - 1)), rows_BAX.flatten(0, 1))


def roi_align(
    maps: Sequence[Tensor], strides: Sequence[int], boxes_BR4: Tensor, level_BR: Tensor, bins: int = 7, samples: int = 1
) -> Tensor:
    """Features [B, R, F, S, S] of boxes, each from its own map of `maps`, [B, F, h, w] with cells of these strides.

    A box is cut into `bins` x `bins` parts of equal size; each gives the mean over `samples` x `samples` points, evenly
    spaced in it, of the map, interpolated between the centers of its cells. Outside of them the map continues as at its
    border.
    """
    device, count = boxes_BR4.device, bins * samples
    cells_BAF = torch.cat([each.flatten(2).mT for each in maps], dim=1)
    rows_L, columns_L = ([each.shape[axis] for each in maps] for axis in (2, 3))
    first_L = [sum(map(mul, rows_L[:level], columns_L[:level])) for level in range(len(maps))]
    rows_BR, columns_BR, stride_BR, first_BR = (
        _of_level(level_BR, each_L) for each_L in (rows_L, columns_L, strides, first_L)
    )
    share_P = (torch.arange(count, device=device, dtype=boxes_BR4.dtype) + 0.5) / count
    low_BR2, side_BR2 = boxes_BR4[..., :2], boxes_BR4[..., 2:] - boxes_BR4[..., :2]
    point_BRP2 = low_BR2[:, :, None] + share_P[:, None] * side_BR2[:, :, None]
    point_BRP2 = (point_BRP2 / stride_BR[..., None, None] - 0.5).clamp(min=0)
    x = _between(point_BRP2[..., 0], columns_BR)
    y = _between(point_BRP2[..., 1], rows_BR)
    found_BRPPF = torch.zeros((), dtype=cells_BAF.dtype, device=device)
    for row_BRP, down_BRP in y:
        for column_BRP, across_BRP in x:
            line_BRP = first_BR[..., None] + row_BRP * columns_BR[..., None]
            weight_BRPP = (down_BRP[..., :, None] * across_BRP[..., None, :]).to(cells_BAF.dtype)
            cells_BRPPF = take(cells_BAF, line_BRP[..., :, None] + column_BRP[..., None, :])
            found_BRPPF = found_BRPPF + cells_BRPPF * weight_BRPP[..., None]
    found_BRFPP = found_BRPPF.permute(0, 1, 4, 2, 3)
    if samples == 1:
        return found_BRFPP
    return found_BRFPP.unflatten(4, (bins, samples)).unflatten(3, (bins, samples)).mean((4, 6))


def _of_level(level_BR: Tensor, values: Sequence[int]) -> Tensor:
    return sum(((level_BR == level) * value for level, value in enumerate(values)), torch.zeros_like(level_BR))


def _between(at_BRP: Tensor, count_BR: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The two cells on both sides of a point along one axis of `count_BR` cells, with their weights."""
    last_BR1 = (count_BR - 1)[..., None]
    at_BRP = torch.minimum(at_BRP, last_BR1.to(at_BRP.dtype))
    before_BRP = at_BRP.floor()
    after_BRP = torch.minimum(before_BRP.long() + 1, last_BR1)
    return [(before_BRP.long(), 1 - (at_BRP - before_BRP)), (after_BRP, at_BRP - before_BRP)]
