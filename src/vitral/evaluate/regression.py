"""Metrics of regression: errors and correlations, with bootstrap intervals.

Shape letters: N samples, T targets, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitral.errors import UserError

Floats = NDArray[np.float64]
RESAMPLES = 1000
NAMES = ("mae", "rmse", "r2", "spearman")


def regression_metrics(
    predicted_NT: ArrayLike,
    true_NT: ArrayLike,
    targets: Sequence[str],
    train_mean: Sequence[float],
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Return all metrics of a regression evaluation, ready for JSON; errors are in the units of the targets.

    `mae` and `rmse`, mean absolute and root mean squared error; `r2`, 1 - squared error over the variance of these
    samples; `spearman`, the correlation of ranks; each with its interval NAME_interval, percentiles 2.5 and 97.5 of
    `resamples` bootstrap resamples of the images (seed 0; Efron 1979; 0: no intervals); `baseline_mae` of always
    predicting `train_mean`; `count`. Of several targets these are means over the targets, and `per_target` has each. R2
    and Spearman are None where the true numbers are all equal. Raises UserError for other shapes, no samples and
    numbers that are not finite.
    """
    predicted, true = np.asarray(predicted_NT, np.float64), np.asarray(true_NT, np.float64)
    if predicted.ndim != 2 or predicted.shape != true.shape or predicted.shape[1] != len(targets):
        got = f"{predicted.shape} and {true.shape} for {len(targets)} targets"
        raise UserError("shapes of predictions and targets do not match", got=got, expected="(N, T) and (N, T)")
    if not len(true):
        raise UserError("no samples to evaluate", got="no numbers")
    if not np.isfinite(predicted).all():
        raise UserError("the model's outputs aren't finite", hint="Did the training diverge?")
    found = {name: function(predicted.T, true.T) for name, function in _METRICS.items()}
    draw, drawn = np.random.default_rng(0), {name: np.empty((resamples, len(targets))) for name in NAMES}
    for place in range(resamples):
        row_N = draw.integers(0, len(true), len(true))
        for name in NAMES:
            drawn[name][place] = _METRICS[name](predicted[row_N].T, true[row_N].T)
    baseline_T = np.abs(true - np.asarray(train_mean, np.float64)).mean(0)
    values: dict[str, Any] = {}
    for name in NAMES:
        values |= _with_interval(name, found[name].mean(), drawn[name].mean(1))
    per_target: dict[str, dict[str, Any]] = {}
    for t, target in enumerate(targets):
        per_target[target] = {"baseline_mae": float(baseline_T[t])}
        for name in NAMES:
            per_target[target] |= _with_interval(name, found[name][t], drawn[name][:, t])
    return {**values, "baseline_mae": float(baseline_T.mean()), "count": len(true), "per_target": per_target}


def _with_interval(name: str, value: float, drawn_R: Floats) -> dict[str, Any]:
    if not np.isfinite(value):
        return {name: None}
    if not len(drawn_R):
        return {name: float(value)}
    low, high = np.quantile(drawn_R[np.isfinite(drawn_R)], (0.025, 0.975))
    return {name: float(value), f"{name}_interval": [float(low), float(high)]}


def _r2(predicted_TN: Floats, true_TN: Floats) -> Floats:
    spread_T = ((true_TN - true_TN.mean(1, keepdims=True)) ** 2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread_T > 0, 1 - ((predicted_TN - true_TN) ** 2).sum(1) / spread_T, np.nan)


def _spearman(predicted_TN: Floats, true_TN: Floats) -> Floats:
    from scipy.stats import rankdata  # pyright: ignore[reportMissingTypeStubs]

    one, two = (rankdata(each, axis=1) - (each.shape[1] + 1) / 2 for each in (predicted_TN, true_TN))
    size_T = np.sqrt((one**2).sum(1) * (two**2).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size_T > 0, (one * two).sum(1) / size_T, np.nan)


_METRICS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "mae": lambda predicted_TN, true_TN: np.abs(predicted_TN - true_TN).mean(1),
    "rmse": lambda predicted_TN, true_TN: np.sqrt(((predicted_TN - true_TN) ** 2).mean(1)),
    "r2": _r2,
    "spearman": _spearman,
}
