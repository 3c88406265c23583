"""How weights are moved: the optimizer, its rate over the run, clipping."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Lt
from pydantic import Field, Strict

from vitral.config import Config

Beta = Annotated[float, Ge(0), Lt(1)]
Betas = Annotated[tuple[Beta, Beta], Strict(False)]


class OptimConfig(Config):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) or SGD with momentum, and the learning rate's course."""

    name: Literal["adamw", "sgd"] = Field(default="adamw", description="optimizer")
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(
        default=0.05, ge=0, description="decay of matrices; biases, norms, positions and tokens have none"
    )
    betas: Betas = Field(default=(0.9, 0.999), description="AdamW's averaging of gradient and its square")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD's momentum")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="course of the rate after the warm-up"
    )
    warmup: int | float = Field(
        default=0.05, ge=0, description="linear warm-up: steps if 1 or more, else a share of the run"
    )
    final: float = Field(default=0.0, ge=0, le=1, description="rate at the end, as a share of the peak")
    clip: float | None = Field(default=1.0, gt=0, description="largest global norm of the gradient; null: no clipping")
