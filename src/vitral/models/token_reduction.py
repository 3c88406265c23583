"""Interface of token reduction methods, and their state within one forward pass.

Shape letters: B batch, N patches that enter the encoder, M patch tokens that are left of them, P prefix tokens, T = P +
M tokens, D width, h heads, d features of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vitral.errors import UserError


class Reduced(Protocol):
    """A model whose tokens may be made fewer."""

    reduce: TokenReduction | None


@contextmanager
def reduced_by(model: Reduced, reduction: TokenReduction | None) -> Generator[None]:
    """Within the block the model makes its tokens fewer in this way, or not at all; then as before."""
    before, model.reduce = model.reduce, reduction
    try:
        yield
    finally:
        model.reduce = before


class CapturedQK(NamedTuple):
    """What a block's attention has compared: queries and keys of every token, after their norm and rotation."""

    q_BhTd: Tensor
    k_BhTd: Tensor


class Step(NamedTuple):
    """Where on its way a forward pass is: the block, how many patch tokens it leaves, how many prefix tokens stand in
    front, and whether the first of these is the class token."""

    block: int
    left: int
    prefix: int
    has_class: bool


class Reduction(NamedTuple):
    """What a reduction leaves: the tokens [B, P + M, D], and into which of the M patch tokens each of those before
    went, int64, -1 for one that is gone."""

    x_BTD: Tensor
    target_BM: Tensor


Between = Callable[[Tensor, CapturedQK], Tensor]


class TokenReduction(ABC):
    """A way of making tokens fewer between the attention and the MLP of blocks. Prefix tokens always stay.

    proportional: whether a token counts in the attention as often as it stands for a patch (arXiv 2210.09461, eq. 1).
    """

    proportional: bool = False

    @abstractmethod
    def counts(self, patches: int, depth: int) -> list[int]:
        """Patch tokens that leave each of `depth` blocks where `patches` enter the first one; never more than entered.

        Raises UserError where the reduction does not fit so many blocks.
        """

    def state(self, patches: int, depth: int, prefix: int, has_class: bool) -> TokenReductionState:
        """What a forward pass over `patches` patches remembers."""
        return TokenReductionState(self, patches, depth, prefix, has_class)

    @abstractmethod
    def reduce(self, x_BTD: Tensor, qk: CapturedQK, sizes_BM: Tensor, step: Step) -> Reduction:
        """The tokens after a block's attention, so many fewer that `step.left` patch tokens are left.

        sizes_BM: patches that each patch token stands for, float32.
        """


class TokenReductionState:
    """One forward pass on which tokens become fewer: sizes and groups so far, and who is next."""

    def __init__(self, reduction: TokenReduction, patches: int, depth: int, prefix: int, has_class: bool) -> None:
        self.reduction, self.prefix, self.has_class = reduction, prefix, has_class
        self.counts = reduction.counts(patches, depth)
        assert len(self.counts) == depth, (self.counts, depth)
        self.patches = patches
        self.groups_BN: Tensor | None = None
        self.sizes_BM: Tensor | None = None

    def between(self, block: int) -> Between | None:
        """What this block does to its tokens between attention and MLP; None where all of them stay."""
        before = self.patches if block == 0 else self.counts[block - 1]
        count = self.counts[block]
        assert 0 < count <= before, (count, before)
        if count == before:
            return None

        def reduce(x_BTD: Tensor, qk: CapturedQK) -> Tensor:
            sizes_BM = self.sizes_BM
            if sizes_BM is None:
                sizes_BM = torch.ones(x_BTD.shape[0], before, device=x_BTD.device)
            step = Step(block, count, self.prefix, self.has_class)
            fewer = self.reduction.reduce(x_BTD, qk, sizes_BM, step)
            assert fewer.x_BTD.shape[1] == self.prefix + count, (fewer.x_BTD.shape, count)
            groups_BN = fewer.target_BM if self.groups_BN is None else follow(self.groups_BN, fewer.target_BM)
            self.groups_BN, self.sizes_BM = groups_BN, group_sizes(groups_BN, count)
            return fewer.x_BTD

        return reduce

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """log(size) of every key, [B, 1, 1, T], where attention is proportional and tokens have been merged."""
        if not self.reduction.proportional or self.sizes_BM is None:
            return None
        bias_BT = torch.nn.functional.pad(self.sizes_BM.log(), (self.prefix, 0))
        return bias_BT[:, None, None, :].to(dtype)

    def mean(self, table_BND: Tensor) -> Tensor:
        """What belongs to the N patches, [1 or B, N, D], as means over the patches of each token, [B, M, D]."""
        if self.groups_BN is None or self.sizes_BM is None:
            return table_BND
        return group_means(table_BND, self.groups_BN, self.sizes_BM)


def follow(groups_BN: Tensor, target_BM: Tensor) -> Tensor:
    """Where each patch is after its token has gone to `target_BM`; gone (-1) stays gone."""
    moved_BN = target_BM.gather(1, groups_BN.clamp(min=0))
    return torch.where(groups_BN < 0, groups_BN, moved_BN)


def group_sizes(groups_BN: Tensor, count: int) -> Tensor:
    """Patches in each of `count` groups, [B, M] float32; -1 is in none."""
    sizes_BX = torch.zeros(groups_BN.shape[0], count + 1, device=groups_BN.device)
    ones_BN = torch.ones((), device=groups_BN.device).expand(groups_BN.shape)
    return sizes_BX.scatter_add(1, groups_BN.remainder(count + 1), ones_BN)[:, :count]


def group_means(x_BND: Tensor, groups_BN: Tensor, sizes_BM: Tensor) -> Tensor:
    """Means [B, M, D] over the patches of each group, of what each patch [1 or B, N, D] has."""
    D, (B, count) = x_BND.shape[-1], sizes_BM.shape
    index_BND = groups_BN.remainder(count + 1).unsqueeze(-1).expand(-1, -1, D)
    sums_BXD = x_BND.new_zeros(B, count + 1, D).scatter_add(1, index_BND, x_BND.expand(B, -1, -1))
    return sums_BXD[:, :count] / sizes_BM.clamp(min=1).unsqueeze(-1).to(x_BND.dtype)


def mean_of_patches(tokens_BMD: Tensor, groups_BN: Tensor | None) -> Tensor:
    """The mean [B, D] over the patches: each token counts as often as it stands for one."""
    if groups_BN is None:
        return tokens_BMD.mean(1)
    sizes_BM1 = group_sizes(groups_BN, tokens_BMD.shape[1]).to(tokens_BMD.dtype).unsqueeze(-1)
    return (tokens_BMD * sizes_BM1).sum(1) / sizes_BM1.sum(1)


@torch.no_grad()
def highest(score_BN: Tensor, count: int, others: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of each row: which they are [B, K], in their order, and the place that each of the N gets
    [B, N], `others` for those that are not among them."""
    kept_BK = score_BN.topk(count, dim=1).indices.sort(dim=1).values
    places_BK = torch.arange(count, device=score_BN.device).expand_as(kept_BK)
    return kept_BK, torch.full_like(score_BN, others, dtype=torch.int64).scatter(1, kept_BK, places_BK)


def take_rows(x_BND: Tensor, kept_BK: Tensor) -> Tensor:
    """The rows [B, K, D] that each sample keeps."""
    return x_BND.gather(1, kept_BK.unsqueeze(-1).expand(-1, -1, x_BND.shape[-1]))


def ungroup(tokens_BMD: Tensor, groups_BN: Tensor) -> Tensor:
    """For every patch [B, N, D] the token that it went into; zeros for one that is gone."""
    rows_BND = tokens_BMD.gather(1, groups_BN.clamp(min=0).unsqueeze(-1).expand(-1, -1, tokens_BMD.shape[-1]))
    return rows_BND.masked_fill((groups_BN < 0).unsqueeze(-1), 0.0)


def refuse_reduction(positions: str, is_masked: bool) -> None:
    """Raises UserError where tokens cannot become fewer: offsets between merged places are none of the table's, and a
    merged token would be masked in part."""
    if positions in ("relative", "relative_bias"):
        what, others = "the table of offsets has none for a merged place", "learned, learned_2d, sincos, rope or none"
        raise UserError(
            f"tokens cannot become fewer: {what}", where="reduce", got=f"positions={positions}", expected=others
        )
    if is_masked:
        what = "no patch may be masked where tokens become fewer"
        raise UserError(what, where="attend_BN", expected="keep_BK, or none")


def depth_list(values: Sequence[int], depth: int, where: str) -> list[int]:
    """One value for each block. Raises UserError for another number of them."""
    if len(values) != depth:
        raise UserError("one number for each block is expected", where=where, got=len(values), expected=depth)
    return list(values)
