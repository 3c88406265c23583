"""Metrics of multi-label classification: average precision, and F1 at a probability of 0.5.

Shape letters: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitral.errors import UserError
from vitral.evaluate.calibration import Floats
from vitral.evaluate.classification import check_classes, per_class_scores, ratio, wilson_interval

Hot = NDArray[np.bool_]


def sigmoid(logits_NK: ArrayLike) -> Floats:
    """Probabilities [N, K] in [0,1] of each class separately, in float64; safe for logits of any size."""
    return np.exp(-np.logaddexp(0, -np.asarray(logits_NK, np.float64)))


def checked_hot(logits_NK: ArrayLike, labels_NK: ArrayLike) -> tuple[Floats, Hot]:
    """Return logits as float64 and labels as bool, both [N, K]. Raises UserError for other shapes, values other than
    0 and 1, no samples, and logits that aren't finite."""
    logits, labels = np.asarray(logits_NK, np.float64), np.asarray(labels_NK)
    if logits.ndim != 2 or labels.shape != logits.shape:
        raise UserError(
            "shapes of scores and labels do not match",
            got=f"{logits.shape} and {labels.shape}",
            expected="(N, K) and (N, K)",
        )
    if logits.size == 0:
        raise UserError("no samples to evaluate", got=f"scores of shape {logits.shape}")
    if not np.isin(labels, (0, 1)).all():
        raise UserError("each label must be 0 (class absent) or 1 (class present)", expected="0 and 1")
    if not np.isfinite(logits).all():
        broken = int((~np.isfinite(logits)).any(axis=1).sum())
        raise UserError(
            "the model's scores aren't finite", got=f"NaN or infinity in {broken} of {len(logits)}",
            hint="Did the training diverge, or do the images hold NaN?",
        )  # fmt: skip
    return logits, labels.astype(np.bool_)


def average_precision(scores_N: ArrayLike, labels_N: ArrayLike) -> float | None:
    """Return the area under the steps of precision over recall: the sum over falling thresholds of precision times the
    recall gained; None without a positive sample. Equal scores are one threshold, so their order does not matter."""
    from sklearn.metrics import average_precision_score  # pyright: ignore[reportMissingTypeStubs]

    return float(average_precision_score(labels_N, scores_N)) if np.any(labels_N) else None


def exactly_right(logits_NK: ArrayLike, labels_NK: ArrayLike) -> Hot:
    """Return which samples [N] have every class correct at a probability of 0.5."""
    logits, labels = checked_hot(logits_NK, labels_NK)
    return ((logits >= 0) == labels).all(axis=1)


def multilabel_metrics(
    logits_NK: ArrayLike, labels_NK: ArrayLike, classes: Sequence[str], temperature: float = 1.0
) -> dict[str, Any]:
    """Return all metrics of a multi-label evaluation, ready for JSON; shares are fractions in [0,1].

    `map`: mean average precision over the classes that occur; `micro_f1` over all decisions, `macro_f1` the mean over
    the classes that occur or are predicted, both at a probability of 0.5 (logit 0); `exact_match`, the share of images
    with every class correct, with its 95 % Wilson interval `exact_match_interval`; `count` images; `loss`, the mean
    binary cross-entropy of all decisions, nats; `per_class` {name: {ap, precision, recall, f1, count}} with None where
    the divisor is 0. `temperature` divides the logits: it must be positive, and changes none of these but `loss`, which
    stays that of the logits as they are. Raises UserError as `checked_hot` does, and where no class occurs at all.
    """
    assert temperature > 0, temperature
    logits, labels = checked_hot(logits_NK, labels_NK)
    check_classes(classes, logits.shape[1])
    predicted = logits >= 0
    precisions = [average_precision(logits[:, index], labels[:, index]) for index in range(logits.shape[1])]
    occurring = [value for value in precisions if value is not None]
    if not occurring:
        raise UserError("average precision is undefined: no image has any class")
    hits_K, truth_K, pred_K = (array.sum(axis=0) for array in (predicted & labels, labels, predicted))
    scores = per_class_scores(hits_K, truth_K, pred_K, classes)
    per_class = {name: {"ap": ap, **row} for ap, (name, row) in zip(precisions, scores.items(), strict=True)}
    f1s = [row["f1"] for row in per_class.values() if row["f1"] is not None]
    right, count = int((predicted == labels).all(axis=1).sum()), len(logits)
    return {
        "map": float(np.mean(occurring)),
        "micro_f1": ratio(2 * hits_K.sum(), truth_K.sum() + pred_K.sum()),
        "macro_f1": float(np.mean(f1s)),
        "exact_match": right / count,
        "exact_match_interval": list(wilson_interval(right, count)),
        "count": count,
        "loss": float(np.mean(np.logaddexp(0, np.where(labels, -logits, logits)))),
        "per_class": per_class,
    }
