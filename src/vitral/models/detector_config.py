"""Configuration of detectors, and its presets. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vitral.config import Count, reject_unused
from vitral.models.config import ViTConfig
from vitral.models.vit_presets import SIZES

Strides = Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]


class DetectorConfig(ViTConfig):
    """A Vision Transformer, a simple feature pyramid (arXiv 2203.16527) and a dense head (FCOS, arXiv 1904.01355).

    Names and shapes of the encoder's parameters are those of the Vision Transformer with the same keys.
    """

    has_boxes: ClassVar[bool] = True
    bare_head: ClassVar[Mapping[str, Any]] = {"head": "linear", "pool": "cls", "fc_norm": None, "distill_token": False}
    family: Literal["detector"] = "detector"  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
    strides: Strides = Field(
        default=(8, 16, 32),
        description="detector: pixels between cells of each map of the pyramid, increasing; each is the patch size "
        "times or divided by 1, 2 or 4",
    )
    pyramid_width: Count = Field(
        default=256, description="detector: features of each cell of the pyramid, a multiple of 8 (ViTDet: 256)"
    )
    tower_depth: Count = Field(
        default=2, description="detector: 3 x 3 convolutions of classes and of boxes, before the outputs (FCOS: 4)"
    )
    second_stage: int = Field(
        default=0,
        ge=0,
        description="detector: width of a second stage, which classifies and refines the best boxes of the dense head "
        "and can score any box (Fast R-CNN: 1024); 0: none",
    )
    proposals: Count = Field(
        default=100, description="detector: boxes of an image that go through the second stage, those of highest score"
    )

    @model_validator(mode="after")
    def _check_detector(self) -> DetectorConfig:
        if not self.num_classes:
            raise ValueError("a detector has one class at least; an encoder alone is a vit: model.name=vit_...")
        scales = [self.patch_size / stride for stride in self.strides]
        if list(self.strides) != sorted({*self.strides}) or not {*scales} <= {4, 2, 1, 0.5, 0.25}:
            raise ValueError(f"strides {list(self.strides)} must increase, each patch_size {self.patch_size} times or "
                             "divided by 1, 2 or 4")  # fmt: skip
        if self.pyramid_width % 8:
            raise ValueError(f"pyramid_width {self.pyramid_width} cannot be split into 8 groups of the norm")
        reject_unused(self, {"proposals": self.second_stage > 0})
        unread = {"head": "linear", "fc_norm": None, "distill_token": False, "pruner_blocks": ()}
        for key, value in unread.items():
            if getattr(self, key) != value:
                raise ValueError(f"{key}={getattr(self, key)} has no effect in a detector: it reads all patches")
        return self

    @property
    def description(self) -> str:
        """Kind, width and depth."""
        return f"a detector on a Vision Transformer of width {self.width}, depth {self.depth}"

    @property
    def norm_after_pool(self) -> bool:
        """Never: the pyramid reads patches after the final norm."""
        return False

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each map of the pyramid: every pixel has a cell."""
        height, width = self.image_size
        return tuple((-(-height // stride), -(-width // stride)) for stride in self.strides)

    @property
    def locations(self) -> int:
        """Cells of all maps: as many boxes come out of the dense head, before any is dropped."""
        return sum(map(math.prod, self.maps))

    @property
    def outputs(self) -> int:
        """Boxes that come out, before any is dropped."""
        return min(self.proposals, self.locations) if self.second_stage else self.locations

    def part_of(self, module: str) -> str:
        """Pyramid, or head, beside the parts of a Vision Transformer."""
        first = module.partition(".")[0]
        parts = {"pyramid": "pyramid", "dense_head": "head", "second_stage": "head"}
        return parts.get(first) or super().part_of(module)


def _preset(
    size: str, image: int, patch: int, strides: tuple[int, ...], width: int = 256, **more: Any
) -> dict[str, Any]:
    return {
        **SIZES[size], "image_size": image, "patch_size": patch, "strides": strides, "pyramid_width": width, **more
    }  # fmt: skip


# Positions of ViTDet-like detectors are interpolated from those of their encoders. No window attention: at 512 pixels
# the 1,024 tokens need none.
DETECTORS: dict[str, dict[str, Any]] = {
    "detector_micro_patch8_64": _preset("micro", 64, 8, (4, 8), 64, num_classes=10),
    "detector_nano_patch8_64": _preset("nano", 64, 8, (4, 8), 96, num_classes=10),
    "detector_nano_patch16_320": _preset("nano", 320, 16, (8, 16, 32), 96, num_classes=80),
    "detector_tiny_patch16_320": _preset("tiny", 320, 16, (8, 16, 32), 128, num_classes=80),
    "detector_small_patch16_512": _preset("small", 512, 16, (4, 8, 16, 32), num_classes=80),
    "detector_base_patch16_512": _preset("base", 512, 16, (4, 8, 16, 32), num_classes=80, tower_depth=4),
}
