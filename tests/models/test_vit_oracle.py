"""The same logits as timm and transformers, with random weights copied over."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import create_vit
from vitral.weights.hf import vit_rules
from vitral.weights.keymap import translate

pytestmark = pytest.mark.oracle

CASES: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("vit_tiny_patch16_224", {}, {}),
    ("vit_tiny_patch16_224", {"pool": "avg"}, {"global_pool": "avg"}),
    (
        "vit_tiny_patch16_224",
        {"pool": "avg", "class_token": False, "fc_norm": False},
        {"global_pool": "avg", "class_token": False, "fc_norm": False},
    ),
    ("vit_tiny_patch16_384", {"in_channels": 1}, {"in_chans": 1}),
    ("vit_small_patch32_224", {}, {}),
    ("vit_small_patch32_224", {"pool": "avg"}, {"global_pool": "avg"}),
    ("vit_base_patch16_224", {}, {}),
    ("vit_base_patch32_224", {"pool": "avg"}, {"global_pool": "avg"}),
)


def randomised(model: nn.Module) -> nn.Module:
    """In eval mode; every layer keeps the size of what passes it, and what starts at zero or one is disturbed."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter) * (
                0.02 if parameter.dim() == 1 else max(parameter[0].numel(), 1) ** -0.5
            )
            parameter.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    return model.eval()


@pytest.mark.parametrize(("name", "ours", "theirs"), CASES)
def test_logits_equal_timm(timm: ModuleType, name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    other = randomised(timm.create_model(name, num_classes=10, **theirs))
    model = create_vit(name, num_classes=10, **ours).eval()
    model.load_state_dict(other.state_dict())
    x = torch.rand(2, model.config.in_channels, *model.config.image_size)
    with torch.no_grad():
        expected: Tensor = other((x - 0.5) / 0.5)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
        features: Tensor = other.forward_features((x - 0.5) / 0.5)  # pyright: ignore[reportCallIssue]
        out = model.encode(x)
    torch.testing.assert_close(out.patches_BND, features[:, model.prefix_tokens :], rtol=0, atol=2e-5)


def test_logits_and_attention_equal_transformers(transformers: ModuleType) -> None:
    model = create_vit("vit_tiny_patch16_224", num_classes=10).eval()
    c = model.config
    config = transformers.ViTConfig(
        hidden_size=c.width,
        num_hidden_layers=c.depth,
        num_attention_heads=c.heads,
        intermediate_size=c.mlp_dim,
        layer_norm_eps=c.norm_eps,
        num_labels=10,
        attn_implementation="eager",
    )
    other = randomised(transformers.ViTForImageClassification(config))
    state = {name.removeprefix("vit."): value for name, value in other.state_dict().items()}
    model.load_state_dict(translate(vit_rules(state), state).tensors)
    x = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected = other(pixel_values=(x - 0.5) / 0.5, output_attentions=True)
        torch.testing.assert_close(model(x), expected.logits, rtol=0, atol=1e-5)
        out = model.encode(x, capture=("blocks.7.attn.map",))
    torch.testing.assert_close(out.captured["blocks.7.attn.map"], expected.attentions[7], rtol=0, atol=1e-5)
