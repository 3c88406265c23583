"""Loss functions shared by objectives. Shape letters: B batch, C classes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_targets(targets: dict[str, Tensor], classes: int, smoothing: float) -> Tensor:
    """Target distributions [B, C] of `label`, of `partner` with share 1 - `weight` where mixed, with label smoothing.

    Smoothing (Szegedy et al. 2016, arXiv 1512.00567, section 7): (1 - s) * one-hot + s / C. Rows sum to 1.
    """
    target_BC = F.one_hot(targets["label"], classes).float()
    if "partner" in targets:
        weight_B1 = targets["weight"][:, None]
        target_BC = weight_B1 * target_BC + (1 - weight_B1) * F.one_hot(targets["partner"], classes).float()
    return target_BC * (1 - smoothing) + smoothing / classes


def cross_entropy(logits_BC: Tensor, target_BC: Tensor) -> Tensor:
    """Mean over the batch of -sum(target * log softmax(logits)), in nats, computed in at least float32."""
    logits_BC = logits_BC if logits_BC.dtype.itemsize >= 4 else logits_BC.float()
    return -(target_BC * logits_BC.log_softmax(dim=-1)).sum(dim=-1).mean()
