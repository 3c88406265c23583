"""Keys of `vitral weights`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict

from vitral.config import Config, Count, Pair

Patterns = Annotated[tuple[str, ...], Strict(False)]


class ReadOptions(Config):
    """How foreign weights are read; what is not said is found out."""

    map: str | None = Field(default=None, description="YAML file of rules for names that no known format has")
    ignore: Patterns = Field(
        default=(), description="patterns (head.*) of names that may be superfluous, missing or of another shape"
    )
    classes: Patterns = Field(
        default=(),
        description="class names in the order of the outputs, or one text file with a name per line; "
        "[]: as config.json or map.yaml states",
    )
    heads: Count | None = Field(default=None, description="attention heads; null: as config.json or the sizes say")
    image_size: Count | Pair | None = Field(
        default=None,
        description="pixels, one number or height,width; positions are resized to it; null: the weights' own",
    )


class ConvertOptions(ReadOptions):
    """Keys of `vitral weights convert`."""

    out: str = Field(description="the model folder to write")
    overwrite: bool = Field(default=False, description="whether a folder that is there may be replaced")


class InspectOptions(ReadOptions):
    """Keys of `vitral weights inspect`."""
