"""Examples of adversarial images: the worst ones, and the attention of the model on them.

Shape letters: B batch, C H W channels, height and width of an image, h heads, T tokens, r c rows and columns of
patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vitral.interpret.attention import grid_of, token_attention
from vitral.interpret.tokens import on_grid
from vitral.models.registry import token_encoder
from vitral.predictor import Predictor
from vitral.report.attack import Array, Example


def worst_first(examples: Sequence[Example]) -> list[Example]:
    """Sort by the confidence in the wrong answer, the highest first."""
    return sorted(examples, key=lambda example: -float(example.after_K.max()))


def attention_of(predictor: Predictor, *images_CHW: Array) -> list[Array] | None:
    """Return for each image the attention [r, c] of the token that the head reads on the patches in the last layer,
    mean of the heads; None for a model without attention, and for one that reduces its tokens."""
    vit = None if predictor.is_export else token_encoder(predictor.model)
    if vit is None or vit.reduce is not None:
        return None
    x_BCHW = torch.stack([torch.from_numpy(image_CHW) for image_CHW in images_CHW]).to(predictor.device)
    with torch.no_grad():
        shares_BhT = token_attention(vit, x_BCHW, layers=[-1])[:, 0]
    maps_Brc = on_grid(shares_BhT.nanmean(1), vit.prefix_tokens, grid_of(vit, x_BCHW))
    return list(maps_Brc.float().cpu().numpy())
