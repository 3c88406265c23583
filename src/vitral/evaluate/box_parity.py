"""Whether two computations of one detector find the same objects.

Shape letters: N images, K detections of an image, 6 a detection: box (x0, y0, x1, y1), score, class.
"""

from __future__ import annotations

from torch import Tensor

from vitral.data.box_ops import iou


def box_parity(mine_NK6: Tensor, theirs_NK6: Tensor, threshold: float, max_iou: float) -> dict[str, float]:
    """ "agreement": share of the detections with a score of `threshold` or more, of both, at whose place the other has
    one of the same class, whatever its score; and their number, "detections". Rows of class -1 are none.

    At the same place: an IoU of 0.5, or of `max_iou` where that is less. Of two boxes with nearly equal scores either
    may suppress the other, and their IoU is above `max_iou`: rounding alone keeps the agreement at 1.
    """
    alike, count = 0, 0
    for mine_K6, theirs_K6 in zip(mine_NK6, theirs_NK6, strict=True):
        for one_K6, other_K6 in ((mine_K6, theirs_K6), (theirs_K6, mine_K6)):
            sure_K6 = one_K6[(one_K6[:, 5] >= 0) & (one_K6[:, 4] >= threshold)]
            other_K6 = other_K6[other_K6[:, 5] >= 0]
            is_same_KK = sure_K6[:, None, 5] == other_K6[None, :, 5]
            near_KK = iou(sure_K6[:, :4], other_K6[:, :4]) >= min(0.5, max_iou)
            alike += int((is_same_KK & near_KK).any(1).sum())
            count += len(sure_K6)
    return {"agreement": alike / count if count else 1.0, "detections": count}
