"""The training loop: batch, loss, backward, clip, step, average, log, validate, save."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from vitral import distributed
from vitral.data.loader import TrainLoader
from vitral.errors import Interrupted
from vitral.evaluate.metric import Metric
from vitral.objectives.objective import Objective
from vitral.optim.clipping import clip_gradients
from vitral.optim.config import OptimConfig
from vitral.optim.schedules import learning_rate, schedule
from vitral.structs import Batch, count_samples, device_of, micro_batches
from vitral.training.config import TrainConfig
from vitral.training.loggers import Loggers
from vitral.training.metrics_log import MetricsLog, NoMetricsLog, log
from vitral.training.nonfinite import NonFiniteGuard
from vitral.training.parallel import Parallel
from vitral.training.signals import StopSignal
from vitral.training.throughput import Throughput
from vitral.training.train_state import BEST, LAST, WHOLE, Progress, TrainState
from vitral.weights.stopped_run import CHECKPOINTS
from vitral.weights.tensors import save_tensors

VALIDATIONS = 20  # of a run, by default
VALIDATED = 0.5  # images validated, by default, per trained image: about a sixth of the run's time


@dataclass(frozen=True)
class Validation:
    """evaluate: a model's primary metric on the validation images, and the one (lower is better) that decides between
    equal ones. images: number of images of one validation."""

    evaluate: Callable[[nn.Module], tuple[Metric, Metric | None]]
    images: int


def total_steps(config: TrainConfig, samples: int) -> int:
    """Weight updates of a run over `samples` training images; the last epoch is rounded up to whole batches."""
    return config.steps or math.ceil(config.epochs * samples / config.batch_size)


def train_loop(
    state: TrainState, objective: Objective, loader: TrainLoader, train: TrainConfig, optim: OptimConfig, folder: Path,
    *, validation: Validation | None, keep_last: bool, throughput: Throughput, loggers: Loggers,
) -> None:  # fmt: skip
    """Train from where `state` is to `state.steps`, or to an early stop.

    Writes into `folder`, the run folder: metrics (every row goes to `loggers` too), the state by time and at every
    stop, and the best validated weights; without `validation`, or with `keep_last`, the last ones. Raises Interrupted
    after a signal (state saved), RunFailed after too many successive steps that were not finite.
    """
    progress, checkpoints = state.progress, folder / CHECKPOINTS
    epochs_per_step = train.batch_size / loader.samples
    due = _validations_per_step(train, state.steps, validation.images if validation else 0, epochs_per_step)
    saved = started = time.monotonic()
    before, warned = progress.seconds, set[str]()
    guard = NonFiniteGuard(state, loader.batch, folder, train)
    with StopSignal() as stop, _metrics_log(folder, state, loggers) as metrics_log, _settled(state):
        objective.train()
        first, end = progress.step, progress.step if progress.done else state.steps
        for batches in throughput.batches(loader.stream(first, end)):
            loss, metrics, norm = train_step(state, objective, batches, train, optim, guard)
            lr = learning_rate(progress.step, state.steps, optim)
            progress.step = metrics_log.at(progress.step + 1)
            progress.seconds = before + time.monotonic() - started
            epoch = progress.step * epochs_per_step
            progress.done = progress.step == state.steps
            log_due = progress.step % train.log_every == 0 or progress.done
            eval_due = progress.done or math.floor(progress.step * due) > math.floor((progress.step - 1) * due)
            is_time = time.monotonic() - saved >= train.save_seconds
            stopping, save_due = distributed.any_rank(stop.signum is not None, is_time)
            save_due |= stopping or progress.done

            if log_due or eval_due or save_due:
                guard.sync()
                throughput.stop()
            if log_due:
                means = {"loss": loss, **metrics, **objective.monitor(progress.step - 1)}
                row = {"step": progress.step, "epoch": round(epoch, 4), "lr": lr, **_numbers(means, norm, progress)}
                if _warn_of_collapse(objective, row, warned) and objective.stops_on_collapse:
                    progress.done = save_due = True
                metrics_log.row(row | throughput.read().row())
            if eval_due and validation is not None:
                validate(state, objective, validation, metrics_log, checkpoints, epoch, throughput, keep_last=keep_last)
                if train.patience is not None and progress.stale >= train.patience:
                    log.info("stopped early: no better validation in %d", progress.stale)
                    progress.done = save_due = True
            if progress.done and (validation is None or keep_last) and _save_best(state, objective, checkpoints):
                progress.best_step = progress.step
            _saved(partial(state.settle, wait=save_due))
            if save_due:
                save = partial(state.save, checkpoints / f"{LAST}{WHOLE}", beside=not (stopping or progress.done))
                is_saved = _saved(save)
                saved = time.monotonic()
                if stopping and not progress.done:
                    lost = "" if is_saved else ", and this state could not be saved"
                    # Of another process's signal: as if it were our own.
                    signum = stop.signum or signal.SIGTERM
                    raise Interrupted(signum, f"stopped at step {progress.step} of {state.steps}{lost}")
            if progress.done:
                break


@contextmanager
def _metrics_log(folder: Path, state: TrainState, loggers: Loggers) -> Generator[MetricsLog]:
    """The metrics log of the run, with its loggers; both belong to the main process."""
    if not distributed.is_main():
        yield NoMetricsLog()
        return
    step = state.progress.step
    with closing(loggers), MetricsLog(folder, state.steps, step, loggers.row) as metrics_log:
        loggers.start(step)
        yield metrics_log


@contextmanager
def _settled(state: TrainState) -> Generator[None]:
    """However the run ends, a checkpoint that is being written is whole or known to have failed."""
    try:
        yield
    finally:
        _saved(partial(state.settle, wait=True))
        state.writer = None


def _numbers(means: Mapping[str, torch.Tensor], norm: torch.Tensor, progress: Progress) -> dict[str, float]:
    """For a row: means over the whole batch, from those over the slices. JSON knows no NaN and no infinity."""
    found = dict(zip(means, distributed.mean(means.values()), strict=True)) | {"grad_norm": norm}
    numbers = {name: value.item() for name, value in found.items()}
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    return finite | ({"skipped": progress.skipped} if progress.skipped else {})


def _warn_of_collapse(objective: Objective, row: Mapping[str, float], warned: set[str]) -> bool:
    """Log each warning once, and return whether there is one."""
    warning = objective.check_collapse(row)
    if warning is not None and warning not in warned:
        warned.add(warning)
        log.warning("step %d: %s", row["step"], warning)
    return warning is not None


def _validations_per_step(config: TrainConfig, steps: int, images: int, epochs_per_step: float) -> float:
    match config.eval_every:
        case "auto":
            return min(VALIDATIONS / steps, VALIDATED * config.batch_size / max(images, 1))
        case "end":
            return 0.0
        case epochs:
            return epochs_per_step / epochs


def validate(
    state: TrainState, objective: Objective, validation: Validation, metrics_log: MetricsLog, checkpoints: Path,
    epoch: float, throughput: Throughput, *, keep_last: bool,
) -> None:  # fmt: skip
    """Evaluate the averaged weights (the plain ones without an average) and save them if they are the best so far."""
    progress = state.progress
    primary, second = validation.evaluate(_eval_model(state, objective))
    objective.train()
    metrics = [metric for metric in (second, primary) if metric is not None]
    row = {f"val_{metric.name}": metric.value for metric in metrics}
    metrics_log.row({"step": progress.step, "epoch": round(epoch, 4), **row})
    loss = math.inf if second is None or second.value is None else float(second.value)
    score = None if primary.value is None else float(primary.value)
    if keep_last:
        progress.best_score = score
    elif progress.better(primary, loss) and _save_best(state, objective, checkpoints):
        progress.best_step, progress.best_score, progress.best_loss, progress.stale = progress.step, score, loss, 0
    else:
        progress.stale += 1
    values = "  ".join(f"val {metric.label} {metric.text()}" for metric in metrics)
    line = "epoch %5.1f  step %d/%d  %s  %s"
    log.info(line, epoch, progress.step, state.steps, values, throughput.last or throughput.read())


def _eval_model(state: TrainState, objective: Objective) -> nn.Module:
    return state.ema.average if state.ema else objective.eval_model


def _save_best(state: TrainState, objective: Objective, checkpoints: Path) -> bool:
    """Save the weights that the model folder will hold, gathered from all processes and written by the main one."""
    tensors = _eval_model(state, objective).state_dict()
    weights = {name: distributed.gather_full(tensor) for name, tensor in tensors.items()}
    is_saved = distributed.is_main() and _saved(partial(save_tensors, checkpoints / BEST, weights, checked=True))
    return distributed.broadcast_from_main(is_saved)


def train_step(
    state: TrainState, objective: Objective, batches: Mapping[str, Batch], train: TrainConfig, optim: OptimConfig,
    guard: NonFiniteGuard,
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:  # fmt: skip
    """Update the weights once, by one global batch of each stream, cut into micro-batches (the last may be short).

    With several processes, each computes the micro-batches of its slice of the batches. The gradient is that of the sum
    of all losses over the sum of all weights, whatever the cut. Where the loss or the gradient is not finite on any
    process, nothing moves. Returns this process's part of the loss (its mean over the processes is the loss), the
    metrics of the slice, means by weight, and the gradient's global norm before clipping.
    """
    step, size = state.progress.step, count_samples(batches)
    parallel = state.parallel or Parallel(state.compute_copy.module if state.compute_copy else objective)
    device = device_of(batches)
    total, weight = torch.zeros((), device=device), 0
    metrics, means = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    guard.begin()
    batches = objective.prepare_batches(batches, step)
    parts = list(micro_batches(batches, train.micro_batch))
    for number, part in enumerate(parts, 1):
        share = count_samples(part) / size
        with parallel.micro_batch(last=number == len(parts)):
            with torch.autocast(device.type, state.autocast or torch.bfloat16, enabled=state.autocast is not None):
                out = parallel.call(part, step)
            (out.loss_sum / size).backward()
        if state.compute_copy is not None:
            state.compute_copy.collect()
        total += out.loss_sum.detach() / size
        weight = weight + out.weight
        assert isinstance(weight, torch.Tensor) or out.weight == count_samples(part), "not the first stream's samples"
        for sums, values, of_part in ((metrics, out.metrics, out.weight), (means, out.means, share)):
            for name, value in values.items():
                sums[name] = sums.get(name, 0) + value.detach() * of_part
    metrics = {name: value / (weight + (weight == 0)) for name, value in metrics.items()}
    if isinstance(weight, torch.Tensor):
        total = total * _rescale(objective, weight / size)
    norm = clip_gradients(objective.parameters(), optim.clip, each=optim.clip_each)
    found_inf = guard.check(total, norm)
    objective.before_update(step)
    schedule(state.optimizer, step, state.steps, optim)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.compute_copy is not None:
        state.compute_copy.refresh()
    objective.after_update(step, means, found_inf)
    objective.after_batch(batches, step, found_inf)
    if state.ema is not None:
        state.ema.update(found_inf)
    return total, metrics, norm


@torch.no_grad()
def _rescale(objective: nn.Module, mean_weight: torch.Tensor) -> torch.Tensor:
    """Divides gradients of losses per sample by the weight per sample of the whole batch; returns the factor."""
    mean = distributed.mean([mean_weight])[0]
    factor = 1 / torch.where(mean == 0, 1, mean)  # a batch without anything to learn from has zero gradients
    grads = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
    torch._foreach_mul_(grads, factor)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return factor


def _saved(write: Callable[[], None]) -> bool:
    try:
        write()
    except OSError as error:
        log.error("%s. The file before it is kept and the run continues; free some space", error)
        return False
    return True
