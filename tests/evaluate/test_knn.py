"""Nearest neighbors against scikit-learn's in float64, and what the vote does by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from vitral.errors import UserError
from vitral.evaluate import knn as module
from vitral.evaluate.config import KnnConfig
from vitral.evaluate.features import Embedded
from vitral.evaluate.knn import knn

ROOT = Path(__file__).parents[2]


def case(train: int, evaluated: int, width: int, classes: int) -> tuple[Embedded, Embedded]:
    """Features in overlapping clouds, not centered, of very different lengths."""
    torch.manual_seed(train + evaluated)
    centers_CD = torch.randn(classes, width)
    parts: list[Embedded] = []
    for count in (train, evaluated):
        labels_N = torch.randint(0, classes, (count,))
        features_ND = (centers_CD[labels_N] + 1.5 * torch.randn(count, width) + 0.3) * 10 ** torch.randn(count, 1)
        parts.append(Embedded(features_ND, labels_N))
    return parts[0], parts[1]


def _vote(distance: np.ndarray, temperature: float) -> np.ndarray:
    return np.exp((1 - distance) / temperature)


@pytest.mark.parametrize("blocks", [(512, 32_768), (8, 10), (1, 1), (7, 53)])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_each_k_is_scikit_learns_vote(
    blocks: tuple[int, int], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUERIES", blocks[0])
    monkeypatch.setattr(module, "_TRAIN", blocks[1])
    train, evaluated = case(train=53, evaluated=41, width=7, classes=5)
    found = dict(knn(train, evaluated, 5, KnnConfig(k=(20, 1, 4, 53), temperature=temperature)))
    assert list(found["per_k"]) == ["1", "4", "20", "53"]
    vote: Any = partial(_vote, temperature=temperature)
    for k, row in found["per_k"].items():
        oracle = KNeighborsClassifier(int(k), weights=vote, metric="cosine", algorithm="brute").fit(
            train.features_ND.double().numpy(), train.labels_N.numpy()
        )
        expected_N = oracle.predict(evaluated.features_ND.double().numpy())
        assert row["top1"] == np.mean(expected_N == evaluated.labels_N.numpy()), k
        predicted_N1 = module._votes(train, evaluated.features_ND, 5, [int(k)], temperature)
        assert predicted_N1[:, 0].tolist() == expected_N.tolist()
    tops = {k: row["top1"] for k, row in found["per_k"].items()}
    assert len(set(tops.values())) > 1, "a case where k matters"
    assert found["top1"] == tops[str(found["best_k"])] == max(tops.values())
    assert found["count"] == 41


def test_a_near_neighbor_outvotes_two_far_ones_at_a_low_temperature_only() -> None:
    train = Embedded(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0]]), torch.tensor([0, 1, 1]))
    evaluated = Embedded(torch.tensor([[5.0, 4.0]]), torch.tensor([0]))
    assert dict(knn(train, evaluated, 2, KnnConfig(k=(3,))))["top1"] == 1.0
    assert dict(knn(train, evaluated, 2, KnnConfig(k=(3,), temperature=1.0)))["top1"] == 0.0


def test_no_temperature_overflows() -> None:
    train, evaluated = case(train=40, evaluated=30, width=6, classes=4)
    nearest = dict(knn(train, evaluated, 4, KnnConfig(k=(1,))))["top1"]
    assert dict(knn(train, evaluated, 4, KnnConfig(k=(20,), temperature=1e-6)))["top1"] == nearest


def test_of_equal_k_the_smallest_is_named_best() -> None:
    train, _ = case(train=30, evaluated=1, width=6, classes=3)
    found = dict(knn(train, train, 3, KnnConfig(k=(2, 1))))
    assert (found["top1"], found["best_k"]) == (1.0, 1), "the nearest neighbor is the sample itself"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_features_are_refused(value: float) -> None:
    train, evaluated = case(train=10, evaluated=5, width=3, classes=2)
    evaluated.features_ND[2, 1] = value
    with pytest.raises(UserError, match=r"(?s)features aren't finite.*1 of 5"):
        dict(knn(train, evaluated, 2, KnnConfig(k=(1,))))


@pytest.mark.slow
def test_a_large_set_is_judged_fast_in_little_memory() -> None:
    """10,000 of 50,000 features, 384 wide, on two cores: under 30 s and 2 GB, torch itself included.

    Seconds of the processor, summed over the threads: on cores that nobody else uses it takes no longer than these.
    """
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/knn.py"), "rounds=1", "peer=false", "threads=2"],
        capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["processor_seconds"]["vitral"][0] < 30
    assert found["peak_mb"] < 2000
