"""Pool the encoder output: one feature vector per image, or one per patch.

Shape letters: B batch, C channels, H W image height and width, N patches, D width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.models.token_reduction import mean_of_patches, ungroup
from vitral.structs import EncoderOutput

KINDS = ("pooled", "cls", "avg", "cls_avg", "patches")


class Encoder(Protocol):
    """All that features need of a model."""

    def encode(self, images_BCHW: Tensor) -> EncoderOutput: ...

    def pool(self, out: EncoderOutput) -> Tensor: ...


def extract_features(model: Encoder, images_BCHW: Tensor, kind: str = "pooled") -> Tensor:
    """Features of images in [0,1] (or uint8), without head and pre_logits.

    kind: "pooled", what the head would read; "cls", the class token; "avg", the mean over the patches; "cls_avg", both,
    one behind the other: [B, D], for cls_avg [B, 2 D]. "patches": every patch, row by row, [B, N, D]. All but pooled
    are the tokens as `encode` gives them: where the final norm follows pooling, before that norm. Where tokens became
    fewer, each patch has those of the token it went into (zeros for one that was dropped). Raises UserError for a class
    token that the model lacks.
    """
    out = model.encode(images_BCHW)
    if kind == "pooled":
        return model.pool(out)
    if kind == "patches":
        return out.patches_BND if out.groups_BN is None else ungroup(out.patches_BND, out.groups_BN)
    average_BD = mean_of_patches(out.patches_BND, out.groups_BN)
    if kind == "avg":
        return average_BD
    assert kind in KINDS, kind
    if out.cls_BD is None:
        raise UserError("this model has no class token", where="features", got=kind, expected="pooled or avg")
    return out.cls_BD if kind == "cls" else torch.cat([out.cls_BD, average_BD], dim=1)
