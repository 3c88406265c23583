"""Steps of an objective on one batch, whole, in micro-batches or over processes: all give the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitral import distributed
from vitral.objectives.objective import Objective
from vitral.optim.config import OptimConfig
from vitral.optim.optimizer import make_optimizer
from vitral.structs import Batch
from vitral.training.config import TrainConfig
from vitral.training.loop import train_step
from vitral.training.nonfinite import NonFiniteGuard
from vitral.training.parallel import Parallel
from vitral.training.train_state import Progress, TrainState

Trained = tuple[dict[str, Any], list[float]]


def five_steps(
    made: Objective, whole: Batch | Mapping[str, Batch], micro: int | None = None, *, ddp: bool = False
) -> Trained:
    """Weights and losses of five steps of SGD on the 8 samples, of the first stream; each of several processes has an
    equal slice of each."""
    optimizer = make_optimizer(made, OptimConfig(name="sgd", weight_decay=0.0))
    state = TrainState(made, optimizer, None, Progress(), parallel=Parallel(made, ddp=ddp))
    optim = OptimConfig(lr=0.05, schedule="constant", warmup=0, clip=None)
    config, losses = TrainConfig(batch_size=8, micro_batch=micro), list[float]()
    streams = {"train": whole} if isinstance(whole, Batch) else whole
    mine = {name: batch.slice(*distributed.shard_range(len(batch.sample_ids_B))) for name, batch in streams.items()}
    guard = NonFiniteGuard(state, lambda _: mine, Path(), config)
    for _ in range(5):
        loss, *_ = train_step(state, made, mine, config, optim, guard)
        losses += [value.item() for value in distributed.mean([loss])]
        state.progress.step += 1
    return {name: tensor.numpy() for name, tensor in made.state_dict().items()}, losses


def assert_equal(one: Trained, other: Trained) -> None:
    """To 1e-12 for weights in float64; losses are summed in float32."""
    assert max(np.abs(one[0][name] - other[0][name]).max() for name in one[0]) < 1e-12
    assert np.abs(np.array(one[1]) - np.array(other[1])).max() < 1e-6
