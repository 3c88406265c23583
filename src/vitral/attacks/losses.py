"""Losses that attacks maximize, one number per sample. Shape letters: B batch, C classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.errors import UserError

AttackLoss = Callable[[Tensor, Tensor], Tensor]  # logits [B, C] and labels to [B]
_TINY = 1e-12


def cross_entropy(logits_BC: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy [B] in nats, of class indices [B] or of target distributions [B, C]."""
    return F.cross_entropy(logits_BC, labels, reduction="none")


def kl_divergence(logits_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """KL(q || softmax(logits)) [B] in nats, from logarithms of q: gradients of both sides are finite, also where
    probabilities underflow."""
    return (log_q_BC.exp() * (log_q_BC - logits_BC.log_softmax(-1))).sum(-1)


def margin(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Best wrong logit less the true one [B]: positive where the answer is wrong."""
    true_B = logits_BC.gather(1, labels_B[:, None])[:, 0]
    return logits_BC.scatter(1, labels_B[:, None], -torch.inf).amax(1) - true_B


def dlr(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Difference of logits ratio [B] (Croce and Hein 2020, arXiv 2003.01690, eq. 6): the margin over the difference of
    the largest and the third largest logit. Unchanged by a shift and a positive factor of the logits.

    Raises UserError for fewer than 3 classes.
    """
    _require_classes(logits_BC, 3, "DLR")
    sorted_BC = logits_BC.sort(dim=1, descending=True).values
    return margin(logits_BC, labels_B) / (sorted_BC[:, 0] - sorted_BC[:, 2] + _TINY)


def targeted_dlr(logits_BC: Tensor, labels_B: Tensor, targets_B: Tensor) -> Tensor:
    """Targeted difference of logits ratio [B] (eq. 7): largest where the target class wins over the true one.

    Raises UserError for fewer than 4 classes.
    """
    _require_classes(logits_BC, 4, "targeted DLR")
    sorted_BC = logits_BC.sort(dim=1, descending=True).values
    true_B = logits_BC.gather(1, labels_B[:, None])[:, 0]
    target_B = logits_BC.gather(1, targets_B[:, None])[:, 0]
    return (target_B - true_B) / (sorted_BC[:, 0] - 0.5 * (sorted_BC[:, 2] + sorted_BC[:, 3]) + _TINY)


def _require_classes(logits_BC: Tensor, least: int, name: str) -> None:
    if logits_BC.shape[1] < least:
        raise UserError(
            f"the {name} loss compares the largest logits", where="attack.loss", got=f"{logits_BC.shape[1]} classes",
            expected=f"at least {least} classes", hint="attack.loss=ce works with any number of classes.",
        )  # fmt: skip
