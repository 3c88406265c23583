"""RoIAlign (Mask R-CNN, arXiv 1703.06870, section 3): features of boxes, by bilinear interpolation on a pyramid.

Shape letters: B batch, F features, h w rows and columns of a map, A cells of all maps, R boxes of an image, P points of
a box, S bins along a side, L maps, 4 a box (x0, y0, x1, y1) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def box_levels(boxes_BR4: Tensor, strides: Sequence[int], side: float) -> Tensor:
    """The place [B, R] of the map that each box is on: the finest whose boxes, up to `side` strides on the longer side,
    it fits among; the last one takes all that are larger. Strides increase."""
    side_BR = (boxes_BR4[..., 2:] - boxes_BR4[..., :2]).amax(-1)
    limits = [side * stride for stride in strides[:-1]]
    return sum(((side_BR > limit).long() for limit in limits), torch.zeros_like(side_BR, dtype=torch.long))


def roi_align(
    maps: Sequence[Tensor], strides: Sequence[int], boxes_BR4: Tensor, level_BR: Tensor, bins: int = 7, samples: int = 1
) -> Tensor:
    """Features [B, R, F, S, S] of boxes, each from its own map of `maps`, [B, F, h, w] with cells of these strides.

    A box is cut into `bins` x `bins` parts of equal size; each gives the mean over `samples` x `samples` points, evenly
    spaced in it, of the map, interpolated between the centers of its cells. Outside of them the map goes on as at its
    border. Boxes get no gradient.
    """
    device, count = boxes_BR4.device, bins * samples
    cells_BAF = torch.cat([each.flatten(2).mT for each in maps], dim=1)
    sizes_L3 = torch.tensor([[*each.shape[2:], stride] for each, stride in zip(maps, strides, strict=True)])
    cells_L = sizes_L3[:, :2].prod(1)
    rows_BR, columns_BR, stride_BR, first_BR = (
        each_L.to(device)[level_BR] for each_L in (*sizes_L3.unbind(1), cells_L.cumsum(0) - cells_L)
    )
    share_P = (torch.arange(count, device=device, dtype=boxes_BR4.dtype) + 0.5) / count
    low_BR2, side_BR2 = boxes_BR4[..., :2], boxes_BR4[..., 2:] - boxes_BR4[..., :2]
    point_BRP2 = low_BR2[:, :, None] + share_P[:, None] * side_BR2[:, :, None]
    point_BRP2 = (point_BRP2.detach() / stride_BR[..., None, None] - 0.5).clamp(min=0)
    x = _between(point_BRP2[..., 0], columns_BR)
    y = _between(point_BRP2[..., 1], rows_BR)
    # Places among the cells of all images, so that one lookup serves the whole batch.
    start_BR = first_BR + cells_BAF.shape[1] * torch.arange(len(cells_BAF), device=device)[:, None]
    flat_XF, parts = cells_BAF.flatten(0, 1), list[Tensor]()
    for row_BRP, down_BRP in y:
        for column_BRP, across_BRP in x:
            place = (start_BR[..., None] + row_BRP * columns_BR[..., None])[..., :, None] + column_BRP[..., None, :]
            weight = (down_BRP[..., :, None] * across_BRP[..., None, :]).to(flat_XF.dtype)
            parts.append(F.embedding(place, flat_XF) * weight[..., None])
    found_BRPPF = torch.stack(parts).sum(0)
    found_BRFPP = found_BRPPF.permute(0, 1, 4, 2, 3)
    if samples == 1:
        return found_BRFPP
    return found_BRFPP.unflatten(4, (bins, samples)).unflatten(3, (bins, samples)).mean((4, 6))


def _between(at_BRP: Tensor, count_BR: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The two cells on both sides of a point along one axis of `count_BR` cells, with their weights."""
    last_BR1 = (count_BR - 1)[..., None]
    at_BRP = torch.minimum(at_BRP, last_BR1.to(at_BRP.dtype))
    before_BRP = at_BRP.floor()
    after_BRP = torch.minimum(before_BRP.long() + 1, last_BR1)
    return [(before_BRP.long(), 1 - (at_BRP - before_BRP)), (after_BRP, at_BRP - before_BRP)]
