"""Metrics against scikit-learn, intervals against closed forms, and logits that hold every sample once."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle
from torch import nn

from vitral.errors import UserError
from vitral.evaluate.calibration import expected_calibration_error, softmax
from vitral.evaluate.classification import classification_metrics, collect_logits, wilson_interval

Z = 1.959963984540054


@pytest.mark.parametrize(
    ("correct", "count"), [(95, 100), (1, 3), (355, 360), (9999, 10000), (0, 10), (10, 10), (1, 1)]
)
def test_wilson_limits_solve_the_score_equation(correct: int, count: int) -> None:
    """The limits are the p where |share - p| is z standard errors of p: the roots of a quadratic."""
    share = correct / count
    roots = np.roots([1 + Z * Z / count, -2 * share - Z * Z / count, share * share])
    assert wilson_interval(correct, count) == pytest.approx(sorted(roots.real), abs=1e-9)


def test_wilson_published_values() -> None:
    assert wilson_interval(81, 263) == pytest.approx(
        (0.2553, 0.3662), abs=5e-5
    )  # Newcombe 1998 (Stat. in Medicine 17:857)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson_interval(95, 100) == pytest.approx((0.8882, 0.9785), abs=5e-5)


def test_wilson_ends_are_exact() -> None:
    assert wilson_interval(0, 10) == (0.0, pytest.approx(Z * Z / (10 + Z * Z)))
    assert wilson_interval(10, 10) == (pytest.approx(10 / (10 + Z * Z)), 1.0)
    assert wilson_interval(7, 10, z=0.0) == pytest.approx((0.7, 0.7))


@pytest.mark.parametrize(("correct", "count"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(correct: int, count: int) -> None:
    with pytest.raises(UserError):
        wilson_interval(correct, count)


def case(classes: int, count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    random = np.random.default_rng(seed)
    labels_N = random.integers(0, classes, count)
    logits_NC = random.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels_N]
    return logits_NC, labels_N, [f"class {index}" for index in range(classes)]


@pytest.mark.parametrize("classes", [2, 3, 6, 30])
def test_metrics_are_scikit_learns(classes: int) -> None:
    logits_NC, labels_N, names = case(classes)
    found = classification_metrics(logits_NC, labels_N, names)
    predictions_N, each = logits_NC.argmax(axis=1), list(range(classes))
    assert found["top1"] == pytest.approx(oracle.accuracy_score(labels_N, predictions_N))
    assert found["confusion"] == oracle.confusion_matrix(labels_N, predictions_N, labels=each).tolist()
    assert found["loss"] == pytest.approx(oracle.log_loss(labels_N, softmax(logits_NC), labels=each))
    scores = oracle.precision_recall_fscore_support(labels_N, predictions_N, labels=each)
    for key, expected_C in zip(("precision", "recall", "f1", "count"), scores, strict=True):
        assert [found["per_class"][name][key] for name in names] == pytest.approx(np.asarray(expected_C).tolist())
    assert ("top5" in found) == (classes > 5)
    if classes > 5:
        assert found["top5"] == pytest.approx(oracle.top_k_accuracy_score(labels_N, logits_NC, k=5, labels=each))
    assert found["count"] == len(labels_N) == sum(map(sum, found["confusion"]))
    guess = int(np.bincount(labels_N).argmax())
    assert found["baseline_class"] == names[guess]
    assert found["baseline"] == pytest.approx(oracle.accuracy_score(labels_N, np.full(len(labels_N), guess)))
    assert found["top1_interval"] == list(wilson_interval(int((predictions_N == labels_N).sum()), len(labels_N)))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_temperature_changes_the_calibration_only() -> None:
    logits_NC, labels_N, names = case(10)
    plain, cooled = (classification_metrics(logits_NC, labels_N, names, temperature=t) for t in (1.0, 2.0))
    assert cooled.pop("ece") == expected_calibration_error(softmax(logits_NC / 2), labels_N)
    assert plain.pop("ece") == plain["ece_uncalibrated"] == expected_calibration_error(softmax(logits_NC), labels_N)
    assert plain == cooled


def test_ties_go_to_the_lowest_class_index() -> None:
    found = classification_metrics(np.zeros((20, 10), np.float32), np.arange(20) % 10, list("abcdefghij"))
    assert found["top1"] == 0.1
    assert found["top5"] == 0.5
    assert [row[0] for row in found["confusion"]] == [2] * 10


def test_what_cannot_be_told_is_null() -> None:
    found = classification_metrics([[9.0, 0.0, 0.0]] * 2, [0, 1], ["seen", "missed", "absent"])["per_class"]
    assert found["seen"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "count": 1}
    assert found["missed"] == {"precision": None, "recall": 0.0, "f1": 0.0, "count": 1}
    assert found["absent"] == {"precision": None, "recall": None, "f1": None, "count": 0}


@pytest.mark.parametrize(
    ("logits", "names", "says"),
    [
        ([[1.0, 2.0]], ["a"], "do(es)? not match"),
        ([[1.0, 2.0]], ["a", "a"], "duplicate"),
        ([[1.0, math.nan]], ["a", "b"], "finite"),
        ([[1.0, math.inf]], ["a", "b"], "finite"),
    ],
)
def test_wrong_input_is_refused(logits: list[list[float]], names: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        classification_metrics(logits, [0], names)


class Recorder(nn.Module):
    """Gives the first three pixels as logits, drops half of them while training, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.frozen = nn.Dropout(0.5), nn.BatchNorm1d(3)
        self.weight = nn.Parameter(torch.ones(()))
        self.modes: list[bool] = []

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        self.modes.append(self.training or self.drop.training)
        return self.drop(images_BCHW.flatten(1)[:, :3] * self.weight)


def batches(count: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images = torch.arange(count * 4, dtype=torch.float32).reshape(count, 1, 2, 2)
    return list(zip(images.split(size), torch.arange(count).split(size), strict=True))


@pytest.mark.parametrize("size", [1, 4, 10, 16])
def test_every_sample_is_counted_once_in_order(size: int) -> None:
    logits_NC, labels_N = collect_logits(Recorder(), iter(batches(10, size)))
    assert (logits_NC.dtype, labels_N.dtype) == (np.float32, np.int64)
    assert labels_N.tolist() == list(range(10))
    assert logits_NC[:, 0].tolist() == [4.0 * index for index in range(10)]


def test_modes_are_as_they_were_also_after_an_error() -> None:
    model = Recorder().train()
    model.frozen.eval()
    before = [module.training for module in model.modules()]
    collect_logits(model, batches(6, 4))
    assert [module.training for module in model.modules()] == before
    assert model.modes == [False, False]
    with pytest.raises(UserError, match="do not match"):
        collect_logits(model, [(torch.zeros(2, 1, 2, 2), torch.zeros(3, dtype=torch.int64))])
    assert [module.training for module in model.modules()] == before


def test_half_precision_logits_and_no_batches() -> None:
    model = Recorder().to(torch.bfloat16)
    logits_NC, _ = collect_logits(model, [(x.to(torch.bfloat16), y.to(torch.int32)) for x, y in batches(3, 2)])
    assert logits_NC.dtype == np.float32
    with pytest.raises(UserError, match="no samples"):
        collect_logits(model, [])
