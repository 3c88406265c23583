"""Multi-label metrics against scikit-learn's, closed forms, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from vitral.errors import UserError
from vitral.evaluate.multilabel import average_precision, multilabel_metrics, sigmoid


@pytest.mark.parametrize(("count", "classes"), [(7, 2), (31, 5), (400, 12)])
@pytest.mark.parametrize("ties", [False, True])
def test_equal_to_scikit_learn(count: int, classes: int, ties: bool) -> None:
    random = np.random.default_rng([count, classes])
    logits = random.normal(size=(count, classes)) * 3
    logits = np.round(logits) if ties else logits
    labels = random.random((count, classes)) < 0.3
    labels[0] = True
    undefined: Any = np.nan
    names = [f"c{index}" for index in range(classes)]
    found = multilabel_metrics(logits, labels, names)
    said = logits >= 0
    precisions = [average_precision_score(labels[:, k], logits[:, k]) for k in range(classes)]
    assert [found["per_class"][name]["ap"] for name in names] == pytest.approx(precisions, abs=1e-12)
    assert found["map"] == pytest.approx(np.mean(precisions), abs=1e-12)
    assert found["micro_f1"] == pytest.approx(f1_score(labels, said, average="micro"))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, said, average="macro", zero_division=undefined))
    for k, name in enumerate(names):
        row = found["per_class"][name]
        for key, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
            expected = score(labels[:, k], said[:, k], zero_division=undefined)
            assert (row[key] if row[key] is not None else np.nan) == pytest.approx(expected, nan_ok=True), (name, key)
    assert found["exact_match"] == (labels == said).all(axis=1).mean()


def test_closed_forms() -> None:
    assert average_precision([3, 2, 1], [True, False, True]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([1, 1, 1, 1], [True, False, False, True]) == 0.5
    assert average_precision([1, 2], [False, False]) is None
    assert sigmoid([-1000.0, 0.0, 1000.0]).tolist() == [0.0, 0.5, 1.0]
    found = multilabel_metrics([[2.0, -2.0], [2.0, -2.0]], [[1, 0], [1, 0]], ("a", "b"))
    assert found["map"] == 1.0
    assert found["per_class"]["b"] == {"ap": None, "precision": None, "recall": None, "f1": None, "count": 0}
    assert found["macro_f1"] == 1.0
    assert found["loss"] == pytest.approx(np.log1p(np.exp(-2)))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[0.0, 1.0]], [0], "do not match"),
        ([[0.0, np.nan]], [[0, 1]], "aren't finite"),
        ([[0.0, 1.0]], [[0, 2]], "0 and 1"),
        ([[0.0, 1.0]], [[0, 0]], "no image has any class"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "no samples"),
    ],
)
def test_what_is_refused(logits: object, labels: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        multilabel_metrics(logits, labels, ("a", "b"))  # type: ignore[arg-type]
