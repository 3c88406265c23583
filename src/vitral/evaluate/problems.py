"""The kinds of problem that a model can be for, and all that differs between them: one row each.

Shape letters: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vitral.evaluate.calibration import Floats, helpful_temperature, softmax
from vitral.evaluate.classify import classification_metrics
from vitral.evaluate.multilabel import exactly_right, multilabel_metrics, sigmoid


class Problem(NamedTuple):
    """metrics(logits, labels, classes, temperature): what an evaluation reports. probabilities(logits): scores in
    [0,1]. temperature(logits, labels): fitted on validation data; 1 where it does not help there.
    right(logits, labels): which samples are right.
    score: the metric that chooses the best step; right_score: the one that `right` is the mean of. headline: the
    metrics that a model folder keeps."""

    metrics: Callable[[ArrayLike, ArrayLike, Sequence[str], float], dict[str, Any]]
    probabilities: Callable[[ArrayLike], Floats]
    temperature: Callable[[ArrayLike, ArrayLike], float]
    right: Callable[[ArrayLike, ArrayLike], Any]
    score: str
    right_score: str
    headline: tuple[str, ...]
    says: str


def _right(logits_NK: ArrayLike, labels_N: ArrayLike) -> Any:
    return np.asarray(logits_NK).argmax(axis=1) == np.asarray(labels_N)


def _as_they_are(logits_NK: ArrayLike, labels_NK: ArrayLike) -> float:
    """Sigmoids are not tempered: at 0.5 a decision would stay as it is, and with several classes an image there is no
    one confidence to calibrate."""
    return 1.0


PROBLEMS: dict[str, Problem] = {
    "single_label_classification": Problem(
        classification_metrics, softmax, helpful_temperature, _right, "top1", "top1",
        ("top1", "top1_interval", "count", "ece", "loss"), "top-1",
    ),
    "multi_label_classification": Problem(
        multilabel_metrics, sigmoid, _as_they_are, exactly_right, "map", "exact_match",
        ("map", "micro_f1", "macro_f1", "exact_match", "exact_match_interval", "count", "loss"), "mAP",
    ),
}  # fmt: skip
