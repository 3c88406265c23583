"""Calibration against slow loops, constructed cases and known temperatures. N samples, C classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vitral.errors import UserError
from vitral.evaluate.calibration import (
    auroc,
    expected_calibration_error,
    fit_temperature,
    helpful_temperature,
    negative_log_likelihood,
    reliability_bins,
    softmax,
)


def random_case(count: int = 500, classes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return 3 * random.normal(size=(count, classes)), random.integers(0, classes, count)


def slow_ece(probabilities_NC: np.ndarray, labels_N: np.ndarray, bins: int) -> float:
    total = 0.0
    for k in range(bins):
        inside = [
            (max(row), int(np.argmax(row) == label))
            for row, label in zip(probabilities_NC.tolist(), labels_N, strict=True)
            if k / bins < max(row) <= (k + 1) / bins
        ]
        if inside:
            confidence, accuracy = np.mean(inside, axis=0)
            total += len(inside) / len(labels_N) * abs(confidence - accuracy)
    return total


@pytest.mark.parametrize("bins", [1, 2, 10, 15, 100])
def test_ece_equals_a_slow_loop(bins: int) -> None:
    logits_NC, labels_N = random_case()
    probabilities_NC = softmax(logits_NC)
    found = expected_calibration_error(probabilities_NC, labels_N, bins)
    assert found == pytest.approx(slow_ece(probabilities_NC, labels_N, bins), abs=1e-12)


def test_bin_borders_belong_to_the_bin_below() -> None:
    probabilities_NC = np.array([[k / 15, 1 - k / 15] for k in range(8, 16)])
    counts = reliability_bins(probabilities_NC, np.zeros(8, int)).count_K
    assert counts.tolist() == [0] * 7 + [1] * 8


def test_calibrated_and_overconfident_models() -> None:
    labels_N = np.array([0] * 80 + [1] * 20)
    assert expected_calibration_error(np.tile([0.8, 0.2], (100, 1)), labels_N) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(np.tile([1.0, 0.0], (100, 1)), labels_N) == pytest.approx(0.2)
    assert expected_calibration_error(np.tile([0.6, 0.4], (100, 1)), labels_N) == pytest.approx(0.2)


def test_bins_hold_means_counts_and_nan_where_empty() -> None:
    bins = reliability_bins([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.0, 1.0]], [0, 1, 1, 1], bins=2)
    assert bins.count_K.tolist() == [0, 4]
    assert math.isnan(bins.confidence_K[0])
    assert math.isnan(bins.accuracy_K[0])
    assert bins.confidence_K[1] == pytest.approx((0.9 + 0.7 + 0.8 + 1.0) / 4)
    assert bins.accuracy_K[1] == pytest.approx(0.75)


def test_of_equal_probabilities_the_first_class_is_predicted() -> None:
    even_NC = np.full((2, 4), 0.25)
    assert reliability_bins(even_NC, [0, 3], bins=1).accuracy_K[0] == 0.5


def test_softmax_is_exact_and_safe() -> None:
    assert softmax([[0.0, math.log(3)]]) == pytest.approx(np.array([[0.25, 0.75]]))
    assert softmax([[1e5, 0.0], [-1e5, 0.0]]).tolist() == [[1, 0], [0, 1]]
    assert softmax(np.ones((1, 2), np.float32)).dtype == np.float64


def test_likelihood_is_torchs_cross_entropy() -> None:
    torch = pytest.importorskip("torch")
    logits_NC, labels_N = random_case()
    for temperature in (1.0, 2.5):
        expected = torch.nn.functional.cross_entropy(torch.tensor(logits_NC) / temperature, torch.tensor(labels_N))
        found = negative_log_likelihood(logits_NC, labels_N, temperature)
        assert found == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0, 12.0])
def test_temperature_of_logits_scaled_by_a_known_factor(factor: float) -> None:
    logits_NC, _ = random_case(count=40_000, classes=5)
    random = np.random.default_rng(1)
    labels_N = (logits_NC + random.gumbel(size=logits_NC.shape)).argmax(axis=1)  # drawn from softmax(logits)
    assert fit_temperature(factor * logits_NC, labels_N) == pytest.approx(factor, rel=0.02)


def test_temperature_is_the_least_loss_on_a_grid_and_scales_exactly() -> None:
    logits_NC, labels_N = random_case()
    labels_N[:350] = logits_NC[:350].argmax(axis=1)
    doubt, classes = 1 / (len(labels_N) + 2), logits_NC.shape[1]

    def loss(t: float) -> float:
        """Cross-entropy to targets with Platt's doubt, by torch's label smoothing: s / C on every class."""
        smoothing = doubt * classes / (classes - 1)
        scaled = torch.tensor(logits_NC) / t
        return torch.nn.functional.cross_entropy(scaled, torch.tensor(labels_N), label_smoothing=smoothing).item()

    fitted = fit_temperature(logits_NC, labels_N)
    assert loss(fitted) <= min(loss(t) for t in np.geomspace(0.1, 90, 400)) + 1e-9
    assert fit_temperature(4 * logits_NC, labels_N) == pytest.approx(4 * fitted, rel=1e-4)


@pytest.mark.parametrize("count", [1, 20, 5000])
def test_temperature_without_a_mistake_leaves_one_in_count_plus_two_of_doubt(count: int) -> None:
    logits_NC = np.tile([3.0, 0.0], (count, 1))
    # sigmoid(3 / T) = (N + 1) / (N + 2)
    assert fit_temperature(logits_NC, np.zeros(count, int)) == pytest.approx(3 / math.log(count + 1), rel=1e-4)


def test_a_temperature_is_kept_only_where_it_helps_on_other_samples() -> None:
    random = np.random.default_rng(5)
    truth_N = random.integers(0, 4, 4000)
    logits_NC = random.normal(size=(4000, 4)) + 2 * np.eye(4)[truth_N]
    drawn_N = np.array([random.choice(4, p=row_C) for row_C in softmax(logits_NC)])  # calibrated by construction
    assert helpful_temperature(3 * logits_NC, drawn_N) == fit_temperature(3 * logits_NC, drawn_N)
    assert fit_temperature(3 * logits_NC, drawn_N) == pytest.approx(3, rel=0.12)
    # Ten samples, the even ones right and sure, the odd ones wrong: what one half asks for spoils the other.
    labels_N = np.zeros(10, int)
    sure_NC = np.where(np.arange(10)[:, None] % 2 == 0, [[4.0, 0.0]], [[-4.0, 0.0]])
    assert fit_temperature(sure_NC, labels_N) > 1
    assert helpful_temperature(sure_NC[:1], labels_N[:1]) == 1
    assert helpful_temperature(sure_NC, labels_N) == 1


def test_temperature_stays_bounded() -> None:
    logits_NC, _ = random_case()
    assert fit_temperature(logits_NC, logits_NC.argmin(axis=1)) == pytest.approx(100, rel=1e-3)


@pytest.mark.parametrize(
    ("probabilities", "labels", "says"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "no samples"),
        (np.ones((2, 1)), [0, 0, 0], "do not match"),
        ([[0.5, 0.5]], [2], "out of range"),
        ([[0.5, 0.5]], [-1], "out of range"),
        ([[0.5, 0.5]], [0.0], "class indices"),
        ([[np.nan, 0.5]], [0], "finite"),
        ([[3.0, -2.0]], [0], "aren't probabilities"),
        ([[0.9, 0.9]], [0], "aren't probabilities"),
    ],
)
def test_wrong_input_is_refused(probabilities: object, labels: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        expected_calibration_error(probabilities, labels)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_wrong_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(UserError, match="temperature"):
        negative_log_likelihood([[1.0, 2.0]], [0], temperature)


@pytest.mark.parametrize(("inside", "outside"), [(7, 5), (1, 1), (40, 3)])
def test_auroc_is_the_share_of_won_pairs(inside: int, outside: int) -> None:
    rng = np.random.default_rng(inside)
    a, b = rng.integers(0, 6, inside) / 5, rng.integers(0, 6, outside) / 5
    won = [(x > y) + 0.5 * (x == y) for x in a for y in b]
    assert auroc(a, b) == pytest.approx(np.mean(won))
    assert auroc(b, a) == pytest.approx(1 - np.mean(won))


def test_auroc_at_its_ends_and_without_scores() -> None:
    assert auroc([0.9, 0.8], [0.1]) == 1
    assert auroc([0.1], [0.9, 0.8]) == 0
    for inside, outside in (([], [1.0]), ([1.0], []), ([float("nan")], [1.0])):
        with pytest.raises(UserError, match="scores of both kinds"):
            auroc(inside, outside)
