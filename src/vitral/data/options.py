"""Keys of `vitral data check`, `stats` and `convert`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vitral.config import Config, Count
from vitral.data.config import Channels, DataConfig, Names, SourceConfig, ValueRange
from vitral.data.findings import known_codes


class ReadConfig(SourceConfig):
    """Which images, and how they are read: the keys of a run that change the pixels."""

    channels: Channels | Literal["auto"] = Field(
        default="auto", description="1 grey, 3 RGB, 4 RGBA; auto: from the data"
    )
    background: str = Field(default="#ffffff", description="colour behind transparency: a name or #rrggbb")
    value_range: ValueRange | Literal["auto"] | None = Field(
        default="auto", description=DataConfig.model_fields["value_range"].description
    )
    workers: Count | Literal["auto"] = Field(default="auto", description="threads that decode files; auto: one a core")

    def as_data(self) -> DataConfig:
        """The same, as the sources take it."""
        return DataConfig(**self.model_dump())

    @property
    def threads(self) -> int | None:
        """Number of threads; None: one a core."""
        return None if self.workers == "auto" else self.workers


class CheckOptions(Config):
    """Keys of `vitral data check`."""

    data: ReadConfig = ReadConfig()
    allow: Annotated[Names, AfterValidator(known_codes)] = Field(
        default=(), description="codes of findings that are no errors here"
    )
    init: str | None = Field(default=None, description="model whose normalisation the images are compared with")
    out: str | None = Field(default=None, description="HTML file with the suspicious images side by side")
    fresh: bool = Field(default=False, description="decode everything again, whatever an earlier check found")


class StatsOptions(Config):
    """Keys of `vitral data stats`."""

    data: ReadConfig = ReadConfig()
    out: str | None = Field(default=None, description="HTML file with the numbers and some images of each class")
    images: int = Field(default=24, ge=1, le=500, description="images a class in the HTML file")


class ConvertOptions(Config):
    """Keys of `vitral data convert`."""

    data: ReadConfig = ReadConfig()
    out: str = Field(description="folder to write; it must not exist, or be empty")
    layout: Literal["folder", "flat", "csv"] = Field(
        default="folder",
        description="SPLIT/CLASS/00017.png, SPLIT/CLASS_00017.png, or images and a manifest.csv",
    )
