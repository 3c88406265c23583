"""Calibration of a classifier: expected calibration error, temperature scaling. NumPy; SciPy to fit a temperature.

Shape letters: N samples, C classes, K bins of confidence.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitral.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TEMPERATURES = (0.01, 100.0)  # where fit_temperature looks


class ReliabilityBins(NamedTuple):
    """Samples sorted by confidence into K equal slices of [0,1]: mean confidence and accuracy in [0,1] (NaN where a
    slice is empty) and the number of samples."""

    confidence_K: Floats
    accuracy_K: Floats
    count_K: Ints


def checked(scores_NC: ArrayLike, labels_N: ArrayLike) -> tuple[Floats, Ints]:
    """Scores as float64 [N,C] and labels as int64 [N], in 0..C-1. Raises UserError for no samples, other shapes, labels
    that are no class indices, and scores that aren't finite."""
    scores, labels = np.asarray(scores_NC), np.asarray(labels_N)
    if scores.ndim != 2 or labels.ndim != 1 or len(scores) != len(labels):
        raise UserError(
            "shapes of scores and labels do not match",
            got=f"{scores.shape} and {labels.shape}",
            expected="(N, C) and (N,)",
        )
    if scores.size == 0:
        raise UserError("no samples to evaluate", got=f"scores of shape {scores.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError("labels must be class indices", got=labels.dtype, expected="whole numbers")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        expected = f"0 to {scores.shape[1] - 1}, the classes that the model knows"
        raise UserError("labels out of range", got=f"{labels.min()} to {labels.max()}", expected=expected)
    if not np.isfinite(scores).all():
        broken = int((~np.isfinite(scores)).any(axis=1).sum())
        hint = "Did the training diverge, or do the images hold NaN?"
        raise UserError(
            "the model's scores aren't finite", got=f"NaN or infinity in {broken} of {len(scores)}", hint=hint
        )
    return scores.astype(np.float64), labels.astype(np.int64)


def _log_softmax(logits_NC: Floats) -> Floats:
    shifted_NC = logits_NC - logits_NC.max(axis=1, keepdims=True)
    return shifted_NC - np.log(np.exp(shifted_NC).sum(axis=1, keepdims=True))


def softmax(logits_NC: ArrayLike) -> Floats:
    """Probabilities [N,C] in [0,1], rows summing to 1, in float64; safe for logits of any size."""
    return np.exp(_log_softmax(np.asarray(logits_NC, dtype=np.float64)))


def negative_log_likelihood(logits_NC: ArrayLike, labels_N: ArrayLike, temperature: float = 1.0) -> float:
    """Mean of -log softmax(logits / temperature)[label], in nats; at temperature 1 the plain cross-entropy. Raises
    UserError as `checked` does, and for a temperature that isn't positive."""
    logits, labels = checked(logits_NC, labels_N)
    return _mean_loss(logits / positive(temperature), labels)


def _mean_loss(logits_NC: Floats, labels_N: Ints) -> float:
    return float(-_log_softmax(logits_NC)[np.arange(len(labels_N)), labels_N].mean())


def positive(temperature: float) -> float:
    """The temperature itself. Raises UserError unless it is positive and finite."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError("wrong temperature", got=temperature, expected="a positive number")
    return temperature


def reliability_bins(probabilities_NC: ArrayLike, labels_N: ArrayLike, bins: int = 15) -> ReliabilityBins:
    """Confidence (the largest probability) against accuracy, in `bins` slices ((k-1)/K, k/K] of [0,1].

    The prediction is the largest probability, the lowest class index among equals. Raises UserError as `checked` does,
    for rows that aren't probabilities (logits, say) and for fewer than one bin. Guo et al. 2017 (arXiv 1706.04599),
    section 2.
    """
    probabilities, labels = checked(probabilities_NC, labels_N)
    if bins < 1:
        raise UserError("wrong number of bins", got=bins, expected="1 or more")
    # Half precision sums to 1 within about 1e-2.
    if probabilities.min() < 0 or probabilities.max() > 1.01 or np.abs(probabilities.sum(axis=1) - 1).max() > 1e-2:
        raise UserError(
            "these aren't probabilities", expected="rows in [0,1] that sum to 1", hint="Apply softmax first."
        )
    confidence_N = np.minimum(probabilities.max(axis=1), 1.0)
    right_N = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    edges = np.arange(bins + 1) / bins
    bin_N = np.maximum(np.searchsorted(edges, confidence_N, side="left") - 1, 0)
    count_K = np.bincount(bin_N, minlength=bins).astype(np.int64)
    divisor_K = np.where(count_K > 0, count_K, np.nan)
    return ReliabilityBins(
        np.bincount(bin_N, weights=confidence_N, minlength=bins) / divisor_K,
        np.bincount(bin_N, weights=right_N, minlength=bins) / divisor_K,
        count_K,
    )


def expected_calibration_error(probabilities_NC: ArrayLike, labels_N: ArrayLike, bins: int = 15) -> float:
    """Mean distance |accuracy - confidence| over the bins, weighted by their samples: 0 (calibrated) to 1.

    Few samples give a positive value even for a calibrated model. Raises as `reliability_bins` does. Guo et al. 2017
    (arXiv 1706.04599), eq. 3, with their 15 bins of equal width.
    """
    confidence_K, accuracy_K, count_K = reliability_bins(probabilities_NC, labels_N, bins)
    return float(np.nansum(np.abs(accuracy_K - confidence_K) * count_K) / count_K.sum())


def auroc(inside_N: ArrayLike, outside_N: ArrayLike) -> float:
    """The probability that a score of `inside_N` is larger than one of `outside_N`, ties counted half: the area under
    the ROC curve of telling them apart, 0.5 for no difference. The two may differ in length. Raises UserError without
    scores and for NaN."""
    from scipy.stats import rankdata  # pyright: ignore[reportMissingTypeStubs]

    inside, outside = (np.asarray(each, dtype=np.float64).ravel() for each in (inside_N, outside_N))
    if not (len(inside) and len(outside)) or np.isnan(inside).any() or np.isnan(outside).any():
        raise UserError("scores of both kinds are needed, without NaN", got=f"{len(inside)} and {len(outside)} scores")
    ranks: Any = rankdata(np.concatenate([inside, outside]))
    wins = float(ranks[: len(inside)].sum()) - len(inside) * (len(inside) + 1) / 2
    return wins / (len(inside) * len(outside))


def helpful_temperature(logits_NC: ArrayLike, labels_N: ArrayLike) -> float:
    """The fitted temperature where fitting helps on data that it was not fitted on, else 1.

    Each half of the samples (every second one) is scaled by the temperature of the other half: both the loss and the
    expected calibration error must be lower than unscaled, summed over the halves. Raises UserError as `checked` does.
    """
    logits, labels = checked(logits_NC, labels_N)
    if len(labels) < 2:
        return 1.0
    before, after = np.zeros(2), np.zeros(2)
    for start in (0, 1):
        fitted = fit_temperature(logits[start::2], labels[start::2])
        rest, truth = logits[1 - start :: 2], labels[1 - start :: 2]
        before += _mean_loss(rest, truth), expected_calibration_error(softmax(rest), truth)
        after += _mean_loss(rest / fitted, truth), expected_calibration_error(softmax(rest / fitted), truth)
    return fit_temperature(logits, labels) if (after < before).all() else 1.0


def fit_temperature(logits_NC: ArrayLike, labels_N: ArrayLike) -> float:
    """The T in [0.01, 100] with the least mean negative log likelihood of softmax(logits / T).

    Fit it on validation data and report on other data. Predictions don't change. Raises UserError as `checked` does.
    Guo et al. 2017 (arXiv 1706.04599), section 4.2. Ours: the target of the true class is 1 - 1 / (N + 2), the rest
    spread evenly, as in Platt scaling (Platt 1999); without that, N samples that are all right would require T = 0.
    """
    from scipy.optimize import minimize_scalar  # pyright: ignore[reportMissingTypeStubs]

    logits, labels = checked(logits_NC, labels_N)
    doubt, others = 1 / (len(labels) + 2), max(logits.shape[1] - 1, 1)
    weight_NC = np.full(logits.shape, doubt / others)
    weight_NC[np.arange(len(labels)), labels] = 1 - doubt

    def loss(log_temperature: float) -> float:
        return float(-(weight_NC * _log_softmax(logits * math.exp(-log_temperature))).sum(axis=1).mean())

    # Convex in 1/T, so there is one minimum in log T too.
    low, high = (math.log(temperature) for temperature in TEMPERATURES)
    found: Any = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-7})
    return math.exp(float(found.x))
