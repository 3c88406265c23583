"""One update: micro-batches add up to the whole batch, clipping is of the whole gradient, averages follow."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from vitral.models.create import create_model
from vitral.objectives.config import SupervisedConfig
from vitral.objectives.objective import Setting
from vitral.objectives.supervised import Supervised
from vitral.optim.config import OptimConfig
from vitral.optim.ema import WeightEMA
from vitral.optim.optimizer import make_optimizer
from vitral.structs import Batch, View
from vitral.training.config import TrainConfig
from vitral.training.guard import Guard, Watch
from vitral.training.loop import Plan, total_steps, update
from vitral.training.state import Progress, TrainState

SIZE = 50


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(SIZE, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 10, (SIZE,), generator=generator)
    targets = {"label": labels, "partner": labels.flip(0), "weight": torch.rand(SIZE, generator=generator).double()}
    return Batch((View(images, torch.eye(3).expand(SIZE, 3, 3)),), targets, torch.arange(SIZE))


def updated(micro: int | None, clip: float | None = 1.0, steps: int = 3) -> tuple[TrainState, list[float]]:
    """The state after some updates in float64, and the gradient norms."""
    torch.manual_seed(0)
    objective = Supervised(lambda: create_model("vit_micro_patch2_8").double(), SupervisedConfig(), Setting(100))
    torch.nn.init.normal_(objective.model.get_parameter("head.weight"))
    optimizer = make_optimizer(objective, OptimConfig(name="sgd", weight_decay=0.0))
    ema = WeightEMA(objective.model, create_model("vit_micro_patch2_8").double(), 0.9)
    state = TrainState(objective, optimizer, ema, Progress())
    plan = Plan(100, lambda _: 0.1, clip, None, Path(), "")
    config, norms = TrainConfig(batch_size=SIZE, micro_batch=micro), list[float]()
    guard = Guard(state, Watch(Path(), 3, lambda _: batch(), ""))
    for _ in range(steps):
        norms.append(update(state, objective, batch(), config, plan, 0.1, guard)[2].item())
        state.progress.step += 1
    return state, norms


@pytest.mark.parametrize("micro", [1, 16, 25, 49, 50])
def test_micro_batches_equal_the_whole_batch_the_short_last_one_included(micro: int) -> None:
    whole, norms = updated(None)
    parts, part_norms = updated(micro)
    assert part_norms == pytest.approx(norms, abs=1e-12)
    for key, tensor in whole.objective.state_dict().items():
        assert (tensor - parts.objective.state_dict()[key]).abs().max() < 1e-12, key


def test_clipping_scales_the_whole_gradient_to_the_norm() -> None:
    free, norms = updated(None, clip=None, steps=1)
    clipped, clipped_norms = updated(16, clip=0.01, steps=1)
    start, _ = updated(None, steps=0)
    assert clipped_norms == pytest.approx(norms), "what is reported is the norm before clipping"
    moved = [
        math.sqrt(
            sum(
                (a - b).square().sum().item()
                for a, b in zip(s.objective.parameters(), start.objective.parameters(), strict=True)
            )
        )
        for s in (free, clipped)
    ]
    assert moved == pytest.approx([0.1 * norms[0], 0.1 * 0.01], rel=1e-5)


def test_the_average_is_updated_once_a_step_whatever_the_micro_batches() -> None:
    one, two = updated(None)[0].ema, updated(7)[0].ema
    assert one is not None
    assert two is not None
    assert one.updates == two.updates == 3


@pytest.mark.parametrize(
    ("keys", "steps"), [({"epochs": 2.0}, 26), ({"epochs": 0.01}, 1), ({"epochs": 9.0, "steps": 5}, 5)]
)
def test_the_length_of_a_run(keys: dict[str, float], steps: int) -> None:
    assert total_steps(TrainConfig(batch_size=8, **keys), 101) == steps  # type: ignore[arg-type]
