"""Monitors of a collapse in self-supervised learning: whether features still differ.

Shape letters: B samples, D width, K prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


@torch.no_grad()
def feature_std(features_BD: Tensor) -> Tensor:
    """How widely directions are spread: sqrt(D) times the mean standard deviation of a coordinate of the normalized
    features; near 1 where they go all ways, 0 where they are one (Chen and He 2021, arXiv 2011.10566, section 4.1)."""
    unit_BD = normalize(features_BD.float(), dim=1)
    return unit_BD.std(0, correction=0).mean() * features_BD.shape[1] ** 0.5


@torch.no_grad()
def feature_rank(features_BD: Tensor) -> Tensor:
    """In how many directions they differ: the participation ratio (sum of l)^2 / sum of l^2 of the eigenvalues l of the
    covariance, between 1 and min(B - 1, D); 0 where all are equal. Found without the eigenvalues, from traces."""
    centered_BD = features_BD.float() - features_BD.float().mean(0)
    scale = centered_BD.square().mean().sqrt()
    centered_BD = centered_BD / scale.clamp(min=1e-12)
    gram = centered_BD @ centered_BD.T if len(centered_BD) < centered_BD.shape[1] else centered_BD.T @ centered_BD
    rank = centered_BD.square().sum().square() / gram.square().sum().clamp(min=1e-12)
    return torch.where(scale > 1e-6 * features_BD.float().abs().mean(), rank, 0.0)


@torch.no_grad()
def entropy(probabilities_BK: Tensor) -> Tensor:
    """The mean entropy of a row, in nats: ln K where nothing is distinguished, 0 where each row is one prototype."""
    p_BK = probabilities_BK.float()
    return -(p_BK * p_BK.clamp(min=1e-30).log()).sum(-1).mean()
