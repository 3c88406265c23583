"""Keys of `vitral export`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vitral.config import Config, Count, Pair


class ExportOptions(Config):
    """What is written, and where."""

    format: Literal["hf", "timm"] = Field(description="hf: a folder of transformers; timm: one of timm")
    out: str = Field(description="the folder to write")
    overwrite: bool = Field(default=False, description="whether a folder that is there may be replaced")
    image_size: Count | Pair | None = Field(
        default=None, description="pixels, one number or [height, width]; null: the model's own size"
    )
