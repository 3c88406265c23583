"""Monitors against closed forms."""

import math

import pytest
import torch

from vitral.objectives.collapse_monitors import entropy, feature_rank, feature_std


def test_equal_features_have_no_spread_and_no_rank() -> None:
    same = torch.randn(1, 32).expand(64, -1)
    assert feature_std(same).item() == pytest.approx(0, abs=1e-5)
    assert feature_rank(same).item() == pytest.approx(0, abs=1e-3)


def test_directions_that_go_all_ways_spread_by_one() -> None:
    torch.manual_seed(0)
    assert feature_std(torch.randn(20_000, 64)).item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("samples", [24, 480])
def test_the_rank_of_equal_directions_is_their_number(rank: int, samples: int) -> None:
    """+e and -e along each of some axes equally often: all eigenvalues are equal. Less and more samples than width."""
    basis = torch.linalg.qr(torch.randn(100, rank, generator=torch.Generator().manual_seed(rank)))[0].T
    rows = torch.cat([basis, -basis]).repeat(-(-samples // (2 * rank)), 1) * 1e-3 + 7
    assert feature_rank(rows.double()).item() == pytest.approx(rank, rel=1e-2)


def test_entropy_is_ln_k_for_uniform_rows_and_0_for_one_hot_ones() -> None:
    assert entropy(torch.full((5, 4096), 1 / 4096)).item() == pytest.approx(math.log(4096), rel=1e-5)
    assert entropy(torch.eye(7)).item() == 0
