"""A family of models in one file: what docs/models.md says is needed for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vitral.models.config import ModelConfig
from vitral.models.model import ImageModel
from vitral.models.registry import Family
from vitral.structs import EncoderOutput


class ToyConfig(ModelConfig):
    """One convolution, whose cells are averaged."""

    family: Literal["toy"] = "toy"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    cell: int = Field(default=2, ge=1, description="side of a cell, pixels")
    features: int = Field(default=32, ge=1, description="channels of the map")

    @property
    def description(self) -> str:
        """Its channels."""
        return f"a toy of {self.features} channels"

    @property
    def stride(self) -> int:
        """Side of a cell."""
        return self.cell

    @property
    def grid(self) -> tuple[int, int]:
        """Whole cells."""
        return self.image_size[0] // self.cell, self.image_size[1] // self.cell

    @property
    def pooled_width(self) -> int:
        """All cells, one behind the other."""
        return self.features * self.grid[0] * self.grid[1]


class Toy(ImageModel):
    """A convolution, ReLU and a dense layer."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.stem = nn.Conv2d(config.in_channels, config.features, config.cell, config.cell)
        self.head = nn.Linear(config.pooled_width, config.num_classes) if config.num_classes else nn.Identity()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """He normal; zero biases and head."""
        nn.init.kaiming_normal_(self.stem.weight, nonlinearity="relu")
        for parameter in (self.stem.bias, *self.head.parameters()):
            assert parameter is not None
            nn.init.zeros_(parameter)

    def encode(self, images_BCHW: Tensor, *, capture: Sequence[str] = ()) -> EncoderOutput:
        """Cells of the map."""
        maps_BCHW = self.stem(self.normalize(images_BCHW)).relu()
        grid = (maps_BCHW.shape[2], maps_BCHW.shape[3])
        return EncoderOutput(None, None, maps_BCHW.flatten(2).mT, grid, None, None, {})

    def pool(self, out: EncoderOutput) -> Tensor:
        """All cells, one behind the other."""
        return out.patches_BND.flatten(1)

    def classify(self, pooled_BD: Tensor) -> Tensor:
        """The dense layer."""
        return self.head(pooled_BD)


FAMILY = Family("toy network", "toy", ToyConfig, "tests.models.toy_family:Toy", {"toy_8": {"image_size": 8}})
