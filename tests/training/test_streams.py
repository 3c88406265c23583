"""An update from two streams: micro-batches and processes equal one batch in one process, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.entropy import Entropy, EntropyConfig
from tests.processes import in_processes
from vitral import distributed
from vitral.data.config import AugmentConfig, DataConfig, StreamConfig
from vitral.data.few_labels import with_labels_per_class
from vitral.data.image_spec import ResizeSpec
from vitral.data.image_store import ImageStore
from vitral.data.loader import StreamLoader, TrainLoader
from vitral.data.sources import open_dataset
from vitral.models.create import create_model
from vitral.objectives.objective import ObjectiveContext
from vitral.optim.config import OptimConfig
from vitral.optim.optimizer import make_optimizer
from vitral.structs import Batch, View
from vitral.training.config import TrainConfig
from vitral.training.loop import train_step
from vitral.training.nonfinite import NonFiniteGuard, first_non_finite
from vitral.training.parallel import Parallel
from vitral.training.train_state import Progress, TrainState

BATCH, RATIO = 16, 3


def a_loader() -> TrainLoader:
    data = with_labels_per_class(open_dataset(DataConfig(source="digits")), 10, 0)
    keys: dict[str, Any] = {"exact": False, "workers": 0, "cache_mb": 100, "device": torch.device("cpu")}
    place: dict[str, Any] = {"rank": distributed.rank(), "world": distributed.world()}
    labeled, others = (
        ImageStore(data.parts[name], (8, 8), ResizeSpec(resize_mode="crop"), **keys) for name in ("train", "unlabeled")
    )
    mixed, moved = AugmentConfig(rotate=10, mixup=0.5, cutmix=0.5), AugmentConfig(rotate=10)
    return TrainLoader({
        "labeled": StreamLoader(labeled, StreamConfig(BATCH, mixed), 0, **place),
        "unlabeled": StreamLoader(others, StreamConfig(RATIO * BATCH, moved, labeled=False), 0, number=1, **place),
    })  # fmt: skip


def wide(batch: Batch) -> Batch:
    targets = {name: value.double() if value.is_floating_point() else value for name, value in batch.targets.items()}
    return Batch(tuple(View(v.images_BCHW.double(), v.matrix_B33) for v in batch.views), targets, batch.sample_ids_B)


def make(*, ddp: bool = False) -> tuple[TrainState, Entropy]:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 32}
    config = EntropyConfig(kind="entropy", entropy_weight=0.7)
    objective = Entropy(
        lambda: create_model("vit_micro_patch2_8", in_channels=1, num_classes=10, **sizes).double(),
        config,
        ObjectiveContext(10),
    )
    torch.nn.init.normal_(objective.model.get_parameter("head.weight"), std=0.1)
    optimizer = make_optimizer(objective, OptimConfig(name="sgd"))
    return TrainState(objective, optimizer, None, Progress(), parallel=Parallel(objective, ddp=ddp)), objective


def steps(micro: int | None = None, *, ddp: bool = False) -> tuple[dict[str, Any], list[float]]:
    """Weights after five updates, and of each the loss, the metrics and the gradient's norm."""
    (state, objective), loader, said = make(ddp=ddp), a_loader(), list[float]()
    optim = OptimConfig(lr=0.05, schedule="constant", warmup=0)
    config = TrainConfig(batch_size=BATCH, micro_batch=micro)
    guard = NonFiniteGuard(state, loader.batch, Path(), config)
    for _ in range(5):
        batches = {name: wide(batch) for name, batch in loader.batch(state.progress.step).items()}
        loss, metrics, norm = train_step(state, objective, batches, config, optim, guard)
        said += [value.item() for value in (*distributed.mean([loss, *metrics.values()]), norm)]
        state.progress.step += 1
    return {name: tensor.numpy() for name, tensor in objective.state_dict().items()}, said


def assert_close(one: tuple[dict[str, Any], list[float]], other: tuple[dict[str, Any], list[float]]) -> None:
    assert max(float(np.abs(one[0][name] - other[0][name]).max()) for name in one[0]) <= 1e-12
    assert np.abs(np.array(one[1]) - np.array(other[1])).max() <= 1e-6  # losses are summed in float32


@pytest.mark.parametrize("micro", [4, 5])
def test_micro_batches_are_one_batch(micro: int) -> None:
    assert_close(steps(), steps(micro))


def two() -> list[tuple[dict[str, Any], list[float]]]:
    return [steps(ddp=True), steps(3, ddp=True)]


@pytest.mark.slow
def test_two_processes_equal_one() -> None:
    alone = steps()
    for found in in_processes(2, "tests.training.test_streams:two"):
        for one in found:
            assert_close(alone, one)


def test_what_is_not_finite_names_its_stream() -> None:
    _, objective = make()
    batches = {name: wide(batch) for name, batch in a_loader().batch(0).items()}
    assert "nothing in this batch" in first_non_finite(objective, batches, 0, micro=5, autocast=None)
    batches["unlabeled"].views[0].images_BCHW[3] = float("nan")
    place = int(batches["unlabeled"].sample_ids_B[3]) % 2**30
    found = first_non_finite(objective, batches, 0, micro=5, autocast=None)
    assert found == f"the images of the stream unlabeled, samples [{place}]"
