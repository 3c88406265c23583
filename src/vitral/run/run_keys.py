"""Keys of every training run, whatever it learns from. Nothing here imports torch."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from vitral.config import Config
from vitral.errors import UserError
from vitral.optim.config import OptimConfig
from vitral.training.config import TrainConfig


class RunKeys(Config):
    """Keys of every training run. config.yaml in the run folder holds all of them, resolved, and replays the run.

    assembly: "module:class" of the `run.assembly.Assembly` that makes the run's parts.
    """

    assembly: ClassVar[str]

    recipe: str = Field(default="custom", pattern=r"^[\w. -]+$", description="name of the recipe in summary.json")
    seed: int = Field(default=0, ge=0, lt=2**63, description="random seed of weights, order, augmentation and dropout")
    device: str = Field(default="auto", description="device: auto, cpu, cuda or cuda:N")
    out: str | None = Field(default=None, description="run folder to write; null: runs/RECIPE-TIME")
    resume: bool = Field(default=False, description="continue from the checkpoint in out; without one, start the run")
    overwrite: bool = Field(default=False, description="replace the run in out")
    finish: bool = Field(
        default=False, description="end the stopped run in out: write its model folder from the best weights so far"
    )
    init: str | None = Field(
        default=None,
        description="model to start from: a bundled model, a folder, a file of weights or a name on the Hugging Face "
        "Hub",
    )
    memory: str | None = Field(
        default=None,
        pattern=r"^(auto|\d+(\.\d+)?\s*[KMGT]i?B)$",
        description="memory limit for training, as 8GB; auto: the free memory; sets train.micro_batch and "
        "train.activation_checkpointing where they are not given",
    )
    precision: Literal["auto", "float32", "bfloat16", "bfloat16_params"] = Field(
        default="auto",
        description="bfloat16: compute matrix products in bfloat16; bfloat16_params: compute everything in bfloat16, "
        "with float32 master weights; auto: bfloat16 on CUDA, float32 on CPU",
    )
    deterministic: bool = Field(
        default=False, description="use deterministic CUDA kernels, which are slower; a CPU is always deterministic"
    )
    report: bool = Field(default=True, description="write report.html at the end")
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _folder_fits(self) -> Self:
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite contradict each other")
        if self.finish and (self.overwrite or self.out is None):
            raise ValueError("finish=true ends the stopped run in a folder: set out=DIR and no overwrite")
        if self.resume and self.out is None:
            raise ValueError("resume=true needs out=DIR, the folder of the run to continue")
        return self

    def check_processes(self, world: int) -> None:
        """Refuse a memory limit for several processes."""
        if self.memory is not None and world > 1:
            raise UserError(
                "memory is estimated for one process only", where="memory",
                got=f"{self.memory} for {world} processes", expected="null",
                hint="Set train.micro_batch and train.activation_checkpointing instead.",
            )  # fmt: skip
