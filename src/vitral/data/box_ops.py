"""Geometry of boxes: formats, areas, overlaps, non-maximum suppression. `geometry.transform_boxes` maps them to views.

A box is (x0, y0, x1, y1) in continuous pixel coordinates: the image's left edge is 0 and its right edge is its width,
so the first pixel alone is (0, 0, 1, 1). Shape letters: N and M boxes, 4 a box, K kept ones.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_xywh(boxes_N4: Tensor) -> Tensor:
    """Corners to (x0, y0, width, height), the format of COCO; any leading shape."""
    return torch.cat([boxes_N4[..., :2], boxes_N4[..., 2:] - boxes_N4[..., :2]], dim=-1)


def from_xywh(boxes_N4: Tensor) -> Tensor:
    """(x0, y0, width, height) to corners."""
    return torch.cat([boxes_N4[..., :2], boxes_N4[..., :2] + boxes_N4[..., 2:]], dim=-1)


def to_cxcywh(boxes_N4: Tensor) -> Tensor:
    """Corners to (center x, center y, width, height)."""
    return torch.cat([(boxes_N4[..., :2] + boxes_N4[..., 2:]) / 2, boxes_N4[..., 2:] - boxes_N4[..., :2]], dim=-1)


def from_cxcywh(boxes_N4: Tensor) -> Tensor:
    """(center x, center y, width, height) to corners."""
    half_N2 = boxes_N4[..., 2:] / 2
    return torch.cat([boxes_N4[..., :2] - half_N2, boxes_N4[..., :2] + half_N2], dim=-1)


def area(boxes_N4: Tensor) -> Tensor:
    """Areas in square pixels; 0 where a box has no width or height, or negative ones."""
    return (boxes_N4[..., 2:] - boxes_N4[..., :2]).clamp(min=0).prod(-1)


def clip(boxes_N4: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes cut at the border of an image of `size` (height, width)."""
    x_N2, y_N2 = boxes_N4[..., 0::2].clamp(0, size[1]), boxes_N4[..., 1::2].clamp(0, size[0])
    return torch.stack([x_N2, y_N2], dim=-1).flatten(-2)


def pairwise_iou(one_N4: Tensor, other_N4: Tensor) -> Tensor:
    """Intersection over union of boxes in pairs, in [0,1]; 0 where both have no area. Leading shapes broadcast."""
    inside, union = _inside_and_union(one_N4, other_N4)
    return inside / union.clamp(min=_tiny(union))


def pairwise_giou(one_N4: Tensor, other_N4: Tensor) -> Tensor:
    """Generalized IoU in pairs, in [-1,1] (Rezatofighi et al. 2019, arXiv 1902.09630, algorithm 1): IoU less the share
    of the hull of both that neither covers. Its gradient is finite for boxes that do not meet, and for empty ones."""
    inside, union = _inside_and_union(one_N4, other_N4)
    low = torch.minimum(one_N4[..., :2], other_N4[..., :2])
    hull = (torch.maximum(one_N4[..., 2:], other_N4[..., 2:]) - low).clamp(min=0).prod(-1)
    tiny = _tiny(union)
    return inside / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def iou(one_N4: Tensor, other_M4: Tensor) -> Tensor:
    """The IoU of each box with each: [N, M]."""
    return pairwise_iou(one_N4[:, None], other_M4[None])


def giou(one_N4: Tensor, other_M4: Tensor) -> Tensor:
    """The generalized IoU of each box with each: [N, M]."""
    return pairwise_giou(one_N4[:, None], other_M4[None])


def _inside_and_union(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    return inside, area(one) + area(other) - inside


def _tiny(values: Tensor) -> float:
    return torch.finfo(values.dtype).tiny


def nms(boxes_N4: Tensor, scores_N: Tensor, threshold: float, classes_N: Tensor | None = None) -> Tensor:
    """Places of the boxes that greedy non-maximum suppression keeps, int64 [K], by falling score.

    The box with the highest score is kept, those that overlap it by an IoU above `threshold` are dropped, and so on
    with the rest. Equal scores are taken in the order of their places. With `classes_N` a box drops boxes of its own
    class alone: each class is moved to a region of its own. Exact: nothing is cut off or approximated.
    """
    if not len(boxes_N4):
        return torch.zeros(0, dtype=torch.int64, device=boxes_N4.device)
    boxes_N4 = boxes_N4.double()  # offsets must not round coordinates
    if classes_N is not None:
        span = boxes_N4.max() - boxes_N4.min() + 1
        boxes_N4 = boxes_N4 + (classes_N.double() * span)[:, None]
    order_N = scores_N.argsort(descending=True, stable=True)
    drops_NN = (iou(boxes_N4[order_N], boxes_N4[order_N]) > threshold).cpu()
    alive_N = torch.ones(len(order_N), dtype=torch.bool)
    kept: list[int] = []
    for place in range(len(order_N)):
        if alive_N[place]:
            kept.append(place)
            alive_N &= ~drops_NN[place]
    return order_N[torch.tensor(kept, device=order_N.device)]
