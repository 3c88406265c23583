"""Keys of the optimizer: learning rate schedule, weight decay, gradient clipping."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Lt
from pydantic import Field, Strict, model_validator

from vitral.config import Config, Shares, reject_unused

Beta = Annotated[float, Ge(0), Lt(1)]
Betas = Annotated[tuple[Beta, Beta], Strict(False)]


class OptimConfig(Config):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), Adam, Muon, LARS, or SGD with momentum, and the learning
    rate schedule."""

    name: Literal["adamw", "adam", "muon", "lars", "sgd"] = Field(
        default="adamw",
        description="optimizer; adamw: decoupled weight decay; muon: AdamW with orthogonalized updates for block "
        "matrices; adam, sgd, lars (layer-wise adaptive rate): weight decay added to the gradient",
    )
    lr: float = Field(
        default=1e-3, gt=0, description="peak learning rate; schedule=noam: its factor, width^-0.5 in the paper"
    )
    weight_decay: float = Field(
        default=0.05, ge=0, description="weight decay of matrices; biases, norms, positions and tokens have none"
    )
    weight_decay_final: float | None = Field(
        default=None, ge=0, description="weight decay at the end of the run, reached along a half cosine; null: fixed"
    )
    betas: Betas = Field(default=(0.9, 0.999), description="Adam: decay rates of averaged gradient and its square")
    momentum: Beta | Literal["auto"] = Field(
        default="auto", description="momentum of sgd, lars and muon; auto: 0.9, for muon 0.95"
    )
    trust_coefficient: float = Field(
        default=1e-3, gt=0, description="lars: trust coefficient (step size relative to the weight norm, at lr 1)"
    )
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="layer-wise lr decay: factor from each layer to the one below it; 1: off"
    )
    schedule: Literal["cosine", "linear", "constant", "step", "rsqrt", "noam", "wsd"] = Field(
        default="cosine",
        description="learning rate schedule after the warm-up; rsqrt: inverse square root of the step; noam: lr * "
        "min(t^-0.5, t * warmup^-1.5) at step t (Vaswani et al. 2017); wsd: constant, then decay at the end (warm-up, "
        "stable, decay)",
    )
    warmup: int | float = Field(
        default=0.05, ge=0, description="length of the linear warm-up: steps if 1 or more, else a share of the run"
    )
    min_lr_ratio: float = Field(
        default=0.0, ge=0, le=1, description="cosine, linear, wsd: learning rate at the end, as a share of the peak"
    )
    cooldown: float = Field(
        default=0.2, gt=0, le=1, description="wsd: share of the run at the end in which the learning rate decays"
    )
    milestones: Shares = Field(
        default=(0.3, 0.6, 0.9), description="step: points at which the learning rate drops, as shares of the run"
    )
    gamma: float = Field(default=0.1, gt=0, lt=1, description="step: factor of the learning rate at each drop")
    timescale: int = Field(
        default=10_000, ge=1, description="rsqrt: steps after the warm-up until the learning rate is 0.71 of the peak"
    )
    clip: float | None = Field(default=1.0, gt=0, description="gradient clipping: largest gradient norm; null: off")
    clip_each: bool = Field(
        default=False, description="clip the norm of each parameter's gradient separately instead of the norm of all"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> OptimConfig:
        reject_unused(self, {
            "betas": self.name in ("adamw", "adam", "muon"),
            "momentum": self.name in ("sgd", "lars", "muon"),
            "trust_coefficient": self.name == "lars",
            "min_lr_ratio": self.schedule in ("cosine", "linear", "wsd"),
            "cooldown": self.schedule == "wsd",
            "milestones": self.schedule == "step",
            "gamma": self.schedule == "step",
            "timescale": self.schedule == "rsqrt",
            "clip_each": self.clip is not None,
        })  # fmt: skip
        if self.schedule == "noam" and not self.warmup:
            raise ValueError("optim.schedule=noam needs a warm-up: set optim.warmup, 4000 steps in the paper")
        if self.schedule == "wsd" and self.warmup < 1 and self.warmup + self.cooldown > 1:
            raise ValueError(
                f"the sum of optim.warmup ({self.warmup}) and optim.cooldown ({self.cooldown}) must be at most 1"
            )
        return self
