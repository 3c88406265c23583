"""Choose the patches that a masked objective hides: exact counts, by counter-based random numbers, for a batch at once.

A mask belongs to (seed, step, view, sample), so it is the same for any number of processes and after a resume. Shape
letters: B samples, N patches, row by row, R rectangles that are tried.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitral.data.counter_rng import Stream, uniform, uniform_runs

Grid = tuple[int, int]
# Rectangles that are tried for a mask; what they leave open is filled at random.
_RECTANGLES = 12
_ASPECT = (0.3, 3.3)  # height / width of a rectangle


def kept_count(patches: int, ratio: float) -> int:
    """Patches that are seen when a share of them is masked: clamp(N - round(N ratio), 1, N)."""
    return min(max(patches - round(patches * ratio), 1), patches)


def noise(
    seed: int, step: int | Tensor, view: int, sample_ids_B: Tensor, patches: int, stream: Stream = Stream.MASK
) -> Tensor:
    """Uniform numbers [B, N] in [0, 1): those of a sample, at a step, for a view."""
    return uniform_runs(seed, step, view, sample_ids_B, (stream,), patches)[0].T


def hidden(seed: int, step: int | Tensor, sample_ids_B: Tensor, patches: int, ratio: float) -> Tensor:
    """Masks bool [B, N] of exactly N - `kept_count` patches, each set of them equally probable."""
    return hidden_count(seed, step, sample_ids_B, patches, patches - kept_count(patches, ratio))


def hidden_count(seed: int, step: int | Tensor, sample_ids_B: Tensor, patches: int, count_B: Tensor | int) -> Tensor:
    """Masks bool [B, N] of exactly so many patches of each sample, each set of them equally probable."""
    rank_BN = noise(seed, step, 0, sample_ids_B, patches).argsort(dim=1).argsort(dim=1)
    kept_B = patches - count_B
    return rank_BN >= (kept_B[:, None] if isinstance(kept_B, Tensor) else kept_B)


def cosine_counts(seed: int, step: int | Tensor, sample_ids_B: Tensor, patches: int) -> Tensor:
    """How many patches of each sample are hidden, ceil(N cos(pi u / 2)) with u uniform in [0, 1): int64 [B], 1 to N.

    The cosine schedule of MaskGIT (Chang et al. 2022, arXiv 2202.04200, section 3.3).
    """
    share_B = uniform(seed, step, 0, sample_ids_B, Stream.MASK_SHARE).double()
    return (patches * torch.cos(math.pi / 2 * share_B)).ceil().long().clamp(1, patches)


def blocks(seed: int, step: int | Tensor, view: int, sample_ids_B: Tensor, grid: Grid, count_B: Tensor) -> Tensor:
    """Masks bool [B, N] of exactly `count_B` patches (int64 [B], 0 to N), made of rectangles as far as they fit.

    BEiT's block-wise masking (Bao et al. 2022, arXiv 2106.08254, algorithm 1), as DINOv2 completes it: rectangles of at
    least (shorter side // 3)^2 and at most the missing number of patches, height / width log-uniform in [0.3, 3.3],
    each taken if it adds patches and no more than are missing; then single patches at random until the count is exact.
    """
    rows, columns = grid
    streams = (Stream.MASK_AREA, Stream.MASK_RATIO, Stream.MASK_TOP, Stream.MASK_LEFT)
    area_RB, shape_RB, top_RB, left_RB = uniform_runs(seed, step, view, sample_ids_B, streams, _RECTANGLES)
    aspect_RB = torch.exp(math.log(_ASPECT[0]) + shape_RB * math.log(_ASPECT[1] / _ASPECT[0]))
    least = (min(grid) // 3) ** 2
    row_H1 = torch.arange(rows, device=sample_ids_B.device)[:, None]
    column_1W = torch.arange(columns, device=sample_ids_B.device)[None]
    mask_BHW = torch.zeros(len(sample_ids_B), rows, columns, dtype=torch.bool, device=sample_ids_B.device)
    for area_B, aspect_B, top_B, left_B in zip(area_RB, aspect_RB, top_RB, left_RB, strict=True):
        missing_B = count_B - mask_BHW.sum((1, 2))
        expected_B = least + area_B * (missing_B - least).clamp(min=0)
        height_B = torch.sqrt(expected_B * aspect_B).round().clamp(1, rows)
        width_B = torch.sqrt(expected_B / aspect_B).round().clamp(1, columns)
        start_B, first_B = (top_B * (rows - height_B + 1)).floor(), (left_B * (columns - width_B + 1)).floor()
        inside_BHW = _span(row_H1, start_B, height_B) & _span(column_1W, first_B, width_B)
        added_B = (inside_BHW & ~mask_BHW).sum((1, 2))
        taken_B = (added_B > 0) & (added_B <= missing_B)
        mask_BHW |= inside_BHW & taken_B[:, None, None]
    order_BN = mask_BHW.flatten(1) + noise(seed, step, view, sample_ids_B, rows * columns)  # the rectangles' come first
    rank_BN = order_BN.argsort(dim=1, descending=True).argsort(dim=1)
    return rank_BN < count_B[:, None]


def _span(place: Tensor, start_B: Tensor, length_B: Tensor) -> Tensor:
    start_B11, end_B11 = start_B[:, None, None], (start_B + length_B)[:, None, None]
    return (place[None] >= start_B11) & (place[None] < end_B11)
