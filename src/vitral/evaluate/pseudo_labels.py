"""Quality of pseudo-labels: how many predictions on unlabeled images are confident, and how many of them are right.

Shape letters: N images, C classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from vitral.evaluate.classification import wilson_interval

THRESHOLDS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
UNSURE = 0.5


class PseudoLabelRow(NamedTuple):
    """Share of the images whose confidence is above the threshold, in [0,1], and the share of these that are right;
    None where there are none, or without labels."""

    threshold: float
    share: float
    right: float | None


class PseudoLabelQuality(NamedTuple):
    """Pseudo-labels of so many `images`: rows by threshold; the share of all that are right, with its 95 % interval, or
    None without labels; and the share with a confidence of at most 0.5."""

    images: int
    rows: tuple[PseudoLabelRow, ...]
    right: float | None
    interval: tuple[float, float] | None
    unsure: float

    def summary(self) -> dict[str, Any]:
        """Return what summary.json holds."""
        known = {"pseudo_right": self.right, "pseudo_right_interval": list(self.interval)} if self.interval else {}
        return {**known, "pseudo_unsure": self.unsure}


def pseudo_label_quality(logits_NC: NDArray[Any], labels_N: NDArray[Any] | None) -> PseudoLabelQuality:
    """Measure the pseudo-labels of these logits. labels_N: the labels that training did not see, where known."""
    p_NC = softmax(logits_NC.astype(np.float64), axis=1)
    confidence_N = p_NC.max(axis=1)
    right_N = None if labels_N is None else p_NC.argmax(axis=1) == labels_N
    rows: list[PseudoLabelRow] = []
    for threshold in THRESHOLDS:
        above_N = confidence_N > threshold
        right = None if right_N is None or not above_N.any() else float(right_N[above_N].mean())
        rows.append(PseudoLabelRow(threshold, float(above_N.mean()), right))
    interval = None if right_N is None else wilson_interval(int(right_N.sum()), len(right_N))
    unsure = float((confidence_N <= UNSURE).mean())
    return PseudoLabelQuality(len(p_NC), tuple(rows), rows[0].right, interval, unsure)
