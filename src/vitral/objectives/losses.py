"""Loss functions shared by objectives. Shape letters: B batch, C classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vitral.models.codebook import wide
from vitral.objectives.class_balance import NO_BALANCE, ClassBalance


def soft_targets(targets: dict[str, Tensor], classes: int, smoothing: float) -> Tensor:
    """Target distributions [B, C] of `label`, of `partner` with share 1 - `weight` where mixed, with label smoothing.

    Smoothing (Szegedy et al. 2016, arXiv 1512.00567, section 7): (1 - s) * one-hot + s / C. Rows sum to 1.
    """
    target_BC = F.one_hot(targets["label"], classes).float()
    if "partner" in targets:
        weight_B1 = targets["weight"][:, None]
        target_BC = weight_B1 * target_BC + (1 - weight_B1) * F.one_hot(targets["partner"], classes).float()
    return target_BC * (1 - smoothing) + smoothing / classes


def soft_multi_hot(targets: dict[str, Tensor], smoothing: float) -> Tensor:
    """Targets [B, C] in [0,1], each class separately, of the multi-hot `label` [B, C], mixed with `partner` as above.

    Smoothing is that of a decision between two: (1 - s) * y + s / 2.
    """
    target_BC = targets["label"].float()
    if "partner" in targets:
        weight_B1 = targets["weight"][:, None]
        target_BC = weight_B1 * target_BC + (1 - weight_B1) * targets["partner"].float()
    return target_BC * (1 - smoothing) + smoothing / 2


def binary_cross_entropy(logits_BC: Tensor, target_BC: Tensor) -> Tensor:
    """Mean over batch and classes of -(y log p + (1 - y) log(1 - p)), p = sigmoid(logits), in nats, in at least
    float32."""
    logits_BC = wide(logits_BC)
    return F.binary_cross_entropy_with_logits(logits_BC, target_BC.to(logits_BC.dtype))


def sigmoid_cross_entropy(logits_BC: Tensor, target_BC: Tensor) -> Tensor:
    """Binary cross-entropy of each class, summed over the classes, mean over the batch, in nats: the loss of
    AugReg's ImageNet-1k models (Steiner et al. 2021, arXiv 2106.10270)."""
    return binary_cross_entropy(logits_BC, target_BC) * logits_BC.shape[-1]


def cross_entropy(logits_BC: Tensor, target_BC: Tensor, balance: ClassBalance = NO_BALANCE) -> Tensor:
    """Mean over the batch of -sum(weights * target * log softmax(logits + offset)), in nats, in at least float32.

    The mean is over the samples, whatever their weights, so that micro-batches add up."""
    logits_BC = wide(logits_BC)
    if balance.offset_C is not None:
        logits_BC = logits_BC + balance.offset_C.to(logits_BC)
    if balance.weights_C is not None:
        target_BC = target_BC * balance.weights_C.to(target_BC)
    return -(target_BC * logits_BC.log_softmax(dim=-1)).sum(dim=-1).mean()
