"""K-means of weighted points: nearest centers, starting centers, Lloyd's algorithm.

Shape letters: M distinct points, X points, C values of a point, K centers, L new ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitral.data.counter_rng import Stream, uniform

_AT_ONCE = 2**22  # squared distances that exist at once
_ROUNDS = 50  # of Lloyd's algorithm
_ONE_BY_ONE = 512  # starting centers
_TINY = 1e-12  # squared distance of a point that is no center


def nearest(points_XC: Tensor, centers_KC: Tensor) -> tuple[Tensor, Tensor]:
    """The place of the nearest center, int64 [X], of equally near ones the first, and its squared distance, float64."""
    parts = [_nearest(part_XC, centers_KC) for part_XC in points_XC.split(max(_AT_ONCE // len(centers_KC), 1))]
    places, distances = zip(*parts, strict=True)
    return torch.cat(places), torch.cat(distances)


def _nearest(points_XC: Tensor, centers_KC: Tensor) -> tuple[Tensor, Tensor]:
    # Differences, not |x|^2 - 2 x c + |c|^2, whose rounding would decide between equally near centers.
    distance_XK = torch.zeros(len(points_XC), len(centers_KC), dtype=torch.float64, device=points_XC.device)
    for value_X, center_K in zip(points_XC.double().T, centers_KC.double().T, strict=True):
        distance_XK = distance_XK + (value_X[:, None] - center_K).square()
    distance_X, place_X = distance_XK.min(dim=1)
    return place_X, distance_X


def kmeans(points_MC: Tensor, counts_M: Tensor, count: int, seed: int, rounds: int = _ROUNDS) -> Tensor:
    """`count` centers with (nearly) the least squared error over points that occur `counts_M` times: float64 [K, C].

    k-means++ (Arthur and Vassilvitskii 2007), with random numbers by `seed`, then at most `rounds` rounds of Lloyd's
    algorithm. As many centers as there are points are exactly these. There must be as many points.
    """
    return lloyd(points_MC, counts_M, add_centers(points_MC, counts_M, points_MC[:0], count, seed), rounds)


def add_centers(points_MC: Tensor, counts_M: Tensor, centers_KC: Tensor, count: int, seed: int) -> Tensor:
    """Extend the centers to `count` of them, different points drawn in proportion to the squared distance from those so
    far: one by one up to 512, then an eighth as many as there are at once (as Bahmani et al. 2012, "Scalable
    K-Means++")."""
    places, square_M = list[int](), points_MC.square().sum(1)
    distance_M = torch.ones(len(points_MC), dtype=torch.float64)
    if len(centers_KC):
        distance_M = nearest(points_MC, centers_KC)[1]
    while (found := len(centers_KC) + len(places)) < count:
        draws = 1 if found < _ONE_BY_ONE else min(found // 8, count - found)
        total_M = (distance_M * counts_M).cumsum(0)
        number_L = torch.arange(found, found + draws)
        draw_L = uniform(seed, number_L, 0, torch.zeros_like(number_L), Stream.PALETTE).double()
        place_L = torch.searchsorted(total_M, draw_L * total_M[-1], right=True).unique()
        own_M = _least_squares(points_MC, square_M, points_MC[place_L])
        distance_M = torch.minimum(distance_M, own_M) if found else own_M
        places += place_L.tolist()
        distance_M[place_L] = 0
    return torch.cat([centers_KC, points_MC[places]])


def _least_squares(points_MC: Tensor, square_M: Tensor, centers_LC: Tensor) -> Tensor:
    """The squared distance of each point to the nearest center, above 0, rounded: a product of matrices, many times as
    fast as differences of points with many values."""
    square_L, parts = centers_LC.square().sum(1), points_MC.split(max(_AT_ONCE // len(centers_LC), 1))
    least_M = torch.cat([torch.addmm(square_L, part_XC, centers_LC.T, alpha=-2).amin(1) for part_XC in parts])
    return (least_M + square_M).clamp(min=_TINY)


def lloyd(points_MC: Tensor, counts_M: Tensor, centers_KC: Tensor, rounds: int = _ROUNDS) -> Tensor:
    """Lloyd's algorithm from these centers until nothing changes, at most so many rounds: float64 [K, C]."""
    from sklearn.cluster import KMeans  # pyright: ignore[reportMissingTypeStubs]

    start_KC = centers_KC.numpy()
    make: Any = KMeans
    found = make(len(start_KC), init=start_KC, n_init=1, max_iter=rounds, tol=0)
    found.fit(points_MC.numpy(), sample_weight=counts_M.numpy())
    return torch.from_numpy(found.cluster_centers_)
