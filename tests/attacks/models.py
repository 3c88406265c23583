"""Models to attack: a linear one, for closed forms, and a random ViT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vitral
from vitral.attacks.ball import Noise


class Linear(nn.Module):
    """Logits W x + b of flattened images."""

    def __init__(self, shape: tuple[int, ...], classes: int = 2, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        size = torch.Size(shape).numel()
        self.weight_KD = nn.Parameter(torch.randn(classes, size, generator=generator, dtype=torch.float64))
        self.bias_K = nn.Parameter(torch.randn(classes, generator=generator, dtype=torch.float64))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits [B, K]."""
        return x_BCHW.flatten(1) @ self.weight_KD.T.to(x_BCHW.dtype) + self.bias_K.to(x_BCHW.dtype)


def random_vit(seed: int = 0, classes: int = 10) -> nn.Module:
    """A ViT with random weights whose answers depend on the image."""
    torch.manual_seed(seed)
    model = vitral.create_model(
        "vit_micro_patch2_8", num_classes=classes, image_size=(8, 12), in_channels=3, drop_path=0.3, dropout=0.2
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15) if parameter.ndim > 1 else None
    return model


def images(count: int, shape: tuple[int, int, int] = (3, 8, 12), seed: int = 1) -> Tensor:
    """Uniform random images in [0,1]."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def noise(count: int, seed: int = 0) -> Noise:
    """The random numbers of samples 0..count."""
    return Noise(torch.arange(count), seed)
