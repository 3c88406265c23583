"""Pool the encoder output: one feature vector per image, or one per patch.

Shape letters: B batch, C channels, H W image height and width, N patches, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.models.model import ImageModel
from vitral.models.registry import code_model, token_encoder
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


def layer_names(model: ImageModel) -> list[str]:
    """The layers of a Transformer by their name in `capture`, in order: of an Image GPT also the embedding. Raises
    UserError for other models."""
    vit, igpt = token_encoder(model), code_model(model)
    if vit is None and igpt is None:
        raise UserError("this model has no layers of tokens", where="layer", got=model.config.description)
    return [*(["embed"] if igpt is not None else []), *(f"blocks.{i}" for i in range(model.config.block_count))]


def layer_features(model: ImageModel, images_BCHW: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """The mean over patches, or over pixels of an Image GPT, after each of these layers: [B, D] by name."""
    vit = token_encoder(model)
    first = 0 if vit is None else vit.prefix_tokens
    captured = model.encode(images_BCHW, capture=layers).captured
    return {name: captured[name][:, first:].mean(1) for name in layers}
