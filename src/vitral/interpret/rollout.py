"""Attention rollout through all layers.

Shape letters: B batch, C channels, H W image height and width, T tokens, h heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from vitral.interpret.attention import grid_of, stream_maps
from vitral.interpret.tokens import token_rows
from vitral.models.vit import VisionTransformer

Fuse = Literal["mean", "max"]


def roll(maps: Iterable[Tensor], fuse: Fuse = "mean") -> Tensor:
    """The product of the layers' attention, first layer rightmost: [B, T, T], rows sum to 1.

    maps: [B, h, T, T] of every layer, from the first to the last. Heads are averaged, or their maximum is taken; half
    of each row stays where it is, for the residual connection (arXiv 2005.00928, section 3.1, which arXiv 2010.11929
    uses in appendix D.8). With "max" rows are scaled to sum to 1. In float32 or better.
    """
    rolled_BTT: Tensor | None = None
    for map_BhTT in maps:
        wide_BhTT = map_BhTT.to(torch.promote_types(map_BhTT.dtype, torch.float32))
        fused_BTT = wide_BhTT.mean(1) if fuse == "mean" else wide_BhTT.amax(1)
        step_BTT = fused_BTT + torch.eye(fused_BTT.shape[-1], dtype=fused_BTT.dtype, device=fused_BTT.device)
        step_BTT = step_BTT / step_BTT.sum(-1, keepdim=True)
        rolled_BTT = step_BTT if rolled_BTT is None else step_BTT @ rolled_BTT
    assert rolled_BTT is not None, "no map"
    return rolled_BTT


def rollout(model: VisionTransformer, images_BCHW: Tensor, token: str | None = None, fuse: Fuse = "mean") -> Tensor:
    """How much of each token of the first layer reaches `token` in the last one: [B, T], rows sum to 1.

    token: see `token_rows`. What an average-pooled model says is the mean over its patches, and so is their rollout.
    """
    rows = token_rows(model.config, token, grid_of(model, images_BCHW))
    rolled_BTT = roll((map_BhTT for _, map_BhTT in stream_maps(model, images_BCHW)), fuse)
    return rolled_BTT[:, rows].mean(1)
