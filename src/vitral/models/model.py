"""Interface of all architectures: images in [0,1] in, normalized inside; encode, pool, classify.

Shape letters: B batch, C channels, H W image height and width, N patches, D width, S classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from vitral.errors import UserError, nearest
from vitral.models.config import ModelConfig
from vitral.models.network import Network
from vitral.structs import EncoderOutput


class ImageModel(Network):
    """An encoder and its head; images are [0,1] floats or uint8, normalization happens inside.

    `model(images_BCHW)` gives logits [B, S], or pooled features [B, D] where the config has no classes; it equals
    `classify(pool(encode(images)))`.
    """

    config: ModelConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor
    grid: tuple[int, int]
    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.grid = config.grid
        self._set_constants(None)

    def _set_constants(self, device: torch.device | None) -> None:
        """Registers what the configuration fixes and no file holds, in float32."""
        for name, values in (("mean", self.config.mean), ("std", self.config.std)):
            constant = torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
            self.register_buffer(name, constant, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and casts as usual, but the constants come from the config again, in float32.

        Otherwise `.bfloat16()` would round a mean of 0.485 to 0.484, and `.to_empty()` leave it unset.
        """
        super()._apply(fn, recurse)
        self._set_constants(next(self.parameters()).device)
        return self

    @abstractmethod
    def encode(self, images_BCHW: Tensor, *, capture: Sequence[str] = ()) -> EncoderOutput:
        """Images of any size that the architecture takes to encoded patches; `capture` names intermediates to keep."""

    @abstractmethod
    def pool(self, out: EncoderOutput) -> Tensor:
        """One vector per image, [B, D]."""

    @abstractmethod
    def classify(self, pooled_BD: Tensor) -> Tensor:
        """The head alone: pooled features [B, D] to logits [B, S]; the features themselves where there is no head."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits [B, S] of images of the model's own size, or pooled features [B, D] where num_classes is 0.

        Raises UserError for images of another size, channel count or kind of number.
        """
        self.check_size(images_BCHW)
        return self.classify(self.pool(self.encode(images_BCHW)))

    def forward_all_tokens(self, *inputs: Tensor) -> Tensor:
        """Every token in the last block, also where the head reads the class token alone."""
        (images_BCHW,) = inputs
        return self.classify(self.pool(self.encode(images_BCHW)))

    def example_inputs(self, samples: int) -> tuple[Tensor, ...]:
        """Images of the model's own size."""
        return (torch.zeros(samples, self.config.in_channels, *self.config.image_size, device=self.device),)

    def example_labels(self, samples: int) -> Tensor | None:
        """One class per image, with a head."""
        return torch.zeros(samples, dtype=torch.long, device=self.device) if self.config.num_classes else None

    def check_size(self, images_BCHW: Tensor) -> None:
        """Raises UserError for images that are not of the model's own size."""
        size = tuple(images_BCHW.shape[-2:])
        if size != self.config.image_size:
            hint = "model.encode takes other sizes; for logits, resize the images or build the model for their size."
            raise UserError("wrong image size", got=_text(size), expected=_text(self.config.image_size), hint=hint)

    def check_images(self, images_BCHW: Tensor) -> Tensor:
        """The images as floats in [0,1]. Raises UserError for a shape, channel count or kind of number that the model
        does not take."""
        shape, channels = tuple(images_BCHW.shape), self.config.in_channels
        if len(shape) != 4 or shape[1] != channels:
            raise UserError("wrong shape of the images", got=_text(shape), expected=f"B x {channels} x height x width")
        images_BCHW = unit_images(images_BCHW)
        if not images_BCHW.is_floating_point():
            raise UserError("wrong kind of numbers", got=images_BCHW.dtype, expected="uint8, or floats in [0,1]")
        return images_BCHW

    def normalize(self, images_BCHW: Tensor, multiple: int = 1) -> Tensor:
        """(image - mean) / std in float32 or better, then the type of the parameters.

        Raises UserError for a shape, channel count or kind of number that the model does not take; `multiple` is what
        height and width have to be divisible by.
        """
        shape = tuple(images_BCHW.shape)
        images_BCHW = self.check_images(images_BCHW)
        if shape[2] % multiple or shape[3] % multiple or not (shape[2] and shape[3]):
            expected = f"multiples of the patch size, {multiple}"
            raise UserError("wrong image size", got=_text(shape[2:]), expected=expected)
        if images_BCHW.dtype != torch.float64:
            images_BCHW = images_BCHW.to(torch.float32)
        return ((images_BCHW - self.mean) / self.std).to(self.dtype)


def unit_images(images_BCHW: Tensor) -> Tensor:
    """Return images as floats in [0,1]: bytes are divided by 255."""
    return images_BCHW.to(torch.float32) / 255 if images_BCHW.dtype == torch.uint8 else images_BCHW


def check_capture(capture: Sequence[str], known: Sequence[str]) -> None:
    """Raises UserError for a name to capture that is not among the known ones."""
    for name in capture:
        if name not in known:
            hint = f"The last one is {known[-1]}." if known else "This model has none."
            raise UserError("unknown name to capture", where=name, nearest=nearest(name, known), hint=hint)


def _text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
