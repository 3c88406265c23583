"""Metrics of numbers against scikit-learn and SciPy, and in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from vitral.errors import UserError
from vitral.evaluate.regression import regression_metrics


def test_metrics_are_those_of_scikit_learn_and_scipy() -> None:
    random = np.random.default_rng(1)
    true = random.normal(size=(60, 2)) * [1, 30]
    true[:20, 0] = 0  # ties
    predicted = true + random.normal(size=(60, 2)) * [0.5, 10]
    found = regression_metrics(predicted, true, ("x", "y"), (0.5, 2.0))
    for t, name in enumerate(("x", "y")):
        one, two, row = true[:, t], predicted[:, t], found["per_target"][name]
        assert row["mae"] == pytest.approx(mean_absolute_error(one, two))
        assert row["rmse"] == pytest.approx(root_mean_squared_error(one, two))
        assert row["r2"] == pytest.approx(r2_score(one, two))
        assert row["spearman"] == pytest.approx(spearmanr(one, two)[0])
        assert row["baseline_mae"] == pytest.approx(np.abs(one - (0.5, 2.0)[t]).mean())
        low, high = row["mae_interval"]
        assert low < row["mae"] < high
    assert found["mae"] == pytest.approx(np.mean([row["mae"] for row in found["per_target"].values()]))
    assert found == regression_metrics(predicted, true, ("x", "y"), (0.5, 2.0)), "the seed is fixed"


def test_the_interval_of_a_mean_is_about_that_of_the_normal_distribution() -> None:
    errors = np.random.default_rng(0).exponential(size=(400, 1))
    low, high = regression_metrics(errors, np.zeros((400, 1)), ("x",), (0.0,))["mae_interval"]
    half = 1.96 * errors.std() / 20
    assert (low, high) == pytest.approx((errors.mean() - half, errors.mean() + half), abs=0.2 * half)


def test_without_spread_there_is_no_correlation() -> None:
    found = regression_metrics([[1.0], [2.0]], [[3.0], [3.0]], ("x",), (3.0,))
    assert (found["r2"], found["spearman"], found["mae"], found["baseline_mae"]) == (None, None, 1.5, 0.0)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(UserError, match="do not match"):
        regression_metrics([[1.0]], [[1.0, 2.0]], ("x",), (0.0,))
    with pytest.raises(UserError, match="finite"):
        regression_metrics([[np.nan]], [[1.0]], ("x",), (0.0,))
