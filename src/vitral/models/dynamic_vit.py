"""A learned pruner: small networks inside the encoder that say which patches may go (Rao et al. 2021, arXiv
2106.02034).

Shape letters: B batch, N patch tokens, M after, P prefix tokens, T = P + N, D width, H hidden features, K kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.models.config import ViTConfig
from vitral.models.layers import Linear, xavier
from vitral.models.token_reduction import (
    Between,
    CapturedQK,
    Reduction,
    Step,
    TokenReduction,
    TokenReductionState,
    highest,
    take_rows,
)

_NEARLY_NOTHING = 1e-6  # what is left of a masked token's weight in the attention, so that its logarithm has a gradient


class Predictor(nn.Module):
    """Whether each patch token is worth keeping, from itself and from the mean of those still there (section 3.2)."""

    def __init__(self, width: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.local, self.whole = Linear(width, hidden(width)), Linear(width, hidden(width))
        self.fc1, self.fc2 = Linear(2 * hidden(width), hidden(width)), Linear(hidden(width), 2)

    def init_weights(self, keep: float) -> None:
        """Xavier uniform, zero biases; the last layer's weights are zero and its biases say that every patch stays with
        probability `keep`, as it is to be at the end."""
        self.norm.reset_parameters()
        xavier(self.local, self.whole, self.fc1)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)
        nn.init.constant_(self.fc2.bias[0], math.log(keep / (1 - keep)))

    def forward(self, patches_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """Logits of keeping and dropping, [B, N, 2], at least float32. mask_BN: 1 for those still there, None: all."""
        normed_BND = self.norm(patches_BND)
        local_BNH, whole_BNH = F.gelu(self.local(normed_BND)), F.gelu(self.whole(normed_BND))
        if mask_BN is None:
            mean_B1H = whole_BNH.mean(1, keepdim=True)
        else:
            weight_BN1 = mask_BN.to(whole_BNH.dtype).unsqueeze(-1)
            mean_B1H = (whole_BNH * weight_BN1).sum(1, keepdim=True) / weight_BN1.sum(1, keepdim=True).clamp(min=1)
        both_BNX = torch.cat([local_BNH, mean_B1H.expand_as(local_BNH)], dim=-1)
        logits_BN2 = self.fc2(F.gelu(self.fc1(both_BNX)))
        return logits_BN2 if logits_BN2.dtype == torch.float64 else logits_BN2.float()


def hidden(width: int) -> int:
    """Hidden features of a predictor: half the width."""
    return max(width // 2, 1)


class LearnedPruner(nn.Module, TokenReduction):
    """Keeps the patch tokens that its predictors score highest, in the blocks and by the share of the configuration.

    The paper decides before a block, this between its attention and its MLP, as all reductions here do. It is trained
    by `objectives.dynamic_vit`, with masks in place of dropped tokens (`MaskedPruner`).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.predictors = nn.ModuleDict(
            {str(block): Predictor(config.width, config.norm_eps) for block in config.pruner_blocks}
        )

    def init_weights(self) -> None:
        """Initialize every parameter again."""
        for predictor in self.predictors.values():
            assert isinstance(predictor, Predictor)
            predictor.init_weights(self.config.pruner_keep)

    def counts(self, patches: int, depth: int) -> list[int]:
        """Patch tokens after each block: of the first number the share, to the power of the blocks that prune so far,
        rounded up."""
        c = self.config
        shares = [c.pruner_keep ** sum(at <= i for at in c.pruner_blocks) for i in range(depth)]
        return [max(math.ceil(share * patches), 1) for share in shares]

    def reduce(self, x_BTD: Tensor, qk: CapturedQK, sizes_BM: Tensor, step: Step) -> Reduction:
        """The tokens with the highest scores, in their order; the others are gone. See `TokenReduction.reduce`."""
        patches_BND = x_BTD[:, step.prefix :]
        logits_BN2 = self.predictors[str(step.block)](patches_BND)
        kept_BK, target_BN = highest(logits_BN2[..., 0] - logits_BN2[..., 1], step.left, others=-1)
        return Reduction(torch.cat([x_BTD[:, : step.prefix], take_rows(patches_BND, kept_BK)], dim=1), target_BN)


class MaskedPruner(TokenReduction):
    """A pruner in training: all tokens stay, those dropped are masked in the attention, and gradients pass.

    One forward pass each; afterwards `mask_BN` says what the pass has kept to its end, and `shares_B` which share it
    kept at each stage.
    """

    def __init__(self, pruner: LearnedPruner, uniform: Callable[[int, int], Tensor]) -> None:
        """uniform(block, patches) draws the numbers [B, N] in [0, 1) that decide in a block."""
        self.pruner, self.uniform = pruner, uniform
        self.mask_BN: Tensor | None = None
        self.shares_B: list[Tensor] = []

    def counts(self, patches: int, depth: int) -> list[int]:
        """All of them stay."""
        return [patches] * depth

    def state(self, patches: int, depth: int, prefix: int, has_class: bool) -> TokenReductionState:
        """A pass that draws masks."""
        self.mask_BN, self.shares_B = None, []
        return _MaskedState(self, patches, depth, prefix, has_class)

    def reduce(self, x_BTD: Tensor, qk: CapturedQK, sizes_BM: Tensor, step: Step) -> Reduction:
        """Never called: no block leaves fewer tokens."""
        raise AssertionError("all tokens stay")


class _MaskedState(TokenReductionState):
    def __init__(self, masked: MaskedPruner, patches: int, depth: int, prefix: int, has_class: bool) -> None:
        super().__init__(masked, patches, depth, prefix, has_class)
        self.masked = masked

    def between(self, block: int) -> Between | None:
        """Draws which tokens stay, by the straight-through Gumbel softmax, among those still there."""
        masked = self.masked
        if str(block) not in masked.pruner.predictors:
            return None

        def draw(x_BTD: Tensor, qk: CapturedQK) -> Tensor:
            logits_BN2 = masked.pruner.predictors[str(block)](x_BTD[:, self.prefix :], masked.mask_BN)
            kept_BN = _draw(logits_BN2, masked.uniform(block, logits_BN2.shape[1]), masked.mask_BN)
            masked.mask_BN = kept_BN if masked.mask_BN is None else kept_BN * masked.mask_BN
            masked.shares_B.append(masked.mask_BN.mean(1))
            return x_BTD

        return draw

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """log(mask) of every key, [B, 1, 1, T]: attention masking (section 3.3), up to a dropped token's attention to
        itself, which nothing reads."""
        if self.masked.mask_BN is None:
            return None
        bias_BT = F.pad((self.masked.mask_BN + _NEARLY_NOTHING).log(), (self.prefix, 0))
        return bias_BT[:, None, None, :].to(dtype)


def _draw(logits_BN2: Tensor, uniform_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
    """1 for those that stay, 0 for those that go, with the gradient of the soft choice. The one of the highest score
    among those still there stays in any case: an image without patches could not be pooled.

    The difference of two Gumbel variables is logistic, so a Gumbel softmax of two choices is a sigmoid.
    """
    score_BN = logits_BN2[..., 0] - logits_BN2[..., 1]
    open_BN = uniform_BN.double() + 2.0**-25  # strictly between 0 and 1: the numbers are multiples of 2^-24
    soft_BN = (score_BN + open_BN.logit().to(score_BN.dtype)).sigmoid()
    drawn_BN = (soft_BN > 0.5).to(soft_BN.dtype) - soft_BN.detach() + soft_BN
    score_BN = score_BN.detach()
    if mask_BN is not None:
        score_BN = score_BN.masked_fill(mask_BN < 0.5, -math.inf)
    best_BN = F.one_hot(score_BN.argmax(1), score_BN.shape[1]).to(drawn_BN.dtype)
    return drawn_BN + (1 - drawn_BN.detach()) * best_BN
