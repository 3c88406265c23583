"""Keys of `vitral weights`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict

from vitral.config import Config, Count, Pair

Patterns = Annotated[tuple[str, ...], Strict(False)]


class ReadOptions(Config):
    """Keys of reading weights of other libraries; unset ones are detected."""

    map: str | None = Field(default=None, description="YAML file with rules for parameter names of an unknown format")
    ignore: Patterns = Field(
        default=(), description="patterns (head.*) of parameter names that may be unexpected, missing or misshapen"
    )
    classes: Patterns = Field(
        default=(),
        description="class names in the order of the outputs, or a text file with one name per line; []: as in "
        "config.json or map.yaml",
    )
    heads: Count | None = Field(
        default=None, description="number of attention heads; null: from config.json or the tensor shapes"
    )
    image_size: Count | Pair | None = Field(
        default=None,
        description="input size in pixels: one number or height,width; positions are resized to it; null: that of the "
        "weights",
    )


class ConvertOptions(ReadOptions):
    """Keys of `vitral weights convert`."""

    out: str = Field(description="model folder to write")
    overwrite: bool = Field(default=False, description="replace an existing model in out")


class InspectOptions(ReadOptions):
    """Keys of `vitral weights inspect`."""
