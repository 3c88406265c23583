"""What every way of training shares with the loop: a batch in, a loss out, and two moments around the update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import nn

from vitral.models.model import ImageModel
from vitral.objectives.balance import NO_BALANCE, ClassBalance
from vitral.objectives.config import ObjectiveConfig
from vitral.structs import Batch, StepOutput


class Objective(nn.Module, ABC):
    """A loss together with all it trains. `model` is what is evaluated and saved: the encoder, with a head if any."""

    model: ImageModel

    @abstractmethod
    def __init__(
        self,
        factory: Callable[[], ImageModel],
        config: ObjectiveConfig,
        steps: int,
        balance: ClassBalance = NO_BALANCE,
    ) -> None:
        """`factory` builds the model anew at each call; `steps` is the length of the run; `balance` is of its data."""
        super().__init__()

    @abstractmethod
    def forward(self, batch: Batch, step: int) -> StepOutput:
        """The loss, a mean over the batch's samples, and scalars to log."""

    def alike(self, step: int) -> int | None:
        """A step in whose place this one may be computed, the same for as many steps as possible: a compiled run has a
        graph for each. None, as here, for an objective that is not to be compiled."""
        return None

    def before_update(self, step: int) -> None:
        """Called when the gradients of the step are complete and clipped."""

    def after_update(self, step: int) -> None:
        """Called when the weights have moved."""
