"""Small objectives of DINO and iBOT, batches of several views, and one update as the loop makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.helpers import create_vit
from vitral.models.vit import VisionTransformer
from vitral.objectives.config import DinoConfig, IbotConfig
from vitral.objectives.dino import Dino
from vitral.objectives.ibot import Ibot
from vitral.objectives.objective import ObjectiveContext
from vitral.objectives.self_distillation import SelfDistillation
from vitral.optim.config import OptimConfig
from vitral.optim.optimizer import make_optimizer
from vitral.structs import Batch, StepOutput, View
from vitral.training.config import TrainConfig
from vitral.training.loop import train_step
from vitral.training.nonfinite import NonFiniteGuard
from vitral.training.parallel import Parallel
from vitral.training.train_state import Progress, TrainState

SMALL: dict[str, Any] = {"out_dim": 12, "head_hidden": 10, "head_bottleneck": 6}
DOUBLE = torch.float64


def encoder(dtype: torch.dtype = DOUBLE, **options: Any) -> VisionTransformer:
    options = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "num_classes": 0, **options}
    return create_vit("vit_micro_patch2_8", **options).to(dtype)


def make(
    kind: str = "dino",
    *,
    dtype: torch.dtype = DOUBLE,
    context: ObjectiveContext | None = None,
    model: Any = (),
    **keys: Any,
) -> SelfDistillation:
    """With a class token that is not zero, so that nothing is equal by its initial value."""
    torch.manual_seed(0)
    context, keys = context or ObjectiveContext(steps=20, epoch_steps=0.0, seed=3), {**SMALL, "kind": kind, **keys}

    def factory() -> VisionTransformer:
        return encoder(dtype, **dict(model))

    objective: SelfDistillation
    objective = (
        Ibot(factory, IbotConfig(**keys), context) if kind == "ibot" else Dino(factory, DinoConfig(**keys), context)
    )
    if "checkpoint" not in keys:
        torch.nn.init.normal_(objective.model.get_parameter("cls_token"), std=0.5)
        objective.teacher.module.load_state_dict(objective.model.state_dict())
    return objective.to(dtype).train()


def views(count: int = 12, local: int = 2, dtype: torch.dtype = DOUBLE, first: int = 0) -> Batch:
    """Two large and some small views of so many samples."""
    generator = torch.Generator().manual_seed(5)
    sizes = [8, 8, *[4] * local]
    images = [torch.rand(count, 3, side, side, generator=generator, dtype=DOUBLE).to(dtype) for side in sizes]
    matrix = torch.eye(3).expand(count, 3, 3)
    return Batch(tuple(View(one, matrix) for one in images), {}, torch.arange(first, first + count))


def grads(objective: nn.Module, out: StepOutput) -> dict[str, torch.Tensor]:
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(out.loss, list(trained.values()))
    return dict(zip(trained, found, strict=True))


def state_of(objective: SelfDistillation, optim: OptimConfig, *, ddp: bool = False) -> TrainState:
    optimizer = make_optimizer(objective, optim)
    return TrainState(objective, optimizer, None, Progress(), parallel=Parallel(objective, ddp=ddp))


def step(
    state: TrainState,
    objective: SelfDistillation,
    batch: Batch,
    *,
    micro: int | None = None,
    lr: float = 0.01,
    folder: Path = Path(),
) -> torch.Tensor:
    """One update; returns the loss."""
    config = TrainConfig(batch_size=512, micro_batch=micro, max_nonfinite_steps=3)
    optim = OptimConfig(lr=lr, schedule="constant", warmup=0, clip=None)
    guard = NonFiniteGuard(state, lambda _: {"train": batch}, folder, config)
    loss, _, _ = train_step(state, objective, {"train": batch}, config, optim, guard)
    state.progress.step += 1
    return loss
