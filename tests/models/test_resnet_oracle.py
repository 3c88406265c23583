"""The same maps, patches and logits as timm's and torchvision's residual networks, with random weights copied over."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitral.models.config import ResNetConfig
from vitral.models.registry import build_config
from vitral.models.resnet import HybridEmbed, ResNet
from vitral.models.resnet_presets import RESNETS
from vitral.models.vit_presets import HYBRIDS

pytestmark = pytest.mark.oracle


def randomised(model: nn.Module) -> nn.Module:
    """In eval mode; convolutions keep the size of what passes them, norms and their statistics are disturbed."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.dim() > 1:
                value.copy_(torch.randn_like(value) * value[0].numel() ** -0.5)
            elif value.is_floating_point():
                value.copy_(0.1 * torch.randn_like(value) + (not name.endswith(("bias", "mean"))))
    return model.eval()


def resnet(tree: dict[str, Any]) -> ResNet:
    config = build_config(tree)
    assert isinstance(config, ResNetConfig)
    return ResNet(config).eval()


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    """At most 1e-5 of the largest value apart, or 1e-10 in float64.

    Odd sizes and disturbed norms are compared in float64: deep random networks amplify the rounding of float32 to
    6e-5, ours and timm's alike.
    """
    assert ours.shape == theirs.shape
    tolerance = 1e-10 if theirs.dtype == torch.float64 else 1e-5
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def logits(model: ResNet, images: Tensor) -> Tensor:
    """Of any size; the model itself refuses all but its own."""
    return model.classify(model.pool(model.encode(images)))


@pytest.mark.parametrize(("name", "channels"), [(name, 1 if "r26" in name else 3) for name in HYBRIDS])
def test_patches_equal_timm(timm: ModuleType, name: str, channels: int) -> None:
    _, blocks, patch = HYBRIDS[name]
    published = f"{name}_{384 if 'r50_s16' in name else 224}"
    torch.manual_seed(1)
    other: Any = timm.create_model(published, depth=1, num_classes=0, in_chans=channels).patch_embed.eval()
    model = HybridEmbed(channels, blocks, patch, other.proj.out_channels).eval()
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        images = torch.randn(1, channels, 224, 224)
        assert_near(model(images), other(images))
        model.double().load_state_dict(randomised(other.double()).state_dict())
        for size in ((64, 32), (33, 70)):
            images = torch.randn(1, channels, *size, dtype=torch.float64)
            assert_near(model(images), other(images))


def test_logits_equal_timm(timm: ModuleType) -> None:
    torch.manual_seed(1)
    other: Any = timm.create_model("resnetv2_50x1_bit").eval()
    model = resnet(RESNETS["resnetv2_50x1_bit"])
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        images = torch.rand(1, 3, 224, 224)
        assert_near(model(images), other((images - 0.5) / 0.5))
        model.double().load_state_dict(randomised(other.double()).state_dict())
        for size in ((64, 32), (33, 70)):
            images = torch.rand(2, 3, *size, dtype=torch.float64)
            scaled = (images - 0.5) / 0.5
            out = model.encode(images, capture=("stages.1",))
            assert_near(model.classify(model.pool(out)), other(scaled))
            assert_near(out.captured["stages.1"], other.forward_intermediates(scaled, indices=[2])[1][0])
            assert_near(out.patches_BND, other.forward_features(scaled).flatten(2).mT)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_basic_blocks_equal_timm(timm: ModuleType, norm: str) -> None:
    """Norm and ReLU first, two 3x3 convolutions a block."""
    layers: dict[str, Any] = {}
    if norm == "batch":
        layers = {"norm_layer": timm.layers.BatchNormAct2d, "conv_layer": timm.layers.create_conv2d}
    else:
        layers = {"conv_layer": lambda *a, **k: timm.layers.StdConv2d(*a, **k, eps=1e-8)}
    kind: Any = timm.models.resnetv2.ResNetV2
    other: Any = randomised(
        kind([2, 1, 2], (64, 128, 256), 5, basic=True, bottle_ratio=1.0, stem_type="fixed", in_chans=2, **layers)
    )
    tree = {"family": "resnet", "blocks": [2, 1, 2], "block": "basic", "norm": norm, "image_size": 64}
    model = resnet({**tree, "num_classes": 5, "in_channels": 2})
    model.load_state_dict(other.state_dict())
    model, other = model.double(), other.double()
    for size in ((64, 64), (45, 70)):
        images = torch.rand(2, 2, *size, dtype=torch.float64)
        with torch.no_grad():
            assert_near(logits(model, images), other((images - 0.5) / 0.5))


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names for the parameters of torchvision's ResNet."""
    mapped: dict[str, Tensor] = {}
    for name, value in state.items():
        parts = name.replace("downsample.0", "downsample.conv").replace("downsample.1", "downsample.norm").split(".")
        if parts[0].startswith("layer"):
            parts = [
                "stages",
                str(int(parts[0][5:]) - 1),
                "blocks",
                *parts[1:-2],
                parts[-2].replace("bn", "norm"),
                parts[-1],
            ]
        elif parts[0] == "fc":
            value = value[..., None, None] if parts[-1] == "weight" else value
            parts = ["head", *parts]
        else:
            parts = ["stem", {"conv1": "conv", "bn1": "norm"}[parts[0]], parts[-1]]
        mapped[".".join(parts)] = value
    return mapped


def torchvision_pair(torchvision: ModuleType, name: str) -> tuple[ResNet, nn.Module]:
    """Ours and theirs with equal weights; "resnet18_cifar" is theirs with the usual 3x3 as first layer."""
    other: Any = getattr(torchvision.models, name.removesuffix("_cifar"))(num_classes=10)
    if name.endswith("_cifar"):
        other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
        model = resnet(RESNETS[name])
    else:
        tree = {"family": "resnet", "image_size": 64, "num_classes": 10, "norm": "batch", "preactivation": False}
        blocks = [2, 2, 2, 2] if name == "resnet18" else [3, 4, 6, 3]
        model = resnet({**tree, "blocks": blocks, "block": "basic" if name == "resnet18" else "bottleneck"})
    randomised(other)
    model.load_state_dict(from_torchvision(other.state_dict()))
    return model, other


@pytest.mark.parametrize("name", ["resnet18_cifar", "resnet18", "resnet50"])
def test_logits_equal_torchvision(torchvision: ModuleType, name: str) -> None:
    model, other = torchvision_pair(torchvision, name)
    for size in ((32, 32), (37, 50)):
        images = torch.rand(2, 3, *size)
        with torch.no_grad():
            assert_near(logits(model, images), other((images - 0.5) / 0.5))


def test_training_equals_torchvision(torchvision: ModuleType) -> None:
    """Two steps of gradient descent: equal losses, weights and statistics of the norms."""
    model, other = torchvision_pair(torchvision, "resnet18_cifar")
    model.double().train()
    other.double().train()
    images, labels = torch.rand(3, 3, 9, 12, dtype=torch.float64), torch.tensor([0, 3, 9])
    for _ in range(2):
        losses = [
            nn.functional.cross_entropy(out, labels) for out in (logits(model, images), other((images - 0.5) / 0.5))
        ]
        torch.testing.assert_close(losses[0], losses[1])
        for network, loss in zip((model, other), losses, strict=True):
            loss.backward()
            torch.optim.SGD(network.parameters(), lr=0.1).step()
            network.zero_grad()
    expected = from_torchvision(other.state_dict())
    assert expected.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-9)
