"""How long a run is, in what portions it works, which weights move, and when it looks, saves and stops."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vitral.config import Config, refuse_idle

Epochs = Annotated[float, Field(gt=0)]


class LoraConfig(Config):
    """Low-rank adapters (arXiv 2106.09685): trained, with the head, in place of the encoder's weights."""

    rank: int | None = Field(
        default=None, ge=1, description="rank of the adapter of each matrix; null: no adapters, all weights are trained"
    )
    alpha: float = Field(default=8.0, gt=0, description="adapters are scaled by alpha / rank")
    targets: Literal["attn", "mlp", "both"] = Field(
        default="both", description="dense layers that have adapters: of the attention, of the MLP"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> LoraConfig:
        refuse_idle(self, {"alpha": self.rank is not None, "targets": self.rank is not None})
        return self


class TrainConfig(Config):
    """The loop's settings. Lengths are in epochs (passes over the train split) or steps (weight updates)."""

    epochs: float = Field(default=30.0, gt=0, description="length of the run, in passes over the train split")
    steps: int | None = Field(default=None, ge=1, description="length of the run in weight updates; wins over epochs")
    batch_size: int = Field(default=128, ge=1, description="images an update, over all devices (global)")
    micro_batch: int | None = Field(
        default=None, ge=1, description="images at once; gradients add up to batch_size; null: all"
    )
    parallel: Literal["auto", "none", "ddp", "fsdp"] = Field(
        default="auto",
        description="over the processes of torchrun or srun: ddp, a copy of the model each; fsdp, a slice; auto: ddp",
    )
    checkpointing: Annotated[int, Field(ge=1)] | Literal["none", "all", "auto"] = Field(
        default="auto",
        description="blocks, from the input on, that keep no activations and compute them again: less memory, same "
        "result; auto: as few as memory= allows",
    )
    compile: Literal["auto", "none", "step"] = Field(
        default="auto",
        description="step: forward pass, loss and backward pass as one compiled graph, ready after a minute or so; not "
        "with fsdp or checkpointing; auto: on CUDA, where it can be",
    )
    freeze: Literal["none", "encoder"] = Field(
        default="none", description="encoder: only the head is trained; the encoder works as in evaluation"
    )
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay of the averaged weights that are judged and saved; null: off"
    )
    ema_warmup: float = Field(
        default=9.0,
        ge=0,
        description="the average remembers 1/ema_warmup of the steps done, at most; 0: decay constant",
    )
    eval_every: Epochs | Literal["auto", "end"] = Field(
        default="auto",
        description="epochs between validations; auto: 20, evenly, fewer if these take more than half as many images "
        "as training; end: one, when all is done",
    )
    patience: int | None = Field(
        default=None, ge=1, description="stop after so many validations without a better one; null: never"
    )
    max_bad_steps: int = Field(
        default=3, ge=1, description="steps in a row with a loss or gradient that is not finite, which end the run"
    )
    tensorboard: bool = Field(default=False, description="also write event files to out/tensorboard")
    log_every: int = Field(default=10, ge=1, description="steps between rows of metrics.jsonl")
    save_seconds: float = Field(
        default=300.0, ge=0, description="seconds between checkpoints; a stop and the end save too"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise ValueError(f"train.micro_batch {self.micro_batch} is more than train.batch_size {self.batch_size}")
        if self.compile == "step" and (self.parallel == "fsdp" or self.checkpointing not in ("none", "auto")):
            raise ValueError("train.compile=step goes neither with train.parallel=fsdp nor with train.checkpointing")
        if self.ema is None and self.ema_warmup != 9.0:
            raise ValueError("train.ema_warmup has no effect without train.ema")
        return self
