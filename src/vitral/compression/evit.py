"""Keeping the patches that the class token attends to; the others become one token (Liang et al. 2022, arXiv
2202.07800).

Shape letters: B batch, N patch tokens before, M after, P prefix tokens, T = P + N, K kept, D width, h heads, d features
of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.models.token_reduction import CapturedQK, Reduction, Step, TokenReduction, highest, take_rows


@dataclass(frozen=True)
class EViT(TokenReduction):
    """After some blocks' attention, only the share of the patch tokens that the class token attends to most stays.

    The rest become one token, their mean weighted by that attention; it is the last of the patch tokens, and may be
    kept or not like any other later on. Models without a class token keep what all tokens attend to most. share: of the
    patch tokens of that block, rounded up; 1 leaves the model as it is. after: blocks, from 0; None: those a quarter,
    half and three quarters of the way, as in the paper (3, 6 and 9 of 12).
    """

    share: float = 0.7
    after: Sequence[int] | None = None

    def counts(self, patches: int, depth: int) -> list[int]:
        """Patch tokens after each block. Raises UserError for a block that there is not."""
        after = {depth * quarter // 4 for quarter in (1, 2, 3)} if self.after is None else set(self.after)
        if max(after, default=0) >= depth:
            raise UserError("no such block", where="evit.after", got=max(after), expected=f"0 to {depth - 1}")
        left: list[int] = []
        for block in range(depth):
            if block in after:
                patches = min(math.ceil(self.share * patches) + 1, patches)
            left.append(patches)
        return left

    def reduce(self, x_BTD: Tensor, qk: CapturedQK, sizes_BM: Tensor, step: Step) -> Reduction:
        """The kept tokens in their order and the fused one behind them; see `TokenReduction.reduce`."""
        P, K = step.prefix, step.left - 1
        attention_BN = attention_to(qk, 1 if step.has_class else None)[:, P:]
        kept_BK, target_BN = highest(attention_BN, K, others=K)
        weight_BN = attention_BN.masked_fill(target_BN < K, 0.0)
        weight_BN = weight_BN / weight_BN.sum(1, keepdim=True)
        fused_B1D = weight_BN.unsqueeze(1).to(x_BTD.dtype) @ x_BTD[:, P:]
        return Reduction(torch.cat([x_BTD[:, :P], take_rows(x_BTD[:, P:], kept_BK), fused_B1D], dim=1), target_BN)


def attention_to(qk: CapturedQK, queries: int | None) -> Tensor:
    """Attention that each token gets, [B, T] float32: the mean over the heads and the first `queries` tokens (None:
    all). Rows sum to 1."""
    q_BhQd = qk.q_BhTd.float() if queries is None else qk.q_BhTd[:, :, :queries].float()
    scores_BhQT = (q_BhQd * q_BhQd.shape[-1] ** -0.5) @ qk.k_BhTd.float().transpose(-2, -1)
    return scores_BhQT.softmax(-1).mean((1, 2))
