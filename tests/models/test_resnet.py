"""Residual networks: exact counts, closed forms of their parts, initialization, what `encode` gives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.errors import UserError
from vitral.models.config import ResNetConfig
from vitral.models.convolution import Block, Conv, Style, Zeros, pad_same
from vitral.models.registry import build_config
from vitral.models.resnet import HybridEmbed, ResNet
from vitral.models.resnet_presets import RESNETS
from vitral.models.summary import count_parameters
from vitral.models.vit_presets import HYBRIDS

COUNTS = {
    "resnetv2_50x1_bit": 25_549_352,
    "resnetv2_50x3_bit": 217_319_080,
    "resnetv2_101x1_bit": 44_541_480,
    "resnetv2_101x3_bit": 387_934_888,
    "resnetv2_152x2_bit": 236_335_208,
    "resnetv2_152x4_bit": 936_533_224,
    "resnet20_cifar": 269_722,
    "resnet32_cifar": 464_154,
    "resnet44_cifar": 658_586,
    "resnet56_cifar": 853_018,
    "resnet110_cifar": 1_727_962,
    "resnet18_cifar": 11_173_962,
}
BATCH = {"norm": "batch", "preactivation": False}
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_classes": 0, "in_channels": 1},
    {"block": "basic", "blocks": [1, 2, 1], "stem": "cifar", "in_channels": 4},
    {"block": "basic", "blocks": [2], "preactivation": False},
    {"width": 64, "shortcut": "zeros"},
    {**BATCH, "width": 5, "block": "basic", "stem": "cifar"},
    {**BATCH, "width": 6, "blocks": [1, 1, 2]},
    {"norm": "batch", "width": 6, "shortcut": "zeros"},
)


def config(**options: Any) -> ResNetConfig:
    tree = {"family": "resnet", "blocks": [2, 1], "width": 32, "image_size": [22, 37], "num_classes": 7, **options}
    found = build_config(tree)
    assert isinstance(found, ResNetConfig)
    return found


def disturbed(model: nn.Module) -> nn.Module:
    """No scale, shift or head of exactly 0 or 1, and convolutions that keep the size of what passes them."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
    return model


def small(**options: Any) -> ResNet:
    model = disturbed(ResNet(config(**options))).eval()
    assert isinstance(model, ResNet)
    return model


def built(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_row_has_a_count() -> None:
    assert set(COUNTS) == set(RESNETS)


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_exact_count(name: str, count: int) -> None:
    found = config(**{"width": 64, **RESNETS[name]})
    assert count_parameters(found) == count


def test_counts_of_table_6() -> None:
    """As arXiv 1512.03385 rounds them; and what 1x1 convolutions as shortcuts, with their norms, add."""
    millions = [round(COUNTS[f"resnet{depth}_cifar"] / 1e6, 2) for depth in (20, 32, 44, 56)]
    assert millions == [0.27, 0.46, 0.66, 0.85]
    assert round(COUNTS["resnet110_cifar"] / 1e6, 1) == 1.7
    added = 16 * 32 + 32 * 64 + 2 * 32 + 2 * 64
    for depth in (20, 56):
        row = {**RESNETS[f"resnet{depth}_cifar"], "shortcut": "projection"}
        assert count_parameters(config(**row)) == COUNTS[f"resnet{depth}_cifar"] + added


# Parameters of the ResNet in front, of 1 and 3 channels, and channels of its last map.
STEMS = {
    "vit_tiny_r_s16_p8": (3_264, 9_536, 64),
    "vit_small_r26_s32": (13_939_904, 13_946_176, 2048),
    "vit_base_r26_s32": (13_939_904, 13_946_176, 2048),
    "vit_base_r50_s16": (11_888_576, 11_894_848, 1024),
    "vit_large_r50_s32": (23_501_760, 23_508_032, 2048),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", HYBRIDS)
def test_count_of_a_hybrid(name: str, channels: int) -> None:
    _, blocks, patch = HYBRIDS[name]
    gray, color, width = STEMS[name]
    with torch.device("meta"):
        embed = HybridEmbed(channels, blocks, patch, 24)
    assert embed.patch_size == patch
    assert embed.proj.weight.shape[1] == width
    assert built(embed.backbone) == (gray if channels == 1 else color)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (7, 2), (5, 3), (1, 2)])
def test_same_padding(kernel: int, stride: int) -> None:
    """TensorFlow's rule: ceil(size / stride) windows, as few zeros as that takes, the odd one after."""
    for height, width in ((1, 2), (7, 8), (9, 12), (30, 31)):
        padded = pad_same(torch.ones(1, 1, height, width), kernel, stride)
        for axis, size in ((2, height), (3, width)):
            expected = -(-size // stride)
            length = padded.shape[axis]
            assert (length - kernel) // stride + 1 == expected
            assert length == size or (length - 1 - kernel) // stride + 1 < expected
            line = padded.amax([d for d in range(4) if d != axis])
            before, after = int(line.argmax()), int(line.flip(0).argmax())
            assert before + after + size == length
            assert after - before in (0, 1)


@pytest.mark.parametrize("epsilons", ["timm", "google"])
def test_weights_are_standardized(epsilons: Any) -> None:
    style = Style(preactivation=True, epsilons=epsilons)
    conv = Conv(5, 4, 3, 1, style).double()
    torch.manual_seed(0)
    # Deviations from those of trained weights down to where the epsilons dominate.
    weight = torch.randn(4, 5, 3, 3, dtype=torch.float64) * torch.tensor([1, 1e-2, 1e-4, 1e-6])[:, None, None, None] + 2
    conv.weight.data = weight
    maps = torch.randn(2, 5, 6, 9, dtype=torch.float64)
    rows = [weight[i].flatten() for i in range(4)]
    variances = [((row - row.sum() / 45) ** 2).sum() / 45 for row in rows]
    scales = [(v + 1e-8) ** 0.5 if epsilons == "timm" else v**0.5 + 1e-5 for v in variances]
    plain = torch.stack([((row - row.mean()) / s).reshape(5, 3, 3) for row, s in zip(rows, scales, strict=True)])
    torch.testing.assert_close(conv(maps), F.conv2d(maps, plain, padding=1), rtol=1e-7, atol=1e-7)


def test_shortcut_of_zeros() -> None:
    maps = torch.randn(2, 3, 5, 4)
    out = Zeros(3, 7, 2)(maps)
    assert torch.equal(out[:, :3], maps[:, :, ::2, ::2])
    assert out.shape == (2, 7, 3, 2)
    assert not out[:, 3:].any()


def google_block(block: Block, x: Tensor, stride: int) -> Tensor:
    """One bottleneck by the formulas of the paper's code, in plain steps."""

    def conv(weight: Tensor, x: Tensor, step: int = 1) -> Tensor:
        w = weight - weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.std((1, 2, 3), correction=0, keepdim=True) + 1e-5)
        return F.conv2d(pad_same(x, w.shape[-1], step), w, stride=step)

    def norm(layer: Any, x: Tensor) -> Tensor:
        groups = x.unflatten(1, (32, -1))
        mean, variance = groups.mean((2, 3, 4), keepdim=True), groups.var((2, 3, 4), correction=0, keepdim=True)
        scaled = ((groups - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
        return scaled * layer.weight[:, None, None] + layer.bias[:, None, None]

    b: Any = block
    shortcut = x if b.downsample is None else norm(b.downsample.norm, conv(b.downsample.conv.weight, x, stride))
    y = norm(b.norm1, conv(b.conv1.weight, x)).relu()
    y = norm(b.norm2, conv(b.conv2.weight, y, stride)).relu()
    return (shortcut + norm(b.norm3, conv(b.conv3.weight, y))).relu()


@pytest.mark.parametrize("stride", [1, 2])
def test_block_of_the_papers_code(stride: int) -> None:
    style = Style(preactivation=False, same=True, epsilons="google")
    block = disturbed(Block(64, 128, stride, True, style)).double()
    assert isinstance(block, Block)
    maps = torch.rand(2, 64, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(block(maps), google_block(block, maps, stride), rtol=1e-9, atol=1e-9)


def test_hybrid_cuts_off_what_is_no_whole_patch() -> None:
    embed = disturbed(HybridEmbed(3, (), 16, 8))
    images = torch.rand(1, 3, 53, 70)  # a map of 14 x 18, patches of 4 x 4 cells
    out = embed(images)
    assert out.shape == (1, 3 * 4, 8)
    cells = F.unfold(embed.backbone(images)[:, :, :12, :16], 4, stride=4).transpose(1, 2)  # pyright: ignore
    torch.testing.assert_close(out, cells @ embed.proj.weight.flatten(1).T + embed.proj.bias)  # pyright: ignore


@pytest.mark.parametrize("blocks", [(), (1, 2)])
def test_init_sets_every_value_of_a_hybrid(blocks: tuple[int, ...]) -> None:
    embed = HybridEmbed(2, blocks, 16, 6)
    for value in embed.state_dict().values():
        value.fill_(float("nan"))
    embed.init_weights()
    assert all(value.isfinite().all() for value in embed.state_dict().values())
    assert embed(torch.rand(1, 2, 32, 32)).std() > 0.01
    for module in embed.modules():
        if isinstance(module, Block):  # the branch starts as nothing
            maps = torch.rand(1, int(module.conv1.weight.shape[1]), 4, 4)
            shortcut = maps if module.downsample is None else module.downsample(maps)
            assert torch.equal(module(maps), shortcut.relu())


@pytest.mark.parametrize("options", VARIANTS)
def test_init_sets_every_value(options: dict[str, Any]) -> None:
    model = ResNet(config(**options))
    for value in model.state_dict().values():
        value.fill_(float("nan") if value.is_floating_point() else 99)
    model.init_weights()
    for name, value in model.state_dict().items():
        assert value.isfinite().all(), name
        assert not name.endswith(("running_mean", "tracked")) or not value.any(), name
        assert not name.endswith("running_var") or (value == 1).all(), name
    weight = model.stages[0].blocks[0].conv1.weight  # pyright: ignore
    expected = (2 / (weight.shape[0] * weight.shape[-1] ** 2)) ** 0.5
    assert 0.8 * expected < weight.std().item() < 1.2 * expected
    if model.config.num_classes:
        images = torch.rand(2, model.config.in_channels, *model.config.image_size)
        assert not model.eval()(images).any()


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("size", [(22, 37), (1, 1), (33, 8)])
def test_any_size_is_encoded(options: dict[str, Any], size: tuple[int, int]) -> None:
    model = small(**options)
    c = model.config
    images = torch.randint(0, 256, (2, c.in_channels, *size), dtype=torch.uint8)
    last = f"stages.{len(c.blocks) - 1}"
    with torch.no_grad():
        out = model.encode(images, capture=("stages.0.blocks.0", last))
        pooled = model.pool(out)
        logits = model.classify(pooled)
    assert out.grid == (-(-size[0] // c.stride), -(-size[1] // c.stride))
    assert out.patches_BND.shape == (2, out.grid[0] * out.grid[1], c.pooled_width)
    assert out.captured.keys() == {"stages.0.blocks.0", last}
    maps = out.captured[last]
    cells = F.relu(model.norm(maps)) if model.norm is not None else maps
    assert torch.equal(out.patches_BND[1, out.grid[1] - 1], cells[1, :, 0, -1])
    assert out.cls_BD is None
    torch.testing.assert_close(pooled, cells.mean((2, 3)))
    assert logits.shape == (2, c.num_classes or c.pooled_width)
    if size == c.image_size:
        assert out.grid == model.grid
        torch.testing.assert_close(model(images / 255), logits, rtol=1e-4, atol=1e-5)


def test_refusals() -> None:
    model = small()
    with pytest.raises(UserError, match="wrong image size"):
        model(torch.rand(1, 3, 22, 36))
    with pytest.raises(UserError, match=r"stages\.0\.block\b[\s\S]*stages\.1\.blocks\.0"):
        model.encode(torch.rand(1, 3, 22, 37), capture=("stages.0.block",))
    with pytest.raises(UserError, match="32 groups"):
        config(width=48)
    with pytest.raises(UserError, match="at least one stage"):
        config(blocks=[])


@pytest.mark.parametrize("options", VARIANTS[:6])
def test_gradients_reach_every_parameter(options: dict[str, Any]) -> None:
    model = small(**options).train()
    images = torch.rand(3, model.config.in_channels, *model.config.image_size)
    model(images).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("options", [{}, {**BATCH, "width": 5}])
def test_eval_mode_sees_each_image_alone(options: dict[str, Any]) -> None:
    model = small(**options)
    images = torch.rand(4, 3, 22, 37)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        torch.testing.assert_close(model(images)[2:3], model(images[2:3]), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_training_moves_the_statistics() -> None:
    model = small(**BATCH, width=5).train()
    images = torch.rand(4, 3, 22, 37)
    maps = model.stem.conv((images - 0.5) / 0.5)
    model(images)
    norm: Any = model.stem.norm
    torch.testing.assert_close(norm.running_mean, 0.1 * maps.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * maps.var((0, 2, 3)))


def names(blocks: Sequence[int]) -> list[str]:
    return [f"stages.{i}.blocks.{j}" for i, count in enumerate(blocks) for j in range(count)]


def test_capturing_changes_nothing_and_later_layers_do_not_write_into_it() -> None:
    for options in VARIANTS:
        model = small(**options)
        images = torch.rand(1, model.config.in_channels, 22, 37)
        known = names(model.config.blocks)
        with torch.no_grad():
            out = model.encode(images, capture=known)
            assert torch.equal(out.patches_BND, model.encode(images).patches_BND)
            for name, following in pairwise(known):
                again = model.get_submodule(following)(out.captured[name])
                assert torch.equal(again, out.captured[following])
