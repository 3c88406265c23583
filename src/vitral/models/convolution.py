"""Parts of residual networks: convolutions, norms, blocks, stages. Parameters have timm's names (`resnetv2`).

Shape letters: B batch, C channels, H W height and width of a map.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.models.config import stage_channels

Norm = nn.GroupNorm | nn.BatchNorm2d


class Style(NamedTuple):
    """What the blocks of one network have in common.

    preactivation: norm and ReLU before each convolution (arXiv 1603.05027), else after it (1512.03385). norm: batch
    norm, or group norm of 32 groups with standardized weights (1903.10520). same: pad as TensorFlow does, by the size
    of the map; else evenly. shortcut: where the shape changes, a 1x1 convolution, or every second cell and zeros for
    the new channels (1512.03385, option A). epsilons: timm's, or those of the ViT paper's code: 1e-6 instead of 1e-5
    in the norm, and weights over (deviation + 1e-5) instead of over sqrt(variance + 1e-8).
    """

    preactivation: bool
    norm: Literal["group", "batch"] = "group"
    same: bool = False
    shortcut: Literal["projection", "zeros"] = "projection"
    epsilons: Literal["timm", "google"] = "timm"


class Conv(nn.Module):
    """A convolution without bias, of odd kernel size; the map shrinks by its stride alone, rounded up.

    Leaves its values unset: the model's own initialization fills them once.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, style: Style) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        self.kernel, self.stride, self.style = kernel, stride, style

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] to [B, out, ceil(H / stride), ceil(W / stride)]."""
        weight = _standardize(self.weight, self.style.epsilons) if self.style.norm == "group" else self.weight
        if self.style.same and self.stride > 1:  # without a stride, SAME is even on both sides
            return F.conv2d(pad_same(maps_BCHW, self.kernel, self.stride), weight, stride=self.stride)
        return F.conv2d(maps_BCHW, weight, stride=self.stride, padding=self.kernel // 2)


def _standardize(weight_OCKK: Tensor, epsilons: Literal["timm", "google"]) -> Tensor:
    """Mean 0 and variance 1 for each output channel (arXiv 1903.10520, eq. 3): a layer norm without scale and shift."""
    if epsilons == "timm":
        return F.layer_norm(weight_OCKK, weight_OCKK.shape[1:], eps=1e-8)
    centered_OCKK = weight_OCKK - weight_OCKK.mean((1, 2, 3), keepdim=True)
    return centered_OCKK / (centered_OCKK.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-5)


def pad_same(maps_BCHW: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around the maps as TensorFlow's SAME puts them: so many that the result is ceil(size / stride) cells long,
    and where their number is odd, the additional one at the bottom and on the right."""
    amounts: list[int] = []
    for size in (maps_BCHW.shape[-1], maps_BCHW.shape[-2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        amounts += [total // 2, total - total // 2]
    return F.pad(maps_BCHW, amounts)


def make_norm(channels: int, style: Style) -> Norm:
    """The norm of this style.

    Batch norm sees one micro-batch of one process: its statistics do not know of accumulated gradients. They are
    buffers, for a moving average of the weights to copy, and frozen in eval mode.
    """
    if style.norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(32, channels, eps=1e-6 if style.epsilons == "google" else 1e-5)


class Stem(nn.Module):
    """The first layer: 7x7 of stride 2 and 3x3 max pooling of stride 2, or for small images one 3x3 of stride 1."""

    def __init__(self, in_channels: int, width: int, style: Style, small: bool = False) -> None:
        super().__init__()
        self.small, self.same = small, style.same
        self.conv = Conv(in_channels, width, 3 if small else 7, 1 if small else 2, style)
        self.norm = None if style.preactivation else make_norm(width, style)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] to [B, width, ceil(H / 4), ceil(W / 4)], or of the same height and width."""
        maps_BCHW = self.conv(images_BCHW)
        if self.norm is not None:
            maps_BCHW = F.relu(self.norm(maps_BCHW), inplace=True)
        if self.small:
            return maps_BCHW
        # Behind a ReLU zeros pad as -inf does; without one (BiT) the published weights expect zeros all the same.
        padded_BCHW = pad_same(maps_BCHW, 3, 2) if self.same else F.pad(maps_BCHW, (1, 1, 1, 1))
        return F.max_pool2d(padded_BCHW, 3, 2)


class Zeros(nn.Module):
    """The shortcut without parameters (arXiv 1512.03385, option A): every second cell, zeros as new channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.new, self.stride = out_channels - in_channels, stride

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        return F.pad(maps_BCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))


class Block(nn.Module):
    """A residual block: convolutions of 3x3 and 3x3 ("basic"), or 1x1, 3x3, 1x1 with a quarter of the channels between.

    The first 3x3 has the stride.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, bottleneck: bool, style: Style) -> None:
        super().__init__()
        inner = out_channels // 4 if bottleneck else out_channels
        first, second = (1, stride) if bottleneck else (stride, 1)
        before = style.preactivation
        self.conv1 = Conv(in_channels, inner, 1 if bottleneck else 3, first, style)
        self.norm1 = make_norm(in_channels if before else inner, style)
        self.conv2 = Conv(inner, inner, 3, second, style)
        self.norm2 = make_norm(inner, style)
        self.conv3 = Conv(inner, out_channels, 1, 1, style) if bottleneck else None
        self.norm3 = make_norm(inner if before else out_channels, style) if bottleneck else None
        self.downsample: nn.Module | None = None
        if stride > 1 or in_channels != out_channels:
            if style.shortcut == "zeros":
                self.downsample = Zeros(in_channels, out_channels, stride)
            else:  # a 1x1 convolution, and a norm unless one came before
                parts = OrderedDict[str, nn.Module](conv=Conv(in_channels, out_channels, 1, stride, style))
                parts |= {} if before else {"norm": make_norm(out_channels, style)}
                self.downsample = nn.Sequential(parts)
        self.preactivation = before

    @property
    def last_norm(self) -> Norm:
        """The norm that comes last in the residual branch; of blocks that normalize after each convolution."""
        return self.norm2 if self.norm3 is None else self.norm3

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] to [B, out, ceil(H / stride), ceil(W / stride)]."""
        return self._before(maps_BCHW) if self.preactivation else self._after(maps_BCHW)

    def _before(self, maps_BCHW: Tensor) -> Tensor:
        branch_BCHW = F.relu(self.norm1(maps_BCHW), inplace=True)
        if self.downsample is not None:
            maps_BCHW = self.downsample(branch_BCHW)
        branch_BCHW = self.conv2(F.relu(self.norm2(self.conv1(branch_BCHW)), inplace=True))
        if self.conv3 is not None and self.norm3 is not None:
            branch_BCHW = self.conv3(F.relu(self.norm3(branch_BCHW), inplace=True))
        return branch_BCHW + maps_BCHW

    def _after(self, maps_BCHW: Tensor) -> Tensor:
        branch_BCHW = F.relu(self.norm1(self.conv1(maps_BCHW)), inplace=True)
        branch_BCHW = self.norm2(self.conv2(branch_BCHW))
        if self.conv3 is not None and self.norm3 is not None:
            branch_BCHW = self.norm3(self.conv3(F.relu(branch_BCHW, inplace=True)))
        if self.downsample is not None:
            maps_BCHW = self.downsample(maps_BCHW)
        return F.relu(branch_BCHW + maps_BCHW, inplace=True)


def make_stages(
    blocks: Sequence[int], width: int, block: Literal["bottleneck", "basic"], style: Style
) -> nn.Sequential:
    """Stages of so many blocks each behind a map of `width` channels; the first block of all but the first halves the
    map. A stage's blocks are its `blocks`, as in timm."""
    stages: list[nn.Module] = []
    for number, (count, channels) in enumerate(zip(blocks, stage_channels(blocks, width, block), strict=True)):
        made: list[nn.Module] = []
        for place in range(count):
            made.append(Block(width, channels, 2 if number and not place else 1, block == "bottleneck", style))
            width = channels
        stages.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(*made))))
    return nn.Sequential(*stages)


def init_norms(network: nn.Module) -> None:
    """Scale 1, shift 0, and the statistics of batch norms as before the first batch."""
    for module in network.modules():
        if isinstance(module, Norm):
            module.reset_parameters()
