"""Targets from teacher logits, by centering or Sinkhorn-Knopp, and the cross-view loss.

Caron et al. 2020 (SwAV, arXiv 2006.09882), 2021 (DINO, 2104.14294). Everything is computed in at least float32,
whatever autocast says. Shape letters: R rows (views of images, or tokens), K prototypes, B images, G views of the
teacher, V views of the student, of which the first G are the teacher's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitral import distributed
from vitral.objectives.losses import wide


def centered(logits_RK: Tensor, center_K: Tensor, temperature: float) -> Tensor:
    """softmax((logits - center) / temperature): DINO, equation 1 and section 3.1. Rows sum to 1."""
    return ((wide(logits_RK) - center_K) / temperature).softmax(-1)


def sinkhorn(logits_RK: Tensor, temperature: float, iterations: int = 3, is_real_R: Tensor | None = None) -> Tensor:
    """Rows of probabilities by which all prototypes are used about equally (SwAV, section 3.1; DINOv2, 2304.07193).

    Q = exp(logits / temperature), then so many times: every prototype's sum over the rows is made 1 / K, every row's
    sum 1 / R. The rows are those of all processes; where `is_real_R` is false a row is padding that counts for nothing.
    Computed with the factors' logarithms, so that nothing overflows or vanishes at any size of the logits: the result
    is softmax(logits / temperature + f_K), whose rows sum to 1 whether real or not.
    """
    score_RK = wide(logits_RK) / temperature
    others_R1 = score_RK.new_zeros(len(score_RK), 1)
    if is_real_R is not None:
        others_R1 = others_R1.masked_fill(~is_real_R[:, None], -torch.inf)
    rows_R1, prototypes_K = others_R1, score_RK[:1].new_zeros(score_RK.shape[1])
    for _ in range(iterations):
        prototypes_K = -_log_sums(score_RK + rows_R1)
        prototypes_K = prototypes_K.masked_fill(prototypes_K.isinf(), 0.0)  # no row is real
        rows_R1 = others_R1 - (score_RK + prototypes_K).logsumexp(1, keepdim=True)
    return (score_RK + prototypes_K).softmax(-1)


def _log_sums(x_RK: Tensor) -> Tensor:
    """Logarithms of the sums of exp(x) over the rows of all processes."""
    own_K = x_RK.logsumexp(0)
    if distributed.world() == 1:
        return own_K
    top_K = distributed.all_reduce_max(own_K)
    top_K = top_K.masked_fill(top_K.isinf(), 0.0)
    return distributed.all_reduce_sum((own_K - top_K).exp()).log() + top_K


def cross_view_loss(target_GBK: Tensor, pred_VBK: Tensor) -> Tensor:
    """Cross-entropy of every view of the teacher with every other view of the student, mean over images and over the
    G (V - 1) pairs, in nats (DINO, equation 3). `pred_VBK` are logits over the temperature."""
    views, count = len(target_GBK), pred_VBK.shape[1]
    log_VBK = wide(pred_VBK).log_softmax(-1)
    all_BK = target_GBK.sum(0)
    others_GBK = all_BK - target_GBK  # what a view that the teacher saw too is compared with
    agreed = (others_GBK * log_VBK[:views]).sum() + (all_BK * log_VBK[views:].sum(0)).sum()
    return -agreed / (views * (len(pred_VBK) - 1) * count)
