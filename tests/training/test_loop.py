"""One update: micro-batches add up to the whole batch, clipping is of the whole gradient, averages follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.processes import in_processes
from vitral import distributed
from vitral.models.create import create_model
from vitral.models.model import ImageModel
from vitral.objectives.config import SupervisedConfig
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.objectives.supervised import Supervised
from vitral.optim.config import OptimConfig
from vitral.optim.ema import WeightEMA
from vitral.optim.optimizer import make_optimizer
from vitral.structs import Batch, StepOutput, View
from vitral.training.config import TrainConfig
from vitral.training.loop import _validations_per_step, total_steps, train_step
from vitral.training.nonfinite import NonFiniteGuard
from vitral.training.parallel import Parallel
from vitral.training.train_state import Progress, TrainState

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
    objective = Supervised(
        lambda: create_model("vit_micro_patch2_8").double(), SupervisedConfig(), ObjectiveContext(100)
    )
    torch.nn.init.normal_(objective.model.get_parameter("head.weight"))
    optimizer = make_optimizer(objective, OptimConfig(name="sgd", weight_decay=0.0))
    ema = WeightEMA(objective.model, create_model("vit_micro_patch2_8").double(), 0.9)
    state = TrainState(objective, optimizer, ema, Progress())
    optim = OptimConfig(lr=0.1, schedule="constant", warmup=0, clip=clip)
    config, norms = TrainConfig(batch_size=SIZE, micro_batch=micro), list[float]()
    guard = NonFiniteGuard(state, lambda _: {"train": batch()}, Path(), config)
    for _ in range(steps):
        norms.append(train_step(state, objective, {"train": batch()}, config, optim, guard)[2].item())
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


class Counted(Objective):
    """Squared error of a number of tokens that each image says itself: a mean over tokens, not over images."""

    def __init__(self, factory: Callable[[], ImageModel], config: None, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        self.model = factory()

    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        batch = batches["train"]
        tokens_BN = self.model(batch.views[0].images_BCHW)
        counted_BN = torch.arange(tokens_BN.shape[1])[None] < batch.targets["count"][:, None]
        error = ((tokens_BN - 1).square() * counted_BN).sum()
        count = counted_BN.sum()
        return StepOutput(error, count, {"error": error.detach() / count.clamp(min=1)})


def counted(micro: int | None, counts: Sequence[int], ddp: bool = False) -> tuple[dict[str, Any], list[float]]:
    """Weights after three steps, and losses; each of several processes has an equal slice."""
    torch.manual_seed(0)
    made = Counted(lambda: create_model("vit_micro_patch2_8").double(), None, ObjectiveContext(100))
    torch.nn.init.normal_(made.model.get_parameter("head.weight"))
    optimizer = make_optimizer(made, OptimConfig(name="sgd", weight_decay=0.0))
    state, size = TrainState(made, optimizer, None, Progress(), parallel=Parallel(made, ddp=ddp)), len(counts)
    images = torch.rand(size, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    views = (View(images, torch.eye(3).expand(size, 3, 3)),)
    own = size // distributed.world()
    mine = Batch(views, {"count": torch.tensor(counts)}, torch.arange(size)).slice(
        own * distributed.rank(), own * (distributed.rank() + 1)
    )
    optim = OptimConfig(lr=0.1, schedule="constant", warmup=0)
    config, losses = TrainConfig(batch_size=size, micro_batch=micro), list[float]()
    guard = NonFiniteGuard(state, lambda _: {"train": mine}, Path(), config)
    for _ in range(3):
        loss, metrics, norm = train_step(state, made, {"train": mine}, config, optim, guard)
        assert ddp or metrics["error"].item() == pytest.approx(loss.item(), rel=1e-6), "a mean over tokens too"
        losses += [distributed.mean([loss])[0].item(), norm.item()]
        state.progress.step += 1
    return {name: tensor.numpy() for name, tensor in made.state_dict().items()}, losses


UNEQUAL = (1, 10, 0, 0, 7, 3, 2, 9)


@pytest.mark.parametrize("micro", [1, 2, 3, 8])
def test_losses_add_up_by_their_weight(micro: int) -> None:
    """A mean over unequal numbers of tokens; two samples, so one micro-batch of 2, have none."""
    whole, parts = counted(None, UNEQUAL), counted(micro, UNEQUAL)
    assert max(np.abs(whole[0][name] - parts[0][name]).max() for name in whole[0]) < 1e-12
    np.testing.assert_allclose(whole[1], parts[1], rtol=1e-6)


@pytest.mark.slow
def test_losses_of_processes_add_up_by_their_weight() -> None:
    whole = counted(None, UNEQUAL)
    for found in in_processes(2, "tests.training.test_loop:counted", 3, UNEQUAL, True):
        assert max(np.abs(whole[0][name] - found[0][name]).max() for name in whole[0]) < 1e-12
        np.testing.assert_allclose(whole[1], found[1], rtol=1e-6)


def test_the_loss_is_a_mean_over_what_weighs() -> None:
    """The gradient of one step by autograd, of the sum over the tokens divided by their number; none: nothing moves."""
    torch.manual_seed(0)
    model = create_model("vit_micro_patch2_8").double()
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    before = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    still = counted(None, (0,) * 8)
    assert all(np.array_equal(tensor, still[0][f"model.{name}"]) for name, tensor in before.items())
    assert still[1] == [0.0] * 6
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counted_BN = torch.arange(10)[None] < torch.tensor(UNEQUAL)[:, None]
    loss = (model(images) - 1).square()[counted_BN].mean()
    assert counted(None, UNEQUAL)[1][0] == pytest.approx(loss.item(), rel=1e-6)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert counted(4, UNEQUAL)[1][1] == pytest.approx(norm.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("every", "images", "expected"),
    [
        ("auto", 0, 20),  # nothing to validate: as often as asked
        ("auto", 80, 20),  # 20 x 80 images are half of 100 x 32
        ("auto", 800, 2),  # half of the 3,200 trained images are 1,600
        ("auto", 6_000, 0),  # the validation at the end is not counted here
        (0.5, 6_000, 6),  # as configured, at any price
        ("end", 80, 0),
    ],
)
def test_validation_takes_a_bounded_share_of_a_run(every: Any, images: int, expected: int) -> None:
    """Validations of a run of 100 steps of 32 images, 1,000 images an epoch."""
    config = TrainConfig(batch_size=32, eval_every=every)
    assert math.floor(100 * _validations_per_step(config, 100, images, 32 / 1000) + 1e-9) == expected
