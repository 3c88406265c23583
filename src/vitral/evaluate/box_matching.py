"""Match detections with true boxes as COCO's evaluation does, and average precision from the matches.

The rules are those of pycocotools' COCOeval for boxes. Shape letters: N images, D detections and G true boxes of all
images, M true boxes of one image, 4 a box (x0, y0, x1, y1) in pixels of the file, A ranges of area, T overlaps, R
weightings of the images, Q points of recall, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitral.errors import UserError

if TYPE_CHECKING:
    from vitral.data.boxes import OwnBoxes

Array = NDArray[Any]
Floats = NDArray[np.float64]

OVERLAPS = np.linspace(0.5, 0.95, 10)  # IoU from which a detection counts as found
RECALLS = np.linspace(0, 1, 101)
# Of a box, in square pixels of the file, both ends included: COCO's limits. The first one holds every box.
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
MOST = 100  # detections per image and class that count, those with the highest scores
FALSE, HIT, IGNORED = 0, 1, 2  # outcomes of a detection
_CHUNK = 10_000_000  # numbers that are computed with at once


class Detections(NamedTuple):
    """What a detector finds in one image: boxes [N, 4] in pixels of the file, scores [N], class indices [N]."""

    boxes_N4: Array
    score_N: Array
    label_N: Array


@dataclass(frozen=True)
class Matches:
    """Detections of all images by falling score (equal ones by image, then by place), matched with the true boxes.

    image_D, label_D, score_D; rank_D: place among those of its image and class. outcome_ATD: FALSE, HIT or IGNORED for
    each range of area and each overlap; ignored are those that find a crowd or a true box of another area, and, if
    false, those of another area. truth_D: the true box that it finds at IoU 0.5, -1: none. near_2D, near_truth_2D: the
    largest IoU with a true box of its own class, and of others, and these boxes, crowds left out; 0 and -1: none.
    True boxes: image_G, label_G, side_G (the root of the area, pixels); counted_AG: those to be found, of each range.
    """

    image_D: Array
    label_D: Array
    score_D: Floats
    rank_D: Array
    outcome_ATD: NDArray[np.int8]
    truth_D: Array
    near_2D: Floats
    near_truth_2D: Array
    image_G: Array
    label_G: Array
    side_G: Floats
    counted_AG: NDArray[np.bool_]
    images: int
    classes: int


class _ImageMatches(NamedTuple):
    """The same of one image; detections by falling score, true boxes by their places."""

    label_D: Array
    score_D: Floats
    rank_D: Array
    outcome_ATD: NDArray[np.int8]
    truth_D: Array
    near_2D: Floats
    near_truth_2D: Array
    place_D: Array  # among the image's detections
    label_G: Array
    side_G: Floats
    counted_AG: NDArray[np.bool_]


def match_all(found: Sequence[Detections], truth: Sequence[OwnBoxes], classes: int) -> Matches:
    """Match the detections of every image. Raises UserError for other counts of images, none, numbers that aren't
    finite, and classes outside of 0 to `classes` - 1."""
    if len(found) != len(truth) or not found:
        raise UserError("detections and true boxes do not match", got=f"{len(found)} and {len(truth)} images")
    parts = [match_image(one, own, classes) for one, own in zip(found, truth, strict=True)]
    score_D = np.concatenate([part.score_D for part in parts])
    order_D = np.argsort(-score_D, kind="stable")
    found_N, true_N = [len(part.label_D) for part in parts], [len(part.label_G) for part in parts]
    first_N = np.cumsum(true_N) - true_N

    def joined(name: str, shift: bool = False) -> Array:
        arrays = [getattr(part, name) for part in parts]
        if shift:  # from places in the image to places among all true boxes
            arrays = [np.where(each >= 0, each + first, -1) for each, first in zip(arrays, first_N, strict=True)]
        return np.concatenate(arrays, -1)[..., order_D]

    return Matches(
        np.repeat(np.arange(len(parts)), found_N)[order_D], joined("label_D"), score_D[order_D], joined("rank_D"),
        joined("outcome_ATD"), joined("truth_D", shift=True), joined("near_2D"), joined("near_truth_2D", shift=True),
        np.repeat(np.arange(len(parts)), true_N), np.concatenate([part.label_G for part in parts]),
        np.concatenate([part.side_G for part in parts]), np.concatenate([part.counted_AG for part in parts], 1),
        len(parts), classes,
    )  # fmt: skip


def match_image(found: Detections, own: OwnBoxes, classes: int) -> _ImageMatches:
    """Match the detections of one image: by falling score, each takes the true box of its class with the largest IoU
    that is free. A true box without area cannot be found and is ignored, as crowds are; these may be taken again."""
    boxes_D4, true_M4 = (np.asarray(each, np.float64).reshape(-1, 4) for each in (found.boxes_N4, own.boxes_M4))
    score_D, label_D = np.asarray(found.score_N, np.float64), np.asarray(found.label_N, np.int64)
    _check(boxes_D4, score_D, label_D, own.label_M, classes)
    order_D = np.argsort(-score_D, kind="stable")
    rank_D = _ranks(label_D[order_D])
    order_D, rank_D = order_D[rank_D < MOST], rank_D[rank_D < MOST]
    boxes_D4, score_D, label_D = boxes_D4[order_D], score_D[order_D], label_D[order_D]
    side_D2, side_M2 = boxes_D4[:, 2:] - boxes_D4[:, :2], true_M4[:, 2:] - true_M4[:, :2]
    area_D, area_M = side_D2.prod(1), side_M2.clip(0).prod(1)
    low_A1, high_A1 = np.array(list(AREAS.values())).T[..., None]
    crowd_M = np.asarray(own.crowd_M, np.bool_)
    counted_AM = ~crowd_M & (area_M > 0) & (area_M >= low_A1) & (area_M <= high_A1)
    iou_DM = _overlap(boxes_D4, true_M4, area_D, area_M, crowd_M)
    same_DM = label_D[:, None] == own.label_M
    match_ATD = _greedy(np.where(same_DM, iou_DM, 0), counted_AM, crowd_M)
    outcome_ATD = np.where(match_ATD >= 0, HIT, FALSE).astype(np.int8)
    if len(own.label_M):
        counts_ATD = np.take_along_axis(counted_AM[:, None], match_ATD.clip(0), 2)
        outcome_ATD[(match_ATD >= 0) & ~counts_ATD] = IGNORED
    other_AD = (area_D < low_A1) | (area_D > high_A1)
    outcome_ATD[(match_ATD < 0) & other_AD[:, None]] = IGNORED
    near = [_nearest(np.where(of_DM & counted_AM[0], iou_DM, 0)) for of_DM in (same_DM, ~same_DM)]
    return _ImageMatches(
        label_D, score_D, rank_D, outcome_ATD, match_ATD[0, 0], np.stack([each[0] for each in near]),
        np.stack([each[1] for each in near]), order_D, own.label_M, np.sqrt(area_M), counted_AM,
    )  # fmt: skip


def _check(boxes_D4: Floats, score_D: Floats, label_D: Array, label_M: Array, classes: int) -> None:
    if not (len(boxes_D4) == len(score_D) == len(label_D)):
        got = f"{len(boxes_D4)} boxes, {len(score_D)} scores, {len(label_D)} classes"
        raise UserError("boxes, scores and classes of detections do not match", got=got)
    if not (np.isfinite(boxes_D4).all() and np.isfinite(score_D).all()):
        raise UserError(
            "the model's boxes or scores aren't finite", got="NaN or infinity",
            hint="Did the training diverge, or do the images hold NaN?",
        )  # fmt: skip
    for labels in (label_D, label_M):
        if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
            got = f"{labels.min()} to {labels.max()}"
            raise UserError("class index out of range", got=got, expected=f"0 to {classes - 1}")


def _ranks(label_D: Array) -> Array:
    """The place of each detection among those of its class."""
    order_D = np.argsort(label_D, kind="stable")
    sorted_D = label_D[order_D]
    rank_D = np.empty(len(label_D), np.int64)
    rank_D[order_D] = np.arange(len(label_D)) - np.searchsorted(sorted_D, sorted_D)
    return rank_D


def _overlap(boxes_D4: Floats, true_M4: Floats, area_D: Floats, area_M: Floats, crowd_M: Array) -> Floats:
    """IoU [D, M]; with a crowd the share of the detection that is inside."""
    low_DM2 = np.maximum(boxes_D4[:, None, :2], true_M4[:, :2])
    inside_DM = (np.minimum(boxes_D4[:, None, 2:], true_M4[:, 2:]) - low_DM2).clip(0).prod(2)
    union_DM = np.where(crowd_M, area_D[:, None], area_D[:, None] + area_M - inside_DM)
    return np.divide(inside_DM, union_DM, out=np.zeros_like(inside_DM), where=inside_DM > 0)


def _nearest(iou_DM: Floats) -> tuple[Floats, Array]:
    """The largest IoU and its true box, [D] each."""
    if not iou_DM.size:
        return np.zeros(len(iou_DM)), np.full(len(iou_DM), -1)
    best_D = iou_DM.argmax(1)
    value_D = iou_DM[np.arange(len(best_D)), best_D]
    return value_D, np.where(value_D > 0, best_D, -1)


def _greedy(iou_DM: Floats, counted_AM: Array, crowd_M: Array) -> Array:
    """The true box that each detection takes, [A, T, D], -1: none. Boxes that are not ignored come first; of equal
    overlaps the last one."""
    areas, (found, true) = len(counted_AM), iou_DM.shape
    match_ATD = np.full((areas, len(OVERLAPS), found), -1)
    free_ATM = np.ones((areas, len(OVERLAPS), true), np.bool_)
    for place in np.flatnonzero((iou_DM >= OVERLAPS[0]).any(1)).tolist():
        able_ATM = free_ATM & (iou_DM[place] >= OVERLAPS[:, None])
        first_ATM = able_ATM & counted_AM[:, None]
        pool_ATM = np.where(first_ATM.any(2, keepdims=True), first_ATM, able_ATM)
        best_AT = true - 1 - np.where(pool_ATM, iou_DM[place], -1.0)[..., ::-1].argmax(2)
        a_X, t_X = np.nonzero(pool_ATM.any(2))
        best_X = best_AT[a_X, t_X]
        match_ATD[a_X, t_X, place] = best_X
        free_ATM[a_X, t_X, best_X] = crowd_M[best_X]
    return match_ATD


def class_precisions(matches: Matches, label: int, weight_RN: Array, area: int = 0, overlap: int = 0) -> Floats:
    """Return the precision of one class at 101 points of recall, [R, 101], for each weighting of the images; NaN where
    no box is to be found.

    weight_RN: how often each image counts, whole numbers: the result is that of a set with so many copies of it.
    Precision at a recall is the largest one at that recall or a higher one, and 0 beyond the highest recall.
    """
    of_D = np.flatnonzero((matches.label_D == label) & (matches.outcome_ATD[area, overlap] != IGNORED))
    own_G = matches.counted_AG[area] & (matches.label_G == label)
    rows = max(1, _CHUNK // max(1, len(of_D)))
    if len(weight_RN) > rows:
        parts = (weight_RN[start : start + rows] for start in range(0, len(weight_RN), rows))
        return np.concatenate([class_precisions(matches, label, part, area, overlap) for part in parts])
    positives_R = weight_RN[:, matches.image_G[own_G]].sum(1)
    return interpolated(
        matches.outcome_ATD[area, overlap, of_D] == HIT, weight_RN[:, matches.image_D[of_D]], positives_R
    )


def interpolated(hit_D: Array, weight_RD: Array, positives_R: Array) -> Floats:
    """Return precision [R, 101] of detections by falling score, each counted `weight` times, of so many positives."""
    curve_RQ = np.zeros((len(positives_R), len(RECALLS)))
    if hit_D.any():
        seen_RH = np.cumsum(weight_RD, 1)[:, hit_D]
        right_RH = np.cumsum(weight_RD[:, hit_D], 1)
        precision_RH = right_RH / np.maximum(seen_RH, 1)
        highest_RH = np.maximum.accumulate(precision_RH[:, ::-1], 1)[:, ::-1]
        # The hit at which each recall is reached, by one search over all rows, in whole numbers.
        need_RQ = np.ceil(RECALLS * positives_R[:, None]).astype(np.int64)
        divisor_R1 = np.maximum(positives_R, 1)[:, None]
        need_RQ -= (need_RQ - 1) / divisor_R1 >= RECALLS
        need_RQ += need_RQ / divisor_R1 < RECALLS
        shift_R1 = np.arange(len(positives_R))[:, None] * (int(positives_R.max(initial=0)) + 2)
        width = right_RH.shape[1]
        at_RQ = np.searchsorted((right_RH + shift_R1).ravel(), (need_RQ + shift_R1).ravel()).reshape(need_RQ.shape)
        at_RQ -= np.arange(len(positives_R))[:, None] * width
        reached_RQ = at_RQ < width
        curve_RQ = np.where(reached_RQ, np.take_along_axis(highest_RH, at_RQ.clip(0, width - 1), 1), 0.0)
    curve_RQ[positives_R == 0] = np.nan
    return curve_RQ


def class_ap(matches: Matches, weight_RN: Array, area: int = 0, overlaps: Sequence[int] = range(10)) -> Floats:
    """Return the average precision of each class at these overlaps, [R, K, T]: the mean over the points of recall; NaN
    for a class without boxes to be found."""
    return np.stack(
        [
            np.stack([class_precisions(matches, label, weight_RN, area, each).mean(1) for each in overlaps], 1)
            for label in range(matches.classes)
        ],
        1,
    )


def class_recall(matches: Matches, most: int, area: int = 0) -> Floats:
    """Return the recall of each class with at most so many detections per image and class, [K, T]; NaN as above."""
    positives_K = np.bincount(matches.label_G[matches.counted_AG[area]], minlength=matches.classes)
    hit_TD = (matches.outcome_ATD[area] == HIT) & (matches.rank_D < most)
    hits_KT = np.stack([np.bincount(matches.label_D[hit_D], minlength=matches.classes) for hit_D in hit_TD], 1)
    return np.where(positives_K[:, None] > 0, hits_KT / np.maximum(positives_K, 1)[:, None], np.nan)
