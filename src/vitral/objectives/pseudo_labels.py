"""Pseudo-labels of unlabeled images: which ones teach, what they teach, thresholds that follow the model.

FixMatch (Sohn et al. 2020, arXiv 2001.07685), FreeMatch (Wang et al. 2023, arXiv 2205.07246), Semi-ViT (Cai et al.
2022, arXiv 2208.05688). Every loss is a mean over all unlabeled rows, not over those that teach: so losses of
micro-batches and processes add up to that of the batch. Shape letters: B unlabeled rows, C classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.data.counter_rng import Stream, uniform
from vitral.data.mixing import group_partners, quantile
from vitral.objectives.losses import wide


class PseudoLabels(NamedTuple):
    """Target distributions [B, C], whose rows sum to 1, and the confidence of each, [B], in [0,1]; without gradient."""

    target_BC: Tensor
    confidence_B: Tensor


def probabilities(logits_BC: Tensor) -> Tensor:
    """Return softmax(logits), in at least float32, without gradient."""
    return wide(logits_BC.detach()).softmax(-1)


def pseudo_labels(p_BC: Tensor) -> PseudoLabels:
    """Return one-hot targets of the most probable class, and its probability."""
    confidence_B, label_B = p_BC.detach().max(-1)
    return PseudoLabels(F.one_hot(label_B, p_BC.shape[-1]).to(p_BC.dtype), confidence_B)


def pseudo_label_loss(logits_BC: Tensor, labels: PseudoLabels, threshold: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy to the targets whose confidence is above the threshold ([B] or one number), in nats,
    mean over all rows; and the share of the rows above it."""
    teaches_B = (labels.confidence_B > threshold).to(labels.confidence_B.dtype)
    loss_B = -(labels.target_BC * wide(logits_BC).log_softmax(-1)).sum(-1)
    return (teaches_B * loss_B).mean(), teaches_B.mean()


def class_thresholds(confidence: Tensor, mean_C: Tensor) -> Tensor:
    """Return FreeMatch's threshold per class [C] (equations 5 to 8): the moving mean of the largest probability, times
    the moving mean probability of each class over that of the most frequent one."""
    return confidence * mean_C / mean_C.max()


def move(average: Tensor, value: Tensor, momentum: float, found_inf: Tensor) -> None:
    """average <- momentum * average + (1 - momentum) * value, in place; nothing where `found_inf` is 1."""
    moved = average.lerp(value.to(average.dtype), 1 - momentum)
    average.copy_(torch.where(found_inf > 0, average, moved))


def probability_distance(logits_BC: Tensor, target_logits_BC: Tensor) -> Tensor:
    """Squared difference of two softmax outputs, mean over classes and rows (Laine and Aila 2017, arXiv 1610.02242);
    the second one is a target, without gradient."""
    return F.mse_loss(wide(logits_BC).softmax(-1), wide(target_logits_BC.detach()).softmax(-1))


class Pairs(NamedTuple):
    """Partner of each row, and the share of the own row, [B], in [0,1]."""

    partner_B: Tensor
    weight_B: Tensor


def draw_pairs(seed: int, step: int, sample_ids_B: Tensor, quantiles_Q: np.ndarray[Any, np.dtype[np.float64]]) -> Pairs:
    """Draw a partner for each row inside its group of 8 neighbors, and weights by their `quantiles_Q`
    (`beta_quantiles`), keyed by step and sample. Cuts of the batch at multiples of 8 rows change nothing."""
    partner_B, first_B = group_partners(
        len(sample_ids_B),
        lambda first_B: uniform(seed, step, 0, sample_ids_B[first_B], Stream.PAIR),
        sample_ids_B.device,
    )
    draw_B = uniform(seed, step, 0, sample_ids_B, Stream.PAIR_WEIGHT)
    return Pairs(partner_B, quantile(quantiles_Q, draw_B))


def mix(x: Tensor, pairs: Pairs) -> Tensor:
    """Return weight * row + (1 - weight) * partner's row; equal rows stay as they are."""
    weight = pairs.weight_B.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return torch.lerp(x[pairs.partner_B], x, weight)


def mix_labels(labels: PseudoLabels, pairs: Pairs) -> PseudoLabels:
    """Probabilistic pseudo mixup (Semi-ViT, section 3.3): targets and confidences are mixed as the images are, so the
    threshold applies to the mixed confidence."""
    return PseudoLabels(mix(labels.target_BC, pairs), mix(labels.confidence_B, pairs))
