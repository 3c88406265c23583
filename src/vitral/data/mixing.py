"""Mixup (Zhang et al. 2018, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899) inside groups of eight.

Partners are drawn within fixed groups of 8 neighbors of the global batch, so that slices that are multiples of 8 mix
the same on any number of processes. Shape letters: B samples, C channels, H W height and width, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitral.data.config import AugmentConfig
from vitral.data.counter_rng import Stream, uniform

GROUP = 8
_QUANTILES = 4097


class Mixer:
    """Draws partners and weights by (seed, position in the run) and mixes images; labels stay with their weights."""

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.mixup_Q = beta_quantiles(config.mixup) if config.mixup else None
        self.cutmix_Q = beta_quantiles(config.cutmix) if config.cutmix else None

    @property
    def active(self) -> bool:
        return bool((self.config.mixup or self.config.cutmix) and self.config.mix_prob)

    def __call__(self, images_BCHW: Tensor, labels_B: Tensor, position_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """[0,1] images and class indices to mixed images and targets {label, partner, weight}; weight in [0,1] is the
        share of the own label. `position_B` numbers the samples of the run (step times batch size, plus place)."""
        partner_B, group_B = self._partners(position_B)
        draw_B = uniform(self.seed, 0, 0, group_B, Stream.MIX_KIND)
        mixed_B = draw_B < self.config.mix_prob
        cut_B = (draw_B < self.config.mix_prob * self._cut_share) & mixed_B
        weight_B = self._weights(cut_B, mixed_B, position_B)
        others_BCHW = images_BCHW[partner_B]
        inside_BHW = _boxes(images_BCHW, weight_B, self.seed, position_B) & cut_B[:, None, None]
        # A box is cut off at the border and to whole pixels: its true area gives the label's weight.
        weight_B = torch.where(cut_B, 1 - inside_BHW.float().mean(dim=(1, 2)), weight_B)
        blend_B111 = torch.where(cut_B, 1.0, weight_B)[:, None, None, None]
        blended_BCHW = images_BCHW * blend_B111 + others_BCHW * (1 - blend_B111)
        images_BCHW = torch.where(inside_BHW[:, None], others_BCHW, blended_BCHW)
        return images_BCHW, {"label": labels_B, "partner": labels_B[partner_B], "weight": weight_B}

    @property
    def _cut_share(self) -> float:
        return 0.5 if self.config.mixup and self.config.cutmix else float(bool(self.config.cutmix))

    def _partners(self, position_B: Tensor) -> tuple[Tensor, Tensor]:
        """Index in the batch of each sample's partner, and the number of its group's first sample in the run."""

        def draw(start_B: Tensor) -> Tensor:
            return uniform(self.seed, 0, 0, position_B[start_B], Stream.PARTNER)

        partner_B, start_B = group_partners(len(position_B), draw, position_B.device)
        return partner_B, position_B[start_B]

    def _weights(self, cut_B: Tensor, mixed_B: Tensor, position_B: Tensor) -> Tensor:
        draw_B = uniform(self.seed, 0, 0, position_B, Stream.MIX_WEIGHT)
        mixup_B = quantile(self.mixup_Q, draw_B) if self.mixup_Q is not None else torch.ones_like(draw_B)
        cutmix_B = quantile(self.cutmix_Q, draw_B) if self.cutmix_Q is not None else torch.ones_like(draw_B)
        return torch.where(mixed_B, torch.where(cut_B, cutmix_B, mixup_B), 1.0)


def group_partners(count: int, draw: Callable[[Tensor], Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return places of the partners and of the first sample of each sample's group of 8. A group is turned by 1 to 7
    places, all of it by the same; a shorter last group turns within itself. draw: from places of first samples to
    numbers in [0, 1)."""
    place_B = torch.arange(count, device=device)
    start_B = place_B - place_B % GROUP
    size_B = (count - start_B).clamp(max=GROUP)
    turn_B = 1 + (draw(start_B) * (size_B - 1)).long()
    return start_B + (place_B - start_B + turn_B) % size_B, start_B


def beta_quantiles(alpha: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The inverse distribution function of Beta(alpha, alpha) at equal steps of probability."""
    from scipy.special import betaincinv

    return betaincinv(alpha, alpha, np.linspace(0, 1, _QUANTILES))


def quantile(table_Q: np.ndarray[Any, np.dtype[np.float64]], draw_B: Tensor) -> Tensor:
    """Return the table's values at the draws, in [0, 1), interpolated."""
    place_B = draw_B * (len(table_Q) - 1)
    low_B = place_B.long()
    values_Q = torch.from_numpy(table_Q).to(draw_B)
    return torch.lerp(values_Q[low_B], values_Q[low_B + 1], place_B - low_B)


def _boxes(images_BCHW: Tensor, weight_B: Tensor, seed: int, position_B: Tensor) -> Tensor:
    """CutMix boxes as a mask [B,H,W]: area share 1 - weight, center uniform over the image, cut off at the border."""
    masks: list[Tensor] = []
    for size, stream in ((images_BCHW.shape[-2], Stream.CUT_Y), (images_BCHW.shape[-1], Stream.CUT_X)):
        side_B = (torch.sqrt(1 - weight_B) * size).round()
        start_B = (uniform(seed, 0, 0, position_B, stream) * size).floor() - (side_B / 2).floor()
        pixel_S = torch.arange(size, device=images_BCHW.device)
        masks.append((pixel_S >= start_B[:, None]) & (pixel_S < (start_B + side_B)[:, None]))
    return masks[0][:, :, None] & masks[1][:, None, :]
