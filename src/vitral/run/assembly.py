"""Interface of what a training run is assembled from, and the parts that are the same for every kind of input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch.nn import Module

from vitral import distributed
from vitral.data.loader import TrainLoader
from vitral.errors import UserError
from vitral.models.network import Network
from vitral.objectives.objective import Objective
from vitral.optim.ema import WeightEMA
from vitral.optim.master_weights import ComputeCopy
from vitral.optim.optimizer import make_optimizer
from vitral.run.run_keys import RunKeys
from vitral.training.loop import Validation, total_steps
from vitral.training.parallel import Parallel
from vitral.training.train_state import Progress, TrainState

KeysT = TypeVar("KeysT", bound=RunKeys)


class Assembly(ABC, Generic[KeysT]):
    """The parts of a run, from its configuration: data, model, objective, evaluation.

    Construction opens the data and settles every `auto`; it writes nothing. config: without any `auto`. samples: train
    samples of an epoch.
    """

    config: KeysT
    device: torch.device
    samples: int

    @abstractmethod
    def close(self) -> None:
        """End what reads data: threads and processes."""

    @abstractmethod
    def state(self, resuming: bool = False) -> tuple[TrainState, Objective]:
        """Return the training state and the objective, at step 0. resuming: a checkpoint is loaded into both next, so
        what it holds is not found again."""

    @abstractmethod
    def loader(self) -> TrainLoader:
        """Return the run's streams of batches; of many processes each has its share of every batch."""

    @abstractmethod
    def remember(self, folder: Path) -> None:
        """Write into the run folder what later commands have to know of the data."""

    @abstractmethod
    def log_start(self, objective: Objective, steps: int, folder: Path) -> None:
        """Log data, model and length of the run."""

    @abstractmethod
    def validation(self) -> Validation | None:
        """Return how a model is validated during the run; None without validation data."""

    @property
    def keep_last(self) -> bool:
        """Whether the last weights are saved instead of those of the best validation."""
        return False

    @property
    def flops(self) -> float:
        """Operations of a step for one sample; 0: unknown."""
        return 0.0

    @property
    def smaller_hint(self) -> str:
        """What helps where memory does not suffice."""
        return "A smaller train.micro_batch takes less, with the same result."

    @abstractmethod
    def finish(self, state: TrainState, objective: Objective, folder: Path) -> dict[str, Any]:
        """Evaluate the kept weights and write the artifacts; return what summary.json holds."""


def parallel_mode(config: RunKeys) -> str:
    """How the run is spread over the processes that the launcher started."""
    mode, world = config.train.parallel, distributed.launch().world
    if mode == "none" and world > 1:
        raise UserError(
            f"{world} processes would each train the same model", where="train.parallel", got="none",
            expected="auto, ddp or fsdp",
        )  # fmt: skip
    config.check_processes(world)
    if mode == "auto":
        return "ddp" if world > 1 else "none"
    return mode


def resolve_steps(config: RunKeys, samples: int) -> int:
    """The weight updates of a run over so many train samples. Raises UserError for a warm-up that is no shorter."""
    steps = total_steps(config.train, samples)
    if config.optim.warmup >= max(steps, 1):
        what = "the warm-up is longer than the run"
        raise UserError(what, where="optim.warmup", got=config.optim.warmup, expected=f"below {steps}")
    return steps


def make_state(
    config: RunKeys, objective: Objective, steps: int, build: Callable[[], Network], fingerprints: tuple[str, str],
    *, unused: bool = False,
) -> TrainState:  # fmt: skip
    """Return the training state of an objective at step 0. build: makes a model like the objective's. fingerprints: of
    the data and of the initial weights. unused: whether some parameters get no gradient in some steps."""
    mode = parallel_mode(config)
    _cut(objective.model, mode)
    optimizer = make_optimizer(objective, config.optim)
    decay, ema = config.train.ema, None
    if decay is not None:
        ema = WeightEMA(objective.model, _cut(build(), mode), decay, config.train.ema_warmup)
    compute_copy = ComputeCopy(objective) if config.precision == "bfloat16_params" else None
    computing = _compiled(config, compute_copy.module if compute_copy else objective, mode)
    parallel = Parallel(computing, ddp=mode == "ddp", unused=unused, each=compute_copy is not None)
    if distributed.rank():  # equal weights were drawn on all; what dropout drops differs
        torch.manual_seed(config.seed + distributed.rank() * 0x9E3779B9)
    autocast = torch.bfloat16 if config.precision == "bfloat16" else None
    return TrainState(objective, optimizer, ema, Progress(), *fingerprints, compute_copy, parallel, autocast, steps)


def _compiled(config: RunKeys, objective: Module, mode: str) -> Module:
    """Return the module to call for a step: the objective, or its compiled form if configured or, automatically, on
    CUDA."""
    assert isinstance(objective, Objective)
    setting, device = config.train.compile, next(objective.parameters()).device
    can = mode != "fsdp" and objective.compile_key(0) is not None and not objective.model.checkpointed
    if setting == "step" and not can:
        raise UserError(
            "this step cannot be compiled: its objective does not allow it, or blocks are checkpointed",
            where="train.compile", got="step", expected="none",
        )  # fmt: skip
    if setting == "step" or (setting == "auto" and can and device.type == "cuda" and find_spec("triton") is not None):
        from vitral.training.compiled import Compiled

        return Compiled(objective)
    return objective


def _cut(model: Network, mode: str) -> Module:
    """Cut the weights over all processes, with fsdp alone."""
    if mode != "fsdp":
        return model
    from vitral.training.sharded import shard

    return shard(model, next(model.parameters()).device)
