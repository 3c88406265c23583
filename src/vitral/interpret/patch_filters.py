"""Views of a model without images: patch embedding filters, similarity of positions (arXiv 2010.11929, figure 7).

Shape letters: C channels, P patch side, N patches, D width, K components.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.errors import UserError
from vitral.models.layers import PatchEmbed
from vitral.models.position import rows_and_columns
from vitral.models.vit import VisionTransformer


class Components(NamedTuple):
    """Principal components of filters, [K, C, P, P], unit vectors, the first one first, and the share of the filters'
    variance that each explains, [K]."""

    filters_KCPP: Tensor
    shares_K: Tensor


@torch.no_grad()
def filter_components(model: VisionTransformer, count: int = 28) -> Components:
    """The first principal components of the patch filters (figure 7, left, shows 28).

    At most as many as there are filters or values of a patch. The sign of a component means nothing: here its largest
    value is positive. Raises UserError for hybrids, whose filters look at the map of a ResNet and are no pictures.
    """
    embed = model.patch_embed
    if not isinstance(embed, PatchEmbed):
        raise UserError("the filters of a hybrid look at a map of its ResNet, not at pixels: no picture shows them")
    weight_DCPP = embed.proj.weight.double()
    flat_DX = weight_DCPP.flatten(1)
    centered_DX = flat_DX - flat_DX.mean(0)
    _, sizes_K, vectors_KX = torch.linalg.svd(centered_DX, full_matrices=False)
    largest_K1 = vectors_KX.gather(1, vectors_KX.abs().argmax(1, keepdim=True))
    vectors_KX = vectors_KX * torch.where(largest_K1 < 0, -1.0, 1.0)
    shares_K = sizes_K.square() / sizes_K.square().sum()
    return Components(vectors_KX[:count].unflatten(1, weight_DCPP.shape[1:]), shares_K[:count])


@torch.no_grad()
def position_similarity(model: VisionTransformer) -> Tensor:
    """Cosine of the position embeddings of every two patches, [N, N], row by row (figure 7, center).

    Of several tables, the first layer's. Raises UserError where positions are no vectors that are added to patches.
    """
    c = model.config
    if model.pos_embed is not None:
        table_ND = model.pos_embed[0, c.position_rows :]
    elif model.pos_embed_y is not None and model.pos_embed_x is not None:
        table_ND = rows_and_columns(model.pos_embed_y, model.pos_embed_x, model.grid, c.position_resize)[0]
    elif c.positions == "sincos":
        assert model.fixed_places is not None
        table_ND = model.fixed_places[0]
    else:
        raise UserError(f"with positions={c.positions} no position has an embedding, so none are alike")
    unit_ND = F.normalize(table_ND.to(torch.float64), dim=-1)
    return unit_ND @ unit_ND.T
