"""What is kept by the run on the meta device is what autograd's hooks see of a real one, each storage once, parameters
left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.memory import kept_bytes
from vitral.models.cost import Precision
from vitral.models.create import create_model
from vitral.models.parameters import compute_copy_of
from vitral.models.summary import kept_activations

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "bfloat16_params")


def kept(name: str, batch: int, precision: Precision, checkpointed: int, **options: Any) -> tuple[int, int]:
    """What the hooks see, and what the meta device says."""
    model = create_model(name, **options).train()
    if precision == "bfloat16_params":
        model = compute_copy_of(model)
    model.checkpointed = checkpointed
    images_BCHW = torch.rand(batch, model.config.in_channels, *model.config.image_size)
    labels_B = torch.zeros(batch, dtype=torch.long)

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits_BC = model(images_BCHW)
        return torch.nn.functional.cross_entropy(logits_BC.float(), labels_B)

    seen = kept_bytes(loss, model)
    return seen, kept_activations(model.config, batch, precision).total(checkpointed)


DIGITS = {"pool": "avg", "in_channels": 1}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("drop_path", [0.0, 0.4])
@pytest.mark.parametrize("checkpointed", [0, 2, 100])
@pytest.mark.parametrize(
    ("name", "side", "batch", "options"),
    [
        ("vit_micro_patch2_8", 8, 33, DIGITS),
        ("vit_tiny_patch4_32", 32, 7, {"depth": 4}),
        ("vit_small_patch16_224", 96, 3, {"pool": "avg", "depth": 3}),
        ("vit_tiny_patch16_224", 224, 2, {"depth": 3}),
    ],
)
def test_vision_transformers(
    name: str, side: int, batch: int, options: dict[str, Any], checkpointed: int, drop_path: float, precision: Precision
) -> None:
    options = {**options, "image_size": side, "drop_path": drop_path, "num_classes": 10}
    seen, said = kept(name, batch, precision, checkpointed, **options)
    assert said == pytest.approx(seen, rel=0.02)


VARIANTS: tuple[dict[str, Any], ...] = (
    {"dropout": 0.1},
    {"layer_scale": 0.1, "drop_path": 0.5},
    {"mlp": "swiglu", "mlp_dim": 100},
    {"qk_norm": True},
    {"block_heads": (1, 2, 2, 1), "block_mlp_dims": (40, 256, 99, 3), "qk_norm": True, "depth": 4},
    {"positions": "rope", "registers": 3},
    {"positions": "relative"},
    {"positions": "relative_bias", "key_bias": False, "pool": "avg"},
    {"positions": "sincos", "positions_at": "layers_shared"},
    {"pool": "map"},
    {"pool": "cls_avg", "distill_token": False},
    {"distill_token": True, "num_classes": 77},
    {"head": "mlp"},
    {"stem_blocks": (1, 1), "patch_size": 16, "image_size": 64},
    {"stem_blocks": (), "patch_size": 16, "image_size": 64},
)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_variants(options: dict[str, Any], precision: Precision) -> None:
    seen, said = kept("vit_tiny_patch4_32", 3, precision, 0, **{"depth": 2, **options})
    assert said == pytest.approx(seen, rel=0.1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("checkpointed", [0, 4])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet20_cifar", {}),
        ("resnet18_cifar", {"image_size": (19, 24)}),
        ("resnetv2_50x1_bit", {"image_size": 64, "blocks": (1, 2, 2)}),
        ("resnetv2_50x1_bit", {"image_size": 49, "blocks": (1, 2), "norm": "batch", "preactivation": False}),
    ],
)
def test_residual_networks(name: str, options: dict[str, Any], checkpointed: int, precision: Precision) -> None:
    seen, said = kept(name, 3, precision, checkpointed, **options)
    assert said == pytest.approx(seen, rel=0.1)
