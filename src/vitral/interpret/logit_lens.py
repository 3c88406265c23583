"""The logit lens: predictions of the model after each layer.

Shape letters: B batch, C channels, H W image height and width, T tokens, D width, L layers, S classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.interpret.tokens import pick
from vitral.models.vit import VisionTransformer


@torch.no_grad()
def logit_lens(model: VisionTransformer, images_BCHW: Tensor, layers: Sequence[int] | None = None) -> Tensor:
    """Logits [B, L, S] of the tokens after each layer, by the model's own final norm, pooling and head.

    After the last layer they are the model's answer. The head was trained for that layer alone: early answers can be
    wrong though the tokens know better (arXiv 2310.18969 looks at Vision Transformers so). Raises UserError for a model
    without a head, and for a layer that is not there.
    """
    if not model.config.num_classes:
        raise UserError("this model has no head, so no layer has an answer")
    names = [f"blocks.{layer}" for layer in pick(layers, model.config.depth, "layers")]
    out = model.encode(images_BCHW, capture=names)
    logits: list[Tensor] = []
    for name in names:
        tokens_BTD = model.norm(out.captured[name])
        logits.append(model.classify(model.pool(model.split(tokens_BTD, out.grid))))
    return torch.stack(logits, dim=1)
