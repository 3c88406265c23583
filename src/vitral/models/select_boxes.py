"""Detections from a detector's dense outputs: the best locations, without duplicates.

Shape letters: B batch, A locations, C classes, X = 4 + C, K most detections, 4 a box (x0, y0, x1, y1), 6 a detection:
box, score, class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitral.data.box_ops import nms

CANDIDATES = 1000  # boxes of an image that are compared with each other, those with the highest scores


def select_boxes(outputs_BAX: Tensor, min_score: float, max_iou: float, most: int) -> Tensor:
    """Up to `most` detections of each image, by falling score: float32 or float64 [B, K, 6] on the processor.

    Of all boxes and classes with a score above `min_score` the best 1,000 go through non-maximum suppression within
    each class: of two that overlap by an IoU above `max_iou` the one with the higher score stays. Rows without a
    detection have score 0 and class -1.
    """
    found = [_select(outputs_AX, min_score, max_iou, most) for outputs_AX in outputs_BAX.cpu()]
    return torch.stack(found) if found else outputs_BAX.new_zeros(0, most, 6, device="cpu")


def _select(outputs_AX: Tensor, min_score: float, max_iou: float, most: int) -> Tensor:
    boxes_A4, scores_AC = outputs_AX[:, :4], outputs_AX[:, 4:]
    place_N, class_N = (scores_AC > min_score).nonzero().unbind(1)
    score_N, order_N = scores_AC[place_N, class_N].sort(descending=True, stable=True)
    order_N, score_N = order_N[:CANDIDATES], score_N[:CANDIDATES]
    boxes_N4, class_N = boxes_A4[place_N[order_N]], class_N[order_N]
    kept_K = nms(boxes_N4, score_N, max_iou, class_N)[:most]
    rows_K6 = outputs_AX.new_zeros(most, 6)
    rows_K6[:, 5] = -1
    chosen = torch.cat([boxes_N4, score_N[:, None], class_N[:, None].to(boxes_N4.dtype)], dim=1)[kept_K]
    rows_K6[: len(kept_K)] = chosen
    return rows_K6
