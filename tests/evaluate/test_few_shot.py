"""Few-shot regression against the normal equations, and which samples are chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitral.evaluate.config import FewshotConfig
from vitral.evaluate.features import Embedded
from vitral.evaluate.few_shot import choose, fewshot, ridge_scores


def case(count: int, width: int, classes: int) -> Embedded:
    torch.manual_seed(count * width)
    labels_N = torch.arange(count) % classes
    return Embedded(torch.randn(count, width) * torch.rand(width) * 5 + torch.randn(classes, width)[labels_N], labels_N)


@pytest.mark.parametrize(
    ("count", "width", "classes"), [(40, 5, 3), (6, 30, 3), (31, 30, 7), (30, 30, 7), (5, 1, 5), (1, 3, 2)]
)
def test_scores_solve_the_normal_equations(count: int, width: int, classes: int) -> None:
    """More and fewer samples than features, and the border between them."""
    train, evaluated = case(count, width, classes), case(17, width, classes)
    x, z = train.features_ND.double().numpy(), evaluated.features_ND.double().numpy()
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
    x, z = (np.hstack([(part - mean) / std, np.full((len(part), 1), 100.0)]) for part in (x, z))
    y = 2 * np.eye(classes)[train.labels_N.numpy()] - 1
    weights = np.linalg.solve(x.T @ x + 1024 * np.eye(width + 1), x.T @ y)
    found = ridge_scores(train, evaluated.features_ND, classes)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), z @ weights, rtol=1e-7, atol=1e-9)


def test_choices_are_nested_even_and_repeatable() -> None:
    labels_N = torch.tensor([2, 0, 0, 1, 0, 2, 2, 1, 0, 1, 2, 2, 4])
    for seed in range(3):
        smaller: set[int] = set()
        for shots in (1, 2, 3):
            chosen = choose(labels_N, shots, seed)
            assert torch.bincount(labels_N[chosen], minlength=5).tolist() == [shots, shots, shots, 0, 1]
            assert smaller < set(chosen.tolist())
            assert torch.equal(chosen, choose(labels_N, shots, seed))
            smaller = set(chosen.tolist())
    assert len({tuple(sorted(choose(labels_N, 1, seed).tolist())) for seed in range(5)}) > 1


def test_the_metrics_are_means_over_the_seeds() -> None:
    train, evaluated = case(60, 4, 3), case(45, 4, 3)
    found = dict(fewshot(train, evaluated, 3, FewshotConfig(shots=(2, 8), seeds=4)))
    for shots in (2, 8):
        expected = [
            float((ridge_scores(Embedded(*(part[chosen] for part in train)), evaluated.features_ND, 3).argmax(1)
                   == evaluated.labels_N).double().mean())
            for chosen in (choose(train.labels_N, shots, seed) for seed in range(4))
        ]  # fmt: skip
        row = found["per_shot"][str(shots)]
        assert row["seeds"] == pytest.approx(expected)
        assert row["top1"] == pytest.approx(np.mean(expected))
        assert row["std"] == pytest.approx(np.std(expected, ddof=1))
        assert (row["images"], row["fewest"], row["short"]) == (3 * shots, shots, False)
    assert len(set(found["per_shot"]["2"]["seeds"])) > 1
    assert found["top1"] == found["per_shot"]["8"]["top1"]
    low, high = found["top1_interval"]
    assert low < found["top1"] < high
    assert found["count"] == 45
    assert dict(fewshot(train, evaluated, 3, FewshotConfig(shots=(2,), seeds=1)))["per_shot"]["2"]["std"] is None


def test_too_few_images_are_counted_as_they_are() -> None:
    train = Embedded(torch.randn(18, 4), torch.tensor([0] * 10 + [1] * 8))
    evaluated = Embedded(torch.randn(6, 4), torch.tensor([0, 1] * 3))
    row = dict(fewshot(train, evaluated, 2, FewshotConfig(shots=(25,), seeds=1)))["per_shot"]["25"]
    assert (row["images"], row["fewest"], row["short"]) == (18, 8, True)
