"""FGM on patch embeddings, the image case of adversarial training of text (Miyato et al. 2017, arXiv 1605.07725).

Shape letters: B batch, N patches, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitral.attacks.losses import AttackLoss, cross_entropy


def token_scale(patches_BND: Tensor) -> Tensor:
    """Standard deviation of each token over its features, [B, N, 1]: what a layer norm without parameters divides by.

    A change of r times this scale is a change of r in the normalized embeddings, so the model cannot escape the
    perturbation by larger embeddings, and needs no normalization layer of its own.
    """
    return (patches_BND.var(dim=-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def embedding_fgm(
    logits_of: Callable[[Tensor], Tensor], patches_BND: Tensor, labels: Tensor, eps: float,
    loss: AttackLoss = cross_entropy,
) -> Tensor:  # fmt: skip
    """Return the change [B, N, D] of normalized embeddings that raises the loss most, to first order.

    r = eps sqrt(N D) g / |g| with the gradient g by the normalized embeddings and the norm over all tokens and features
    of a sample; 0 where the gradient is 0. eps: in multiples of the norm of a sample's normalized embeddings, sqrt(N
    D), so it means the same for every number of patches and width. logits_of: patches to logits, as a fixed function.
    """
    with torch.enable_grad():
        patches_BND = patches_BND.detach()
        scale_BN1 = token_scale(patches_BND)
        change_BND = torch.zeros_like(patches_BND).requires_grad_(True)
        total = loss(logits_of(patches_BND + scale_BN1 * change_BND), labels).sum()
        (gradient_BND,) = torch.autograd.grad(total, change_BND)
    largest_B11 = gradient_BND.abs().amax((1, 2), keepdim=True).clamp(min=1e-30)
    scaled_BND = gradient_BND / largest_B11  # or the squares of small gradients would be 0
    norm_B11 = scaled_BND.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-12)
    return eps * patches_BND[0].numel() ** 0.5 * scaled_BND / norm_B11
