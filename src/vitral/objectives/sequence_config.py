"""Keys of the loss of texts. Nothing here imports torch."""

from __future__ import annotations

from pydantic import Field

from vitral.config import Config


class SequenceLossConfig(Config):
    """Keys of teacher-forced cross-entropy (arXiv 1706.03762, section 5.4)."""

    label_smoothing: float = Field(
        default=0.1, ge=0, lt=1, description="share of each target that is spread over all tokens, in training only"
    )
    check: int = Field(
        default=0, ge=0, le=64,
        description="number of training samples that a copy of the model must learn by heart in 200 steps before the "
        "run starts, else the run stops with what to look at; 5 is enough to find wrong data; 0: no check; left out "
        "with resume=true",
    )  # fmt: skip
