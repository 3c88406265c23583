"""Small Vision Transformers of every kind that attention can be looked at in."""

from __future__ import annotations

from typing import Any

import torch

from tests.helpers import create_vit
from tests.models.test_vit_oracle import randomised
from vitral.models.vit import VisionTransformer

SMALL: dict[str, Any] = {
    "width": 16, "depth": 3, "heads": 2, "mlp_dim": 32, "in_channels": 1, "num_classes": 5, "image_size": (6, 8),
}  # fmt: skip

VARIANTS: dict[str, dict[str, Any]] = {
    "class token": {},
    "no class token": {"class_token": False, "pool": "avg"},
    "averaged with class token": {"pool": "avg"},
    "registers": {"registers": 3},
    "distilled": {"distill_token": True, "registers": 1},
    "rope": {"positions": "rope", "registers": 1},
    "relative": {"positions": "relative"},
    "relative bias": {"positions": "relative_bias", "key_bias": False, "pool": "avg"},
    "sincos": {"positions": "sincos", "class_token": False, "pool": "avg"},
    "both": {"pool": "cls_avg", "qk_norm": True, "layer_scale": 0.5},
    "map": {"pool": "map", "class_token": False, "mlp": "swiglu"},
    "tanh head": {"head": "mlp", "positions": "learned_2d", "positions_at": "layers"},
    "hybrid": {"stem_blocks": [], "patch_size": 4, "image_size": (8, 12)},
}


def variant(name: str, *, sharp: float = 3.0, **options: Any) -> VisionTransformer:
    """The model with random weights, in evaluation mode. sharp: above 1 attention is far from uniform."""
    model = create_vit("vit_micro_patch2_8", **{**SMALL, **VARIANTS[name], **options})
    randomised(model)
    with torch.no_grad():
        for layer in range(model.config.depth):
            model.get_parameter(f"blocks.{layer}.attn.qkv.weight").mul_(sharp)
    return model


def images(model: VisionTransformer, count: int = 2) -> torch.Tensor:
    """Random images of the model's size."""
    torch.manual_seed(1)
    return torch.rand(count, model.config.in_channels, *model.config.image_size)
