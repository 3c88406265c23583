"""Semi-supervised objectives and batches of both streams, in float64, for their tests."""

from __future__ import annotations

from typing import Any

import torch

from tests.helpers import create_vit
from vitral.config import build
from vitral.data.config import AugmentConfig
from vitral.models.vit import VisionTransformer
from vitral.objectives.config import (
    ConsistencyConfig,
    FixMatchConfig,
    MeanTeacherConfig,
    PseudoLabelConfig,
    SemiViTConfig,
    VATConfig,
)
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.registry import OBJECTIVES
from vitral.objectives.semi_supervised import SemiSupervised
from vitral.structs import STREAM_SPAN, Batch, View

CONFIGS: dict[str, Any] = {
    "vat": VATConfig, "consistency": ConsistencyConfig, "mean_teacher": MeanTeacherConfig,
    "pseudo_label": PseudoLabelConfig, "fixmatch": FixMatchConfig, "semi_vit": SemiViTConfig,
}  # fmt: skip
KINDS = list(CONFIGS)
LEARNS: dict[str, dict[str, Any]] = {  # with these keys each kind has pseudo-labels from the start
    kind: {"threshold": 0.101} if kind in ("pseudo_label", "fixmatch", "semi_vit") else {} for kind in KINDS
}
STEPS, CLASSES = 10, 10


def make(kind: str, *, dropout: float = 0.0, context: ObjectiveContext | None = None, **keys: Any) -> SemiSupervised:
    """An objective with a small model of random weights, head included."""
    torch.manual_seed(0)

    def factory() -> VisionTransformer:
        sizes = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 32}
        made = create_vit("vit_micro_patch2_8", in_channels=1, num_classes=CLASSES, dropout=dropout, **sizes).double()
        torch.nn.init.normal_(made.get_parameter("head.weight"), std=0.3)
        return made

    config = build(CONFIGS[kind], {"kind": kind, **keys})
    made = OBJECTIVES[kind](factory, config, context or ObjectiveContext(STEPS))
    assert isinstance(made, SemiSupervised)
    return made


def batches(kind: str, labeled: int = 16, ratio: int = 2, seed: int = 0) -> dict[str, Batch]:
    """A batch of each stream, with the views of the kind."""
    generator = torch.Generator().manual_seed(seed)
    config = build(CONFIGS[kind], {"kind": kind})
    views = {name: len(found) for name, found in config.views(AugmentConfig(), (8, 8), 2).items()}

    def batch(name: str, count: int, first: int) -> Batch:
        images = [torch.rand(count, 1, 8, 8, generator=generator, dtype=torch.float64) for _ in range(views[name])]
        targets = {"label": torch.randint(0, CLASSES, (count,), generator=generator)} if name == "labeled" else {}
        shown = tuple(View(image, torch.eye(3).expand(count, 3, 3)) for image in images)
        return Batch(shown, targets, torch.arange(count) + first)

    return {
        "labeled": batch("labeled", labeled, 0),
        "unlabeled": batch("unlabeled", ratio * labeled, STREAM_SPAN),
    }
