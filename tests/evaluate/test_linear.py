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
from vitral.evaluate import linear as module
from vitral.evaluate.config import LinearConfig
from vitral.evaluate.embedded import Embedded
from vitral.evaluate.linear import fit, linear


def case(count: int, seed: int, width: int = 6, classes: int = 4, dtype: torch.dtype = torch.float64) -> Embedded:
    generator = torch.Generator().manual_seed(seed)
    centres_CD = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    labels_N = torch.randint(0, classes, (count,), generator=generator)
    features_ND = centres_CD[labels_N] + 1.2 * torch.randn(count, width, generator=generator)
    scale_D = torch.tensor([1.0, 10.0, 0.1, 1.0, 3.0, 1.0])[:width]
    return Embedded((features_ND * scale_D + 0.5).to(dtype), labels_N)


def oracle(train: Embedded, l2: float) -> Any:
    """scikit-learn minimises C * sum of losses + |weight|^2 / 2."""
    model = LogisticRegression(C=1 / (l2 * len(train.labels_N)), tol=1e-10, max_iter=5000)
    return model.fit(train.features_ND.numpy(), train.labels_N.numpy())


@pytest.mark.parametrize("rows", [16_384, 7])
@pytest.mark.parametrize("l2", [1e-3, 0.3])
def test_the_fit_is_scikit_learns(l2: float, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", rows)
    train = case(101, seed=1)
    head, wanted = fit(train, 4, l2, batchnorm=False, steps=2000), oracle(train, l2)
    np.testing.assert_allclose(head.weight_CD.numpy(), wanted.coef_, atol=1e-4)
    bias_C = head.bias_C.numpy()
    np.testing.assert_allclose(bias_C - bias_C.mean(), wanted.intercept_ - wanted.intercept_.mean(), atol=1e-4)
    judged = case(67, seed=2)
    assert head.predict(judged.features_ND).tolist() == wanted.predict(judged.features_ND.numpy()).tolist()


def test_batchnorm_is_standardising_by_train() -> None:
    train, judged = case(101, seed=1), case(300, seed=2)
    wanted: Any = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (1e-2 * 101), tol=1e-10, max_iter=5000))
    wanted.fit(train.features_ND.numpy(), train.labels_N.numpy())
    head = fit(train, 4, 1e-2, batchnorm=True, steps=2000)
    np.testing.assert_allclose(head.weight_CD.numpy(), wanted[1].coef_, atol=1e-4)
    assert head.predict(judged.features_ND).tolist() == wanted.predict(judged.features_ND.numpy()).tolist()


def test_the_penalty_is_the_best_on_held_out_train_samples() -> None:
    train, judged = case(200, seed=1), case(500, seed=2)
    config = LinearConfig(l2=(1e-4, 1e-2, 1.0, 100.0), batchnorm=False, held_out=0.3, steps=3000)
    found = dict(linear(train, judged, 4, config))
    kept, held = module._hold_out(train, 0.3)
    assert len(held.labels_N) == 60
    assert {tuple(row) for row in kept.features_ND.tolist()}.isdisjoint(map(tuple, held.features_ND.tolist()))
    wanted = {str(l2): oracle(kept, l2).score(held.features_ND.numpy(), held.labels_N.numpy()) for l2 in config.l2}
    assert found["held_out"] == pytest.approx(wanted)
    assert len(set(wanted.values())) > 2
    assert found["held_out"][str(found["l2"])] == max(wanted.values())
    final = oracle(train, found["l2"])
    assert found["top1"] == final.score(judged.features_ND.numpy(), judged.labels_N.numpy())
    assert found["count"] == 500


def test_the_judged_samples_choose_nothing() -> None:
    train, judged = case(200, seed=1), case(50, seed=2)
    one = dict(linear(train, judged, 4, LinearConfig()))
    other = dict(linear(train, judged._replace(labels_N=(judged.labels_N + 1) % 4), 4, LinearConfig()))
    assert (one["l2"], one["held_out"]) == (other["l2"], other["held_out"])
    assert one["top1"] != other["top1"]


def test_single_precision_is_enough() -> None:
    train, judged = case(400, seed=1, dtype=torch.float32), case(300, seed=2, dtype=torch.float32)
    head = fit(train, 4, 1e-3, batchnorm=True, steps=500)
    double = fit(Embedded(train.features_ND.double(), train.labels_N), 4, 1e-3, batchnorm=True, steps=500)
    np.testing.assert_allclose(head.weight_CD.numpy(), double.weight_CD.numpy(), atol=2e-3)
    same = head.predict(judged.features_ND) == double.predict(judged.features_ND.double())
    assert same.double().mean() > 0.99


def test_one_penalty_needs_no_held_out_samples() -> None:
    train, judged = case(4, seed=1)._replace(labels_N=torch.arange(4)), case(20, seed=2)
    found = dict(linear(train, judged, 4, LinearConfig(l2=(0.5,))))
    assert (found["l2"], found["held_out"]) == (0.5, {})
    with pytest.raises(UserError, match=r"(?s)no class has two.*one value"):
        dict(linear(train, judged, 4, LinearConfig()))


def test_a_classs_only_sample_is_never_held_out() -> None:
    labels_N = torch.tensor([0] * 10 + [1] * 10 + [2])
    train = Embedded(torch.randn(21, 3), labels_N)
    kept, held = module._hold_out(train, 0.5)
    assert torch.bincount(kept.labels_N).tolist() == [5, 5, 1]
    assert torch.bincount(held.labels_N).tolist() == [5, 5]
