"""The linear probe against scikit-learn's logistic regression."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vitral.errors import UserError
from vitral.evaluate import linear_probe as module
from vitral.evaluate.config import LinearConfig
from vitral.evaluate.features import Embedded
from vitral.evaluate.linear_probe import fit, linear


def case(count: int, seed: int, width: int = 6, classes: int = 4, dtype: torch.dtype = torch.float64) -> Embedded:
    generator = torch.Generator().manual_seed(seed)
    centers_CD = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    labels_N = torch.randint(0, classes, (count,), generator=generator)
    features_ND = centers_CD[labels_N] + 1.2 * torch.randn(count, width, generator=generator)
    scale_D = torch.tensor([1.0, 10.0, 0.1, 1.0, 3.0, 1.0])[:width]
    return Embedded((features_ND * scale_D + 0.5).to(dtype), labels_N)


def oracle(train: Embedded, l2: float) -> Any:
    """scikit-learn minimizes C * sum of losses + |weight|^2 / 2."""
    model = LogisticRegression(C=1 / (l2 * len(train.labels_N)), tol=1e-10, max_iter=5000)
    return model.fit(train.features_ND.numpy(), train.labels_N.numpy())


@pytest.mark.parametrize("rows", [16_384, 7])
@pytest.mark.parametrize("l2", [1e-3, 0.3])
def test_the_fit_is_scikit_learns(l2: float, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", rows)
    train = case(101, seed=1)
    head, expected = fit(train, 4, l2, batchnorm=False, steps=2000), oracle(train, l2)
    np.testing.assert_allclose(head.weight_CD.numpy(), expected.coef_, atol=1e-4)
    bias_C = head.bias_C.numpy()
    np.testing.assert_allclose(bias_C - bias_C.mean(), expected.intercept_ - expected.intercept_.mean(), atol=1e-4)
    evaluated = case(67, seed=2)
    assert head.predict(evaluated.features_ND).tolist() == expected.predict(evaluated.features_ND.numpy()).tolist()


def test_batchnorm_is_standardizing_by_train() -> None:
    train, evaluated = case(101, seed=1), case(300, seed=2)
    expected: Any = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (1e-2 * 101), tol=1e-10, max_iter=5000))
    expected.fit(train.features_ND.numpy(), train.labels_N.numpy())
    head = fit(train, 4, 1e-2, batchnorm=True, steps=2000)
    np.testing.assert_allclose(head.weight_CD.numpy(), expected[1].coef_, atol=1e-4)
    assert head.predict(evaluated.features_ND).tolist() == expected.predict(evaluated.features_ND.numpy()).tolist()


def test_the_penalty_is_the_best_on_held_out_train_samples() -> None:
    train, evaluated = case(200, seed=1), case(500, seed=2)
    config = LinearConfig(l2=(1e-4, 1e-2, 1.0, 100.0), batchnorm=False, val_fraction=0.3, steps=3000)
    found = dict(linear(train, evaluated, 4, config))
    kept, held = module._hold_out(train, 0.3)
    assert len(held.labels_N) == 60
    assert {tuple(row) for row in kept.features_ND.tolist()}.isdisjoint(map(tuple, held.features_ND.tolist()))
    expected = {str(l2): oracle(kept, l2).score(held.features_ND.numpy(), held.labels_N.numpy()) for l2 in config.l2}
    assert found["val_top1"] == pytest.approx(expected)
    assert len(set(expected.values())) > 2
    assert found["val_top1"][str(found["l2"])] == max(expected.values())
    final = oracle(train, found["l2"])
    assert found["top1"] == final.score(evaluated.features_ND.numpy(), evaluated.labels_N.numpy())
    assert found["count"] == 500


def test_the_judged_samples_choose_nothing() -> None:
    train, evaluated = case(200, seed=1), case(50, seed=2)
    one = dict(linear(train, evaluated, 4, LinearConfig()))
    other = dict(linear(train, evaluated._replace(labels_N=(evaluated.labels_N + 1) % 4), 4, LinearConfig()))
    assert (one["l2"], one["val_top1"]) == (other["l2"], other["val_top1"])
    assert one["top1"] != other["top1"]


def test_single_precision_is_enough() -> None:
    train, evaluated = case(400, seed=1, dtype=torch.float32), case(300, seed=2, dtype=torch.float32)
    head = fit(train, 4, 1e-3, batchnorm=True, steps=500)
    double = fit(Embedded(train.features_ND.double(), train.labels_N), 4, 1e-3, batchnorm=True, steps=500)
    np.testing.assert_allclose(head.weight_CD.numpy(), double.weight_CD.numpy(), atol=2e-3)
    same = head.predict(evaluated.features_ND) == double.predict(evaluated.features_ND.double())
    assert same.double().mean() > 0.99


def test_one_penalty_needs_no_held_out_samples() -> None:
    train, evaluated = case(4, seed=1)._replace(labels_N=torch.arange(4)), case(20, seed=2)
    found = dict(linear(train, evaluated, 4, LinearConfig(l2=(0.5,))))
    assert (found["l2"], found["val_top1"]) == (0.5, {})
    with pytest.raises(UserError, match=r"(?s)no class has two.*one value"):
        dict(linear(train, evaluated, 4, LinearConfig()))


def test_a_classs_only_sample_is_never_held_out() -> None:
    labels_N = torch.tensor([0] * 10 + [1] * 10 + [2])
    train = Embedded(torch.randn(21, 3), labels_N)
    kept, held = module._hold_out(train, 0.5)
    assert torch.bincount(kept.labels_N).tolist() == [5, 5, 1]
    assert torch.bincount(held.labels_N).tolist() == [5, 5]
