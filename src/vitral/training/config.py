"""Keys of the training loop: length, batches, parallelism, trained weights, validation, checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vitral.config import Config, reject_unused

Epochs = Annotated[float, Field(gt=0)]


class LoraConfig(Config):
    """Low-rank adapters (LoRA, arXiv 2106.09685), trained with the head instead of the encoder's weights."""

    rank: int | None = Field(
        default=None, ge=1, description="rank of each matrix's low-rank adapter (LoRA); null: train all weights"
    )
    alpha: float = Field(default=8.0, gt=0, description="scale of the adapters: alpha / rank")
    targets: Literal["attn", "mlp", "both"] = Field(
        default="both", description="dense layers with adapters: attention, MLP or both"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> LoraConfig:
        reject_unused(self, {"alpha": self.rank is not None, "targets": self.rank is not None})
        return self


class TrainConfig(Config):
    """Keys of the training loop. Lengths are in epochs (passes over the train split) or steps (weight updates)."""

    epochs: float = Field(default=30.0, gt=0, description="length of the run in epochs (passes over the train split)")
    steps: int | None = Field(default=None, ge=1, description="length of the run in weight updates; overrides epochs")
    batch_size: int = Field(default=128, ge=1, description="number of images per weight update, over all devices")
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="number of images per forward and backward pass; gradients accumulate up to batch_size; null: the "
        "whole batch",
    )
    parallel: Literal["auto", "none", "ddp", "fsdp"] = Field(
        default="auto",
        description="data parallelism over the processes of torchrun or srun; ddp: a copy of the model per process; "
        "fsdp: a shard per process; auto: ddp",
    )
    activation_checkpointing: Annotated[int, Field(ge=1)] | Literal["none", "all", "auto"] = Field(
        default="auto",
        description="activation checkpointing: number of blocks (from the input) whose activations are recomputed in "
        "the backward pass, which saves memory and changes no result; auto: as few as memory= allows",
    )
    compile: Literal["auto", "none", "step"] = Field(
        default="auto",
        description="step: compile forward pass, loss and backward pass as one graph, which takes about a minute; not "
        "with fsdp or checkpointing; auto: on CUDA, where possible",
    )
    freeze: Literal["none", "encoder"] = Field(
        default="none", description="encoder: train only the head and run the encoder in evaluation mode"
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay of the exponential moving average of the weights, which is then validated and saved; null: "
        "off",
    )
    ema_warmup: float = Field(
        default=9.0, ge=0, description="limits the average to the last 1/ema_warmup of the steps; 0: fixed decay"
    )
    eval_every: Epochs | Literal["auto", "end"] = Field(
        default="auto",
        description="epochs between validations; auto: 20 in all, evenly spaced, or fewer if they process more than "
        "half as many images as training; end: one at the end",
    )
    patience: int | None = Field(
        default=None, ge=1, description="early stopping: number of validations in a row without improvement; null: off"
    )
    max_nonfinite_steps: int = Field(
        default=3, ge=1, description="number of steps in a row with a non-finite loss or gradient that ends the run"
    )
    tensorboard: bool = Field(default=False, description="write TensorBoard event files to out/tensorboard")
    log_every: int = Field(default=10, ge=1, description="steps between rows of metrics.jsonl")
    save_seconds: float = Field(
        default=300.0, ge=0, description="seconds between checkpoints; also saved on a stop and at the end"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise ValueError(f"train.micro_batch {self.micro_batch} is more than train.batch_size {self.batch_size}")
        if self.compile == "step" and (
            self.parallel == "fsdp" or self.activation_checkpointing not in ("none", "auto")
        ):
            raise ValueError(
                "train.compile=step does not support train.parallel=fsdp or train.activation_checkpointing"
            )
        if self.ema is None and self.ema_warmup != 9.0:
            raise ValueError("train.ema_warmup has no effect without train.ema")
        return self
