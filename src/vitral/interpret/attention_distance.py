"""Mean attention distance per head (arXiv 2010.11929, figures 7 and 11).

Shape letters: B batch, C channels, H W image height and width, N patches, T tokens, h heads, L layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.interpret.attention import grid_of, stream_maps
from vitral.interpret.tokens import Grid, pick
from vitral.models.vit import VisionTransformer


def patch_distances(grid: Grid, side: int) -> Tensor:
    """Distances of the centers of every two patches in pixels, [N, N], for patches of `side` pixels."""
    row_N, column_N = (each.flatten() for each in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    return side * torch.hypot(
        (row_N[:, None] - row_N).double(), (column_N[:, None] - column_N).double()
    )  # fmt: skip


def attention_distance(
    model: VisionTransformer, batches: Iterable[Tensor], layers: Sequence[int] | None = None
) -> Tensor:
    """Mean distance in pixels between a patch and what it attends to, weighted by the attention: [L, h] float64.

    batches: images [B, C, H, W] in [0,1] or uint8. The mean is over images and query patches (appendix D.7); attention
    to class token and registers, which lie nowhere, is left out and the rest of a row counts as the whole. One layer of
    one batch is looked at after the other. Raises UserError where there is no image.
    """
    chosen = pick(layers, model.config.depth, "layers")
    total_Lh = torch.zeros(len(chosen), model.config.heads, dtype=torch.float64)
    images, prefix = 0, model.prefix_tokens
    for images_BCHW in batches:
        distance_NN = patch_distances(grid_of(model, images_BCHW), model.config.patch_size)
        distance_NN = distance_NN.to(images_BCHW.device, torch.promote_types(model.dtype, torch.float32))
        for place, (_, map_BhTT) in enumerate(stream_maps(model, images_BCHW, chosen)):
            map_BhNN = map_BhTT[:, :, prefix:, prefix:].to(distance_NN.dtype)
            reach_BhN = torch.einsum("bhqk,qk->bhq", map_BhNN, distance_NN) / map_BhNN.sum(-1)
            total_Lh[place] += reach_BhN.mean(-1).sum(0).double().cpu()
        images += len(images_BCHW)
    if not images:
        raise UserError("at least one image is expected", where="attention distance")
    return total_Lh / images
