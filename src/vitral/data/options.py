"""Keys of `vitral data check`, `stats` and `convert`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vitral.config import Config, Count
from vitral.data.config import Codes, DataConfig, ReadConfig


class ReadOptions(ReadConfig):
    """Which images, and how they are read."""

    workers: Count | Literal["auto"] = Field(
        default="auto", description="number of threads that decode files; auto: one per core"
    )

    def as_data(self) -> DataConfig:
        """The same, as the sources take it."""
        return DataConfig(**self.model_dump())

    @property
    def threads(self) -> int | None:
        """Number of threads; None: one per core."""
        return None if self.workers == "auto" else self.workers


class CheckOptions(Config):
    """Keys of `vitral data check`."""

    data: ReadOptions = ReadOptions()
    allow: Codes = Field(default=(), description="finding codes that are reported as warnings instead of errors")
    init: str | None = Field(default=None, description="model whose normalization is compared with the images")
    out: str | None = Field(default=None, description="HTML file to write, with the suspicious images side by side")
    fresh: bool = Field(default=False, description="decode all images again; ignore the results of an earlier check")


class StatsOptions(Config):
    """Keys of `vitral data stats`."""

    data: ReadOptions = ReadOptions()
    out: str | None = Field(default=None, description="HTML file to write, with statistics and images of each class")
    images: int = Field(default=24, ge=1, le=500, description="number of images per class in the HTML file")


class ConvertOptions(Config):
    """Keys of `vitral data convert`."""

    data: ReadOptions = ReadOptions()
    out: str = Field(description="folder to write; must be new or empty")
    layout: Literal["folder", "flat", "csv", "coco", "voc", "yolo"] = Field(
        default="folder",
        description="file layout; folder: SPLIT/CLASS/00017.png; flat: SPLIT/CLASS_00017.png; csv: images and "
        "manifest.csv; of data with boxes coco, voc, yolo, or csv: images and boxes.csv",
    )
