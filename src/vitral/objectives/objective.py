"""Interface of objectives: batches in, a loss out, and hooks before and after the update.

Shape letters: B batch, C channels, H W image height and width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor, nn

from vitral.models.model import ImageModel
from vitral.objectives.class_balance import NO_BALANCE, ClassBalance
from vitral.structs import Batch, StepOutput


class ObjectiveContext(NamedTuple):
    """Facts of the run for an objective: its length in steps, the steps of an epoch, the seed of what it draws
    about samples, how large the classes are, and so many train images, evenly spaced and unaugmented, with their
    labels, in batches (of many processes each gets its share), and the steps between two rows of the log. resuming: the
    state comes from a checkpoint, so that nothing is to be found among the images first."""

    steps: int
    epoch_steps: float = 1.0
    seed: int = 0
    balance: ClassBalance = NO_BALANCE
    train_images: Callable[[int], Iterable[tuple[Tensor, Tensor]]] | None = None
    log_every: int = 1
    resuming: bool = False


class Objective(nn.Module, ABC):
    """A loss together with all it trains. `model` is what learns: the encoder, with a head if any; the optimizer finds
    its layers by their names in it."""

    model: ImageModel
    rows: dict[str, Tensor]  # state with a row per place of this process's batch, saved with the run; none by default
    frozen: bool = False  # the encoder is not trained: it runs as in evaluation
    stops_on_collapse: bool = False  # the run ends at the first warning of `check_collapse`
    step_in_graph: ClassVar[bool] = False  # forward takes the step as a tensor too: one compiled graph is for all steps

    @abstractmethod
    def __init__(self, factory: Callable[[], ImageModel], config: Any, context: ObjectiveContext) -> None:
        """`factory` builds a new model at each call: a teacher never shares weights. `config` is the one of
        this kind of objective."""
        super().__init__()
        self.rows = {}

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for a frozen encoder."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    @property
    def eval_model(self) -> ImageModel:
        """What is evaluated and saved: the model, or a better one that follows it."""
        return self.model

    @property
    def uses_collectives(self) -> bool:
        """Whether `forward` waits for results of other processes, so that one process alone cannot call it."""
        return False

    @property
    def adds_up(self) -> bool:
        """Whether micro-batches give the result of the whole batch: not where samples are compared with each other."""
        return not self.uses_collectives

    def prepare_batches(self, batches: Mapping[str, Batch], step: int) -> Mapping[str, Batch]:
        """Return the batches to learn from, before they are cut into micro-batches: those of the loader by default.

        Changes nothing that is kept, and is called again to trace a step that was not finite.
        """
        return batches

    @abstractmethod
    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        """Return the loss, scalars to log, and what `after_update` wants.

        `batches` holds one batch for each stream that the configuration names, the whole one or the same share of each.
        Nothing that is kept from step to step changes here: steps are cut into micro-batches, run again, and skipped.
        """

    def compile_key(self, step: int) -> int | None:
        """Return the key of the compiled graph for this step. Steps with equal keys share one graph; None disables
        compilation."""
        return None

    def before_update(self, step: int) -> None:
        """Called when the gradients of the step are complete and clipped."""

    def after_update(self, step: int, means: Mapping[str, Tensor], found_inf: Tensor) -> None:
        """Called when the weights have moved. `means` are those of StepOutput over this process's share of the batch;
        where `found_inf`, a number, is 1, the step was not finite: nothing has moved, and nothing may here."""

    def after_batch(self, batches: Mapping[str, Batch], step: int, found_inf: Tensor) -> None:
        """Called last, with what `prepare_batches` returned: where it made tensors that require a gradient, `.grad`
        holds that of the loss, but for a factor. `found_inf` is as in `after_update`."""

    def monitor(self, step: int) -> dict[str, Tensor]:
        """Return scalars that are too expensive for each step: measured when a row of the log is written, then logged
        as means over all processes. None by default."""
        return {}

    def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
        """Return a warning, in one sentence, if the logged scalars of a step show a collapse."""

    def pictures(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Columns of pictures for the report, [B, C, H, W] in [0,1] each, by their captions: what is learned, to be
        seen. `images_BCHW` are in [0,1], of the model's size. None by default."""
        return {}
