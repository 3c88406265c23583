"""What a detector does wrong: kinds of errors, confusions, the score threshold, and boxes missed by size.

Everything is at IoU 0.5. Shape letters: D detections and G true boxes of all images, K classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from vitral.evaluate.box_matching import FALSE, HIT, IGNORED, Array, Detections, Matches, interpolated, match_image

if TYPE_CHECKING:
    from vitral.data.boxes import OwnBoxes

KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")
_FOREGROUND, _BACKGROUND = 0.5, 0.1  # IoU: a box of this object; a box of no object


def error_gains(matches: Matches) -> dict[str, dict[str, Any]]:
    """Return the number of errors of each kind, and the AP50 gained if they alone were corrected, `ap50_gain` (None
    without a box to be found).

    Bolya et al. 2020, "TIDE" (arXiv 2008.08115), sections 2.2 and 2.3. A false detection is of the first kind that
    fits: `localization`, it overlaps a box of its class by an IoU of 0.1 to 0.5; `classification`, it overlaps a box of
    another class by 0.5 or more; `duplicate`, it overlaps a box of its class that is found already; `background`, it
    overlaps every box by less than 0.1; `both`: by less than 0.5. `missed`: boxes that are not found, and that no error
    of the first two kinds overlaps. Corrected: the first two become hits, if their box is not found by then, else they
    and the others are removed. Unlike the authors' program, each kind is corrected alone also where errors of two kinds
    are at one box, and a class all of whose boxes are missed has AP 1 when these are corrected (there 0).
    """
    kind_D, target_D = _kinds(matches)
    right_D = matches.outcome_ATD[0, 0]
    counted_G = matches.counted_AG[0]
    taken_G = np.zeros(len(counted_G), np.bool_)
    taken_G[matches.truth_D[right_D == HIT]] = True
    covered_G = taken_G.copy()
    covered_G[target_D[target_D >= 0]] = True
    base = _ap50(matches, right_D, matches.label_D, counted_G)
    result: dict[str, dict[str, Any]] = {}
    for place, kind in enumerate(KINDS):
        outcome_D, label_D, left_G = right_D.copy(), matches.label_D.copy(), counted_G
        own_D = np.flatnonzero(kind_D == place)
        count = len(own_D)
        outcome_D[own_D] = IGNORED
        if kind == "missed":
            left_G = counted_G & covered_G
            count = int((counted_G & ~covered_G).sum())
        elif kind in ("classification", "localization"):
            truth_X, first_X = np.unique(target_D[own_D], return_index=True)  # the highest score of each true box
            fixed_X = own_D[first_X[~taken_G[truth_X]]]
            outcome_D[fixed_X] = HIT
            label_D[fixed_X] = matches.label_G[target_D[fixed_X]]
        after = _ap50(matches, outcome_D, label_D, left_G)
        result[kind] = {"count": count, "ap50_gain": None if base is None or after is None else after - base}
    return result


def _kinds(matches: Matches) -> tuple[Array, Array]:
    """The place in KINDS of each false detection, -1: not false; and the true box that it would have found, if it is an
    error of the first two kinds, else -1."""
    own_D, other_D = matches.near_2D
    false_D = matches.outcome_ATD[0, 0] == FALSE
    tests = {
        "localization": (own_D >= _BACKGROUND) & (own_D < _FOREGROUND),
        "classification": other_D >= _FOREGROUND,
        "duplicate": own_D >= _FOREGROUND,
        "background": np.maximum(own_D, other_D) < _BACKGROUND,
        "both": np.ones_like(false_D),
    }
    kind_D = np.select([false_D & test_D for test_D in tests.values()], [KINDS.index(kind) for kind in tests], -1)
    own_truth_D, other_truth_D = matches.near_truth_2D
    return kind_D, np.where(kind_D == 0, other_truth_D, np.where(kind_D == 1, own_truth_D, -1))


def _ap50(matches: Matches, outcome_D: Array, label_D: Array, left_G: Array) -> float | None:
    """The mean of these outcomes' average precision over the classes with boxes to be found; 1 for a class of which
    none is left in `left_G`."""
    found: list[float] = []
    for label in np.unique(matches.label_G[matches.counted_AG[0]]):
        hit_D = outcome_D[(label_D == label) & (outcome_D != IGNORED)] == HIT
        positives = int((matches.label_G[left_G] == label).sum())
        curve_RQ = interpolated(hit_D, np.ones((1, len(hit_D)), np.int64), np.array([positives]))
        found.append(float(curve_RQ.mean()) if positives else 1.0)
    return float(np.mean(found)) if found else None


def best_threshold(matches: Matches) -> float | None:
    """Return the score threshold with the best F1 over all classes: halfway between the score of the last detection
    that it keeps and the next lower one, so that rounding does not move a detection across it. Of equal ones the
    highest; None without a hit."""
    used_D = matches.outcome_ATD[0, 0] != IGNORED
    score_D = matches.score_D[used_D]
    right_D = np.cumsum(matches.outcome_ATD[0, 0, used_D] == HIT)
    if not len(right_D) or not right_D[-1]:
        return None
    f1_D = 2 * right_D / (np.arange(1, len(right_D) + 1) + matches.counted_AG[0].sum())
    last_D = np.append(score_D[1:] < score_D[:-1], True)  # equal scores stay together
    best = int(np.where(last_D, f1_D, -1).argmax())
    return float(score_D[best] if best + 1 == len(score_D) else (score_D[best] + score_D[best + 1]) / 2)


def _above(matches: Matches, threshold: float | None) -> Array:
    """Which detections have a score of at least the threshold; None: all."""
    return matches.score_D >= (-math.inf if threshold is None else threshold)


def counts_at(matches: Matches, threshold: float | None) -> list[dict[str, Any]]:
    """Return for each class, and last for all: `count` of true boxes, those `found`, `false` detections, `precision`,
    `recall` and `f1` (None where the divisor is 0), of detections at or above the threshold."""
    above_D, classes = _above(matches, threshold), matches.classes
    true_K = np.bincount(matches.label_G[matches.counted_AG[0]], minlength=classes)
    outcome_D = matches.outcome_ATD[0, 0]
    hit_K, false_K = (
        np.bincount(matches.label_D[above_D & (outcome_D == kind)], minlength=classes) for kind in (HIT, FALSE)
    )
    rows = [(*row,) for row in np.stack([true_K, hit_K, false_K], 1).tolist()]
    rows.append((int(true_K.sum()), int(hit_K.sum()), int(false_K.sum())))
    return [
        {
            "count": count, "found": hits, "false": false, "precision": hits / (hits + false) if hits + false else None,
            "recall": hits / count if count else None,
            "f1": 2 * hits / (count + hits + false) if count + hits + false else None,
        }
        for count, hits, false in rows
    ]  # fmt: skip


def confusion(matches: Matches, threshold: float | None) -> Array:
    """Return counts int64 [K + 1, K + 1] of detections at or above the threshold. Rows: true classes, then background;
    columns: predicted classes, then missed.

    Hits are on the diagonal. A false detection counts as confused with the box of another class that it overlaps most,
    if by 0.5 or more and if nothing else finds that box; else it is in the row of background.
    """
    classes = matches.classes
    table = np.zeros((classes + 1, classes + 1), np.int64)
    above_D, outcome_D = _above(matches, threshold), matches.outcome_ATD[0, 0]
    hit_D, false_D = (np.flatnonzero(above_D & (outcome_D == kind)) for kind in (HIT, FALSE))
    free_G = matches.counted_AG[0].copy()
    free_G[matches.truth_D[hit_D]] = False
    np.add.at(table, (matches.label_D[hit_D], matches.label_D[hit_D]), 1)
    for place in false_D.tolist():
        truth, label = matches.near_truth_2D[1, place], matches.label_D[place]
        confused = matches.near_2D[1, place] >= _FOREGROUND and free_G[truth]
        table[matches.label_G[truth] if confused else classes, label] += 1
        if confused:
            free_G[truth] = False
    table[:classes, classes] = np.bincount(matches.label_G[free_G], minlength=classes)
    return table


def image_outcomes(
    found: Detections, own: OwnBoxes, classes: int, threshold: float | None
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Return of one image: the outcome of each detection, FALSE, HIT or IGNORED, -1 below the threshold; which true
    boxes are found, and which are missed, bool [M]."""
    matches = match_image(found, own, classes)
    above_D = matches.score_D >= (-math.inf if threshold is None else threshold)
    right_D = np.where(above_D, matches.outcome_ATD[0, 0], -1)
    outcome_N = np.full(len(found.label_N), -1)
    outcome_N[matches.place_D] = right_D
    found_M = np.zeros(len(own.label_M), np.bool_)
    found_M[matches.truth_D[right_D == HIT]] = True
    return outcome_N, found_M, matches.counted_AG[0] & ~found_M


def found_by_size(matches: Matches, threshold: float | None) -> list[dict[str, Any]]:
    """Return the true boxes by the root of their area in pixels, `side`, in steps of the root of two: `found` at or
    above the threshold, and `missed`."""
    counted_G = matches.counted_AG[0]
    found_G = np.zeros(len(counted_G), np.bool_)
    found_G[matches.truth_D[_above(matches, threshold) & (matches.outcome_ATD[0, 0] == HIT)]] = True
    step_G = np.floor(2 * np.log2(np.maximum(matches.side_G, 1e-3))).astype(int)
    steps = step_G[counted_G]
    if not len(steps):
        return []
    return [
        {
            "side": [round(2 ** (step / 2), 1), round(2 ** ((step + 1) / 2), 1)],
            "found": int((counted_G & found_G & (step_G == step)).sum()),
            "missed": int((counted_G & ~found_G & (step_G == step)).sum()),
        }
        for step in range(int(steps.min()), int(steps.max()) + 1)
    ]
