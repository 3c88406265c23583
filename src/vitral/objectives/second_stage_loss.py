"""Loss of a detector's second stage (Fast R-CNN, arXiv 1504.08083, section 2.3).

Shape letters: B batch, M rows of boxes of an image, R boxes that go through the second stage, C classes, 4 a box
(x0, y0, x1, y1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.data.box_ops import pairwise_iou
from vitral.models.second_stage import SecondStage, offsets_to

MATCH = 0.5  # IoU with an object from which a box is one of it

Relevance = Callable[[Tensor], Tensor]


class Match(NamedTuple):
    """The row [B, R] of the object that each box overlaps most, and whether it does by an IoU of 0.5 or more."""

    row_BR: Tensor
    is_object_BR: Tensor


def match(boxes_BR4: Tensor, truth_BM4: Tensor, is_truth_BM: Tensor) -> Match:
    """Which object each box is of. Of equal overlaps the first row is taken."""
    iou_BRM = pairwise_iou(boxes_BR4[:, :, None], truth_BM4[:, None])
    best_BR, row_BR = torch.where(is_truth_BM[:, None], iou_BRM, -1.0).max(-1)
    return Match(row_BR, best_BR >= MATCH)


def second_stage_parts(
    stage: SecondStage, maps: Sequence[Tensor], boxes_BR4: Tensor, targets: Mapping[str, Tensor], weight_B: Tensor,
    relevance: Relevance | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Sums over images of the cross-entropy of classes, `second_class_loss`, and of the smooth L1 loss of the offsets
    of boxes with an object, `second_box_loss`; each is a mean over the image's boxes, times its weight [B].

    The boxes of an image are the given ones (proposals) and its own objects. No box is sampled, so that all counts are
    known beforehand, and micro-batches add up. targets: `boxes` and `box_class`; where there is `reliable` [B, M], it
    says which rows teach boxes in place of those that have a class. relevance: weights of boxes [B, R] as background,
    by which the classes' mean is taken (Soft Teacher, arXiv 2106.09018, equation 6); boxes with an object have 1.
    """
    truth_BM4, class_BM = targets["boxes"], targets["box_class"]
    is_object_BM = class_BM >= 0
    boxes_BR4 = torch.cat([boxes_BR4, truth_BM4.to(boxes_BR4.dtype)], dim=1)
    is_own_BR = F.pad(is_object_BM, (boxes_BR4.shape[1] - truth_BM4.shape[1], 0), value=True)
    out = stage(maps, boxes_BR4)
    found = match(boxes_BR4, truth_BM4, is_object_BM)
    background = out.logits_BRK.shape[-1] - 1
    class_BR = torch.where(found.is_object_BR, class_BM.gather(1, found.row_BR), background)
    miss_BR = F.cross_entropy(out.logits_BRK.mT, class_BR, reduction="none")
    share_BR = is_own_BR.to(miss_BR.dtype)
    if relevance is not None:
        share_BR = share_BR * torch.where(found.is_object_BR, 1.0, relevance(boxes_BR4))
    mean_B = (share_BR * miss_BR).sum(1) / share_BR.sum(1).clamp(min=torch.finfo(miss_BR.dtype).tiny)
    if "reliable" in targets:
        found = match(boxes_BR4, truth_BM4, targets["reliable"])
    teaches_BR = found.is_object_BR & is_own_BR
    truth_BR4 = truth_BM4.gather(1, found.row_BR[..., None].expand(-1, -1, 4)).to(boxes_BR4.dtype)
    wanted_BR4 = torch.where(teaches_BR[..., None], offsets_to(boxes_BR4, truth_BR4), out.offsets_BR4.detach())
    apart_BR = F.smooth_l1_loss(out.offsets_BR4, wanted_BR4, reduction="none").sum(-1)
    return {
        "second_class_loss": (weight_B * mean_B).sum(),
        "second_box_loss": (weight_B * (teaches_BR * apart_BR).sum(1) / is_own_BR.sum(1)).sum(),
    }
