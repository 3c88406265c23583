"""Keys of visualizations. Nothing here imports torch."""

from __future__ import annotations

from pydantic import Field

from vitral.config import Config


class GradientsConfig(Config):
    """Integrated gradients."""

    steps: int = Field(default=64, ge=1, le=2000, description="number of steps between the baseline and the image")
    baseline: float = Field(default=0.0, ge=0, le=1, description="gray level of the baseline image; 0: black, 1: white")
