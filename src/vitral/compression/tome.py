"""Token merging: similar patch tokens become one (Bolya et al. 2022, arXiv 2210.09461).

Shape letters: B batch, N patch tokens before, M after, P prefix tokens, T = P + N, A and C the two sets that patch
tokens are divided into, R merged away, D width, h heads, d features of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vitral.models.token_reduction import CapturedQK, Reduction, Step, TokenReduction, depth_list


@dataclass(frozen=True)
class ToMe(TokenReduction):
    """Bipartite soft matching of keys in each block, with proportional attention; needs no training.

    r: patch tokens merged away in each block, at most half of those that are there (section 3); or one number for each
    block. schedule: "constant", or "decreasing" from 2 r in the first block to none in the last, as many in all.
    `model.reduce = ToMe(r=8)` sets it. r = 0 leaves the model as it is, bit for bit.
    """

    r: int | Sequence[int] = 8
    schedule: Literal["constant", "decreasing"] = "constant"
    proportional: bool = True

    def counts(self, patches: int, depth: int) -> list[int]:
        """Patch tokens after each block. Raises UserError for a list of another length than `depth`."""
        left: list[int] = []
        for r in self._schedule_of(depth):
            patches -= min(r, patches // 2)
            left.append(patches)
        return left

    def _schedule_of(self, depth: int) -> list[int]:
        if not isinstance(self.r, int):
            return depth_list(self.r, depth, "tome.r")
        if self.schedule == "constant" or depth == 1:
            return [self.r] * depth
        # What is merged up to block i, rounded, so that all blocks together merge r * depth.
        total = [round(self.r * i * (2 * depth - 1 - i) / (depth - 1)) for i in range(depth + 1)]
        return [after - before for before, after in itertools.pairwise(total)]

    def reduce(self, x_BTD: Tensor, qk: CapturedQK, sizes_BM: Tensor, step: Step) -> Reduction:
        """The tokens with the most similar ones merged, as means weighted by size; see `TokenReduction.reduce`."""
        target_BN, kept_BM, sources_BR = match(qk.k_BhTd[:, :, step.prefix :], step.left)
        return Reduction(merge(x_BTD, sizes_BM, target_BN, kept_BM, sources_BR, step.prefix), target_BN)


@torch.no_grad()
def match(k_BhNd: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which of N tokens are merged so that `count` are left: where each goes [B, N] (a number below `count`), which
    ones stay [B, M], in their order, and which go [B, R].

    Tokens at even places are set A, those at odd places set C; each of A has an edge to the most similar one of C, by
    the cosine of the keys' sums over the heads, and the R most similar edges are merged (section 3). No gradient flows
    through the choice.
    """
    first_BNd, *others = k_BhNd.unbind(1)  # a sum over an axis in the middle is several times as slow as adding
    k_BNd = normalize(sum(others, first_BNd).float(), dim=-1)
    B, N, _ = k_BNd.shape
    best_BA, edge_BA = (k_BNd[:, 0::2] @ k_BNd[:, 1::2].transpose(1, 2)).max(-1)
    chosen_BR = best_BA.topk(N - count, sorted=False).indices
    sources_BR = 2 * chosen_BR
    stays_BN = torch.ones(B, N, dtype=torch.int64, device=k_BNd.device).scatter_(1, sources_BR, 0)
    place_BN = stays_BN.cumsum(1) - 1
    goes_BR = place_BN.gather(1, 2 * edge_BA.gather(1, chosen_BR) + 1)
    target_BN = place_BN.scatter(1, sources_BR, goes_BR)
    # Every place is written by the token that stays there; those that go write behind the end.
    behind_BN = torch.where(stays_BN == 1, place_BN, count)
    number_BN = torch.arange(N, device=k_BNd.device).expand(B, -1)
    kept_BM = number_BN.new_zeros(B, count + 1).scatter_(1, behind_BN, number_BN)[:, :count]
    return target_BN, kept_BM, sources_BR


def merge(
    x_BTD: Tensor, sizes_BN: Tensor, target_BN: Tensor, kept_BM: Tensor, sources_BR: Tensor, prefix: int
) -> Tensor:
    """Means [B, P + M, D] over the tokens that go to the same place, weighted by size; prefix tokens as they are.

    The sum of size times token is kept. As shares of a mean sum to 1, it is the token that stays plus each other one's
    share of the difference: rows that stay are copied whole, and only those that go are computed with.
    """
    B, T, D = x_BTD.shape
    count = kept_BM.shape[1]
    goal_BR = target_BN.gather(1, sources_BR)
    sums_BM = sizes_BN.gather(1, kept_BM).scatter_add(1, goal_BR, sizes_BN.gather(1, sources_BR))
    share_BR = sizes_BN.gather(1, sources_BR) / sums_BM.gather(1, goal_BR)
    # Rows in the batch as a whole: whole ones are copied several times as fast as elements by their own index.
    batch_B1 = torch.arange(B, device=x_BTD.device).unsqueeze(1)
    first_BP = torch.arange(prefix, device=x_BTD.device).expand(B, -1)
    from_BM = torch.cat([first_BP, kept_BM + prefix], dim=1) + batch_B1 * T
    goal_X = (goal_BR + prefix + batch_B1 * (prefix + count)).flatten()
    x_XD = x_BTD.reshape(B * T, D)
    kept_XD = x_XD.index_select(0, from_BM.flatten())
    gone_XD = x_XD.index_select(0, (sources_BR + prefix + batch_B1 * T).flatten())
    gone_XD = (gone_XD - kept_XD.index_select(0, goal_X)) * share_BR.reshape(-1, 1).to(x_BTD.dtype)
    return kept_XD.index_add_(0, goal_X, gone_XD).view(B, prefix + count, D)
