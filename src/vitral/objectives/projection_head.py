"""Projection head of DINO and iBOT: an MLP, L2 normalization, and cosine similarity to prototypes.

Caron et al. 2021 (arXiv 2104.14294, section 3 and appendix C). Names are those of the published checkpoints: `mlp.0`,
`mlp.2`, `mlp.4`, `last_layer.weight_g`, `last_layer.weight_v`. Shape letters: R rows (views of images, or tokens), X
features of a layer, D width of the encoder, Z width of the bottleneck, K prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitral import distributed
from vitral.models.layers import Linear
from vitral.objectives.losses import wide


class WeightNormed(nn.Module):
    """A dense layer without bias whose rows are directions times lengths: weight = weight_g * weight_v / |weight_v|.

    Salimans and Kingma 2016 (arXiv 1602.07868). Lengths are 1, and with `fixed` stay so. A plain module: it can be
    copied, and keeps the names that torch's own has given up.
    """

    def __init__(self, features: int, outputs: int, *, fixed: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1), requires_grad=not fixed)
        self.weight_v = nn.Parameter(torch.empty(outputs, features))
        nn.init.uniform_(self.weight_v, -(features**-0.5), features**-0.5)

    def forward(self, x_RZ: Tensor) -> Tensor:
        """[R, Z] to [R, K]."""
        direction_KZ = F.normalize(wide(self.weight_v), dim=1, eps=1e-12)
        return F.linear(x_RZ, (self.weight_g * direction_KZ).to(x_RZ.dtype))


class BatchNorm(nn.Module):
    """Features of zero mean and unit variance over the rows of all processes, then a trained factor and offset.

    Ioffe and Szegedy 2015 (arXiv 1502.03167), but of the batch at hand always, in the teacher too: a head is not used
    after training, so there are no running statistics, and nothing changes in a forward pass.
    """

    def __init__(self, features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features)), eps

    def forward(self, x_RX: Tensor, is_real_R: Tensor | None = None) -> Tensor:
        """[R, X] to [R, X]; rows that are not real have no part in mean and variance."""
        x_RX = wide(x_RX)
        real_R1 = x_RX.new_ones(len(x_RX), 1) if is_real_R is None else is_real_R[:, None].to(x_RX.dtype)
        count = distributed.all_reduce_sum(real_R1.detach().sum()).clamp(min=1)
        mean_X = distributed.all_reduce_sum((x_RX * real_R1).sum(0)) / count
        apart_RX = x_RX - mean_X
        variance_X = distributed.all_reduce_sum((apart_RX.square() * real_R1).sum(0)) / count
        return apart_RX * (variance_X + self.eps).rsqrt() * self.weight + self.bias


class ProjectionHead(nn.Module):
    """Features to logits: their cosine similarity to prototypes, in [-1, 1] where the lengths are fixed.

    depth: dense layers before the prototypes. norm: each but the last is followed by a BatchNorm of its own. second:
    other prototypes for patches (`last_layer2`, as iBOT calls them), which `forward` uses with `patches`.
    """

    def __init__(
        self, width: int, prototypes: int, depth: int = 3, hidden: int = 2048, bottleneck: int = 256, *,
        norm: bool = False, fixed: bool = True, second: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(depth - 1):
            layers.append(Linear(hidden if number else width, hidden))
            layers += [BatchNorm(hidden)] if norm else []
            layers.append(nn.GELU())
        layers.append(Linear(hidden if depth > 1 else width, bottleneck))
        self.mlp = nn.ModuleList(layers)
        self.last_layer = WeightNormed(bottleneck, prototypes, fixed=fixed)
        self.last_layer2 = WeightNormed(bottleneck, prototypes, fixed=fixed) if second else None
        for layer in layers:
            if isinstance(layer, Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x_RD: Tensor, is_real_R: Tensor | None = None, patches: bool = False) -> Tensor:
        """[R, D] to logits [R, K]; rows that are not real are padding."""
        for layer in self.mlp:
            x_RD = layer(x_RD, is_real_R) if isinstance(layer, BatchNorm) else layer(x_RD)
        point_RZ = F.normalize(wide(x_RD), dim=-1, eps=1e-6)
        last = self.last_layer2 if patches and self.last_layer2 is not None else self.last_layer
        return last(point_RZ)

    @property
    def last_parameters(self) -> list[nn.Parameter]:
        """Those of the prototypes."""
        layers = (self.last_layer, self.last_layer2)
        return [parameter for layer in layers if layer is not None for parameter in layer.parameters()]
