"""Every variant gives the logits of a public implementation of it, with random weights copied over."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.test_vit_oracle import randomised
from vitral.models.create import build_model, create_model
from vitral.models.presets import PRESETS, list_models
from vitral.models.registry import build_config
from vitral.models.vit import VisionTransformer
from vitral.weights.hf import dinov3_rules
from vitral.weights.keymap import translate

pytestmark = pytest.mark.oracle

SMALL = {"width": 48, "depth": 3, "heads": 3, "mlp_dim": 96, "patch_size": 4, "image_size": (20, 28), "num_classes": 7}
THEIR_SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3, "mlp_ratio": 2, "patch_size": 4, "img_size": (20, 28)}

# What timm leaves out: the class token's position, biases of query, key and value, and a second table of them.
LEFT_OUT_BY_TIMM = ("reg4_dinov2", "dinov3")


def small(**options: Any) -> VisionTransformer:
    """A model of odd shape in eval mode."""
    model = build_model(build_config({**SMALL, **options}))
    assert isinstance(model, VisionTransformer)
    return model.eval()


def test_counts_of_every_name_that_timm_knows(timm: ModuleType) -> None:
    known = [name for name in list_models() if timm.is_model(name) and not any(e in name for e in LEFT_OUT_BY_TIMM)]
    assert len(known) > 30
    for name in known:
        with torch.device("meta"):
            ours, theirs = create_model(name, num_classes=1000), timm.create_model(name, num_classes=1000)
        shapes = {re.sub(r"gamma_(\d)$", r"ls\1.gamma", n): p.shape for n, p in theirs.named_parameters()}  # BEiT's
        assert {n: p.shape for n, p in ours.named_parameters()} == shapes
    assert set(known) < set(PRESETS)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"qk_norm": True}, {"qk_norm": True}),
        ({"layer_scale": 0.1}, {"init_values": 0.1}),
        ({"gelu": "tanh"}, {"act_layer": "gelu_tanh"}),
        ({"registers": 3, "prefix_positions": False}, {"reg_tokens": 3, "no_embed_class": True}),
        (
            {"registers": 3, "pool": "avg", "class_token": False},
            {"reg_tokens": 3, "no_embed_class": True, "global_pool": "avg", "class_token": False},
        ),
        (
            {"pool": "map", "class_token": False},
            {"global_pool": "map", "class_token": False},
        ),
        ({"pool": "map"}, {"global_pool": "map", "pool_include_prefix": False}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_equal_timm(timm: ModuleType, ours: dict[str, Any], theirs: dict[str, Any], channels: int) -> None:
    model = small(in_channels=channels, **ours)
    other = timm.models.vision_transformer.VisionTransformer(**THEIR_SMALL, num_classes=7, in_chans=channels, **theirs)
    model.load_state_dict(randomised(other).state_dict())
    x = torch.rand(3, channels, 20, 28)
    with torch.no_grad():
        torch.testing.assert_close(model(x), other((x - 0.5) / 0.5), rtol=0, atol=1e-5)


def test_distilled_logits_equal_timm(timm: ModuleType) -> None:
    model = small(distill_token=True)
    other = timm.models.deit.VisionTransformerDistilled(**THEIR_SMALL, num_classes=7)
    model.load_state_dict(randomised(other).state_dict())
    x = torch.rand(3, 3, 20, 28)
    with torch.no_grad():
        torch.testing.assert_close(model(x), other((x - 0.5) / 0.5), rtol=0, atol=1e-5)


def test_swiglu_equals_timm(timm: ModuleType) -> None:
    """timm's packed layer splits into gate and value as ours does."""
    model = small(mlp="swiglu", mlp_dim=96)
    other = timm.models.vision_transformer.VisionTransformer(
        **{**THEIR_SMALL, "mlp_ratio": 4}, num_classes=7, mlp_layer=timm.layers.SwiGLUPacked, act_layer=nn.SiLU
    )
    model.load_state_dict(randomised(other).state_dict())
    x = torch.rand(3, 3, 20, 28)
    with torch.no_grad():
        torch.testing.assert_close(model(x), other((x - 0.5) / 0.5), rtol=0, atol=1e-5)


def test_rope_equals_transformers(transformers: ModuleType) -> None:
    """The angles of DINOv3, on its own grid and on others."""
    for heads, grid in ((3, (5, 7)), (2, (4, 4)), (6, (1, 9))):
        model = small(positions="rope", heads=heads)
        config = transformers.DINOv3ViTConfig(hidden_size=48, num_attention_heads=heads, patch_size=4)
        module = transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTRopePositionEmbedding(config).eval()
        cos, sin = module(torch.zeros(1, 3, grid[0] * 4, grid[1] * 4))
        rope_2BNd = model._places_of(grid)
        torch.testing.assert_close(rope_2BNd[0, 0], cos.float(), rtol=0, atol=1e-5)
        torch.testing.assert_close(rope_2BNd[1, 0], sin.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("gated", "registers"), [(False, 1), (True, 4)])
def test_tokens_equal_dinov3(transformers: ModuleType, gated: bool, registers: int) -> None:
    model = small(
        positions="rope", registers=registers, layer_scale=1.0, norm_eps=1e-5, mlp="swiglu" if gated else "gelu",
        num_classes=0,
    )  # fmt: skip
    config = transformers.DINOv3ViTConfig(
        hidden_size=48, num_attention_heads=3, num_hidden_layers=3, intermediate_size=96, patch_size=4,
        num_register_tokens=registers, use_gated_mlp=gated, hidden_act="silu" if gated else "gelu",
    )  # fmt: skip
    other = randomised(transformers.DINOv3ViTModel(config))
    state = other.state_dict()
    model.load_state_dict(translate(dinov3_rules(state), state).tensors)
    for size in ((20, 28), (12, 36)):
        x = torch.rand(2, 3, *size)
        with torch.no_grad():
            expected: Tensor = other((x - 0.5) / 0.5).last_hidden_state  # pyright: ignore[reportCallIssue]
            out = model.encode(x)
        assert out.cls_BD is not None
        torch.testing.assert_close(out.cls_BD, expected[:, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(out.patches_BND, expected[:, 1 + registers :], rtol=0, atol=1e-5)
