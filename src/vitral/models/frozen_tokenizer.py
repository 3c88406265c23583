"""An image tokenizer as a fixed part of another model. Shape letters: B images, C channels, H W height and width, N
codes of an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from vitral.models.codebook import without_autocast
from vitral.models.image_tokenizer import ImageTokenizer
from vitral.models.image_tokenizer_config import ImageTokenizerConfig


class FrozenTokenizer(nn.Module):
    """Takes no gradients, stays in evaluation mode, and in float32 or better whatever the model around it computes in:
    rounded, it would give other codes."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.model = ImageTokenizer(config).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Always evaluation mode."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves as usual, but nothing is cast to fewer bits than float32."""
        before = {name: tensor.data for name, tensor in self._tensors().items()}
        super()._apply(fn, recurse)
        for name, tensor in self._tensors().items():
            old = before[name]
            if tensor.is_floating_point() and not old.is_meta and tensor.element_size() < min(old.element_size(), 4):
                tensor.data = old.to(tensor.device)
        return self

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self.named_parameters()) | dict(self.named_buffers())

    @torch.no_grad()
    def codes(self, images_BCHW: Tensor) -> Tensor:
        """The codes of images of the tokenizer's size, int64 [B, N], row by row."""
        with without_autocast(images_BCHW.device):
            return self.model.codes(images_BCHW)

    @torch.no_grad()
    def images(self, codes_BN: Tensor) -> Tensor:
        """The images [B, C, H, W] in [0,1] of these codes."""
        with without_autocast(codes_BN.device):
            return self.model.images(codes_BN)
