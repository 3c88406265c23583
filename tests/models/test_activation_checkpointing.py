"""Checkpointed blocks compute the same loss, gradients and statistics, bit for bit, and keep less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.memory import kept_bytes
from vitral.models.create import create_model
from vitral.models.model import ImageModel


def make(name: str, **options: Any) -> ImageModel:
    torch.manual_seed(0)
    model = create_model(name, **options).train()
    with torch.no_grad():  # the head's zeros would hide every other gradient
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def outcome(model: ImageModel, blocks: int, dtype: torch.dtype | None = None) -> tuple[Tensor, list[Tensor]]:
    model.checkpointed = blocks
    torch.manual_seed(1)
    size = (5, model.config.in_channels, *model.config.image_size)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = model(torch.rand(size)).float().square().mean()
    loss.backward()
    # The next random number tells whether as many were drawn.
    state = [*(p.grad for p in model.parameters() if p.grad is not None), *model.buffers(), torch.rand(3)]
    return loss, state


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_micro_patch2_8", {}),
    "drop-path and dropout": ("vit_micro_patch2_8", {"pool": "avg", "drop_path": 0.5, "dropout": 0.2}),
    "rotated": ("vit_micro_patch2_8", {"positions": "rope", "registers": 2, "drop_path": 0.3}),
    "offsets": ("vit_micro_patch2_8", {"positions": "relative", "in_channels": 1, "depth": 3}),
    "bias tables": ("vit_micro_patch2_8", {"positions": "relative_bias", "key_bias": False, "drop_path": 0.3}),
    "batch norm": ("resnet20_cifar", {"blocks": (1, 2, 1), "image_size": 9}),
    "group norm": ("resnetv2_50x1_bit", {"blocks": (1, 1), "width": 32, "image_size": (33, 35), "num_classes": 3}),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("blocks", [2, 100])
def test_same_bits(variant: str, dtype: torch.dtype | None, blocks: int) -> None:
    name, options = VARIANTS[variant]
    (loss, state), (other, same) = (outcome(make(name, **options), n, dtype) for n in (0, blocks))
    assert torch.equal(loss, other)
    assert len(state) == len(same)
    assert all(torch.equal(one, two) for one, two in zip(state, same, strict=True))


@pytest.mark.parametrize("variant", ["class token", "batch norm"])
def test_less_is_kept_by_each_block(variant: str) -> None:
    name, options = VARIANTS[variant]
    model = make(name, **options)
    images_BCHW = torch.rand(4, 3, *model.config.image_size)
    kept: list[int] = []
    for model.checkpointed in range(5):
        kept.append(kept_bytes(lambda: model(images_BCHW).sum(), model))
    assert kept == sorted(kept, reverse=True)
    assert kept[4] < kept[0] * 0.4
    model.eval()
    assert kept_bytes(lambda: model(images_BCHW).sum(), model) == pytest.approx(kept[0], rel=0.05)
