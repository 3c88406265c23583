"""Truths about keeping what the class token attends to. B batch, N patches, M left, T tokens, D width, h heads."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.models.test_vit import images, tiny
from vitral.compression.evit import EViT
from vitral.errors import UserError
from vitral.models.vit import VisionTransformer

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"pool": "avg", "class_token": False},
    {"distill_token": True, "registers": 1},
    {"positions": "rope", "pool": "cls_avg", "image_size": (6, 10)},
    {"pool": "map", "registers": 2},
)


def deep(dtype: torch.dtype = torch.float32, **options: Any) -> VisionTransformer:
    return tiny(dtype, **{"depth": 4, **options})


@pytest.mark.parametrize("options", VARIANTS)
def test_keeping_all_is_the_same_bit_for_bit(options: dict[str, Any]) -> None:
    model = deep(**options)
    x = images(model)
    logits = model(x)
    model.reduce = EViT(1.0)
    assert torch.equal(model(x), logits)


def test_counts_are_those_of_the_shares() -> None:
    # The paper's setting of DeiT-S: after blocks 3, 6 and 9 of 12, 196 patches; one token is fused each time.
    assert EViT(0.7).counts(196, 12) == [196] * 3 + [139] * 3 + [99] * 3 + [71] * 3
    assert EViT(0.5, (0, 3)).counts(15, 4) == [9, 9, 9, 6]
    assert EViT(0.5, ()).counts(15, 4) == [15] * 4
    assert EViT(0.01, range(4)).counts(3, 4) == [2, 2, 2, 2]
    with pytest.raises(UserError, match=r"(?s)evit\.after.*got: *4.*expected: *0 to 3"):
        EViT(0.5, (4,)).counts(15, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", VARIANTS)
def test_the_most_attended_stay_and_the_rest_are_one(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Against an explicit computation from the map of the layer and the block's own parts."""
    model = deep(dtype, **options)
    P, N = model.prefix_tokens, model.grid[0] * model.grid[1]
    reduction = EViT(0.6, (1,))
    names = ["blocks.0", "blocks.1", "blocks.1.attn", "blocks.1.attn.map"]
    patches, grid = model.embed(images(model))
    out = model.encode_tokens(patches, grid, capture=names, reduce=reduction)
    count = math.ceil(0.6 * N)
    map_BhTT = out.captured["blocks.1.attn.map"]
    attention = (map_BhTT[:, :, 0] if model.config.class_token else map_BhTT.mean(2)).mean(1)[:, P:]
    block: Any = model.blocks[1]
    x = out.captured["blocks.0"] + block.ls1(out.captured["blocks.1.attn"])
    for i in range(len(x)):
        order = attention[i].argsort(descending=True)
        kept, rest = order[:count].sort().values, order[count:]
        share = attention[i, rest] / attention[i, rest].sum()
        fused = (share[:, None] * x[i, P:][rest]).sum(0, keepdim=True)
        y = torch.cat([x[i, :P], x[i, P:][kept], fused])
        y = y + block.mlp(block.norm2(y))
        assert torch.allclose(out.captured["blocks.1"][i], y, atol=1e-4 if dtype == torch.float32 else 1e-7)
        assert out.groups_BN is not None
        assert out.groups_BN[i, kept].tolist() == list(range(count))
        assert (out.groups_BN[i, rest] == count).all()


@pytest.mark.parametrize("options", VARIANTS)
def test_logits_are_those_of_the_encoded_tokens(options: dict[str, Any]) -> None:
    model = deep(**options)
    model.reduce = EViT(0.5, (0, 2))
    x = images(model)
    assert torch.allclose(model(x), model.classify(model.pool(model.encode(x))), atol=1e-5)


def test_gradients_reach_every_parameter() -> None:
    model = deep(pool="avg", drop_path=0.3).train()
    model.reduce = EViT(0.5)
    model(images(model, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_it_is_one_graph() -> None:
    model = deep()
    model.reduce = EViT(0.5)
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images(model)
    torch.testing.assert_close(compiled(x), model(x))
