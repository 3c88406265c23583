"""An objective with two streams, as docs/streams.md shows it: classes from labels, certain predictions without."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from pydantic import Field

from vitral.models.model import ImageModel
from vitral.objectives.base_config import LabeledConfig, StreamTraits
from vitral.objectives.losses import cross_entropy, soft_targets, wide
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.objectives.registry import OBJECTIVES
from vitral.run.config import RunConfig
from vitral.run.register_objective import register_objective
from vitral.structs import Batch, StepOutput


class EntropyConfig(LabeledConfig):
    """Entropy minimization (Grandvalet and Bengio 2004)."""

    streams: ClassVar[dict[str, StreamTraits]] = {
        "labeled": StreamTraits(labeled=True, mixed=True), "unlabeled": StreamTraits(labeled=False),
    }  # fmt: skip

    kind: Literal["entropy"] = Field(description="classes from labels, and certain predictions without")
    entropy_weight: float = Field(default=0.3, ge=0, description="factor of the entropy on unlabeled images")


class Entropy(Objective):
    """Cross-entropy on labeled images plus the entropy of the predictions on unlabeled ones."""

    def __init__(self, factory: Callable[[], ImageModel], config: EntropyConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        self.model, self.config = factory(), config

    def alike(self, step: int) -> int:
        return 0

    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        labeled, unlabeled = batches["labeled"], batches["unlabeled"]
        logits_BC = self.model(labeled.views[0].images_BCHW)
        target_BC = soft_targets(labeled.targets, logits_BC.shape[-1], self.config.label_smoothing)
        log_p_UC = wide(self.model(unlabeled.views[0].images_BCHW)).log_softmax(-1)
        entropy = -(log_p_UC.exp() * log_p_UC).sum(-1).mean()
        loss = cross_entropy(logits_BC, target_BC) + self.config.entropy_weight * entropy
        return StepOutput.mean(loss, len(labeled.sample_ids_B), {"entropy": entropy.detach()})


@contextmanager
def kinds_kept() -> Generator[None]:
    """Objectives that are registered inside are gone afterwards."""
    known: Any = RunConfig.model_fields["objective"]
    before, kinds = known.annotation, dict(OBJECTIVES)
    try:
        yield
    finally:
        OBJECTIVES.clear()
        OBJECTIVES.update(kinds)
        known.annotation = before
        RunConfig.model_rebuild(force=True)


@contextmanager
def registered() -> Generator[None]:
    """The objective as `objective.kind=entropy`, for a while."""
    with kinds_kept():
        register_objective(EntropyConfig, Entropy)
        yield
