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
from vitral.structs import Batch, count_samples, device_of, micro_batches
from vitral.training.config import TrainConfig
from vitral.training.loggers import Loggers
from vitral.training.metrics_log import MetricsLog, NoMetricsLog, log
from vitral.training.nonfinite import Guard, Watch
from vitral.training.parallel import Parallel
from vitral.training.signals import StopSignal
from vitral.training.state import BEST, LAST, WHOLE, Progress, TrainState
from vitral.training.throughput import Speed, peak_flops
from vitral.weights.tensors import save_tensors

# Of a model on the validation images: the primary metric, and the one that decides where it is equal, lower is better.
Validate = Callable[[nn.Module], tuple[Metric, Metric | None]]
VALIDATIONS = 20  # of a run, by default
VALIDATED = 0.5  # images validated, by default, for each that is trained: about a sixth of the run's time


def total_steps(config: TrainConfig, samples: int) -> int:
    """Weight updates of a run over `samples` training images; the last epoch is rounded up to whole batches."""
    return config.steps or math.ceil(config.epochs * samples / config.batch_size)


@dataclass(frozen=True)
class Plan:
    """What the loop is told beside its parts. rate, decay: learning rate and weight decay by step (None: as the groups
    say). clip: largest gradient norm or None, of each parameter by itself with clip_each. autocast: the precision of
    matrix products, or None for that of the weights. keep_last: keep the last weights, not those of the
    best validation. validation_images: those of one validation.
    replay_command: looks at the batch that ended the run. image_flops: operations for one trained image, 0: unknown."""

    steps: int
    rate: Callable[[int], float]
    clip: float | None
    autocast: torch.dtype | None
    folder: Path
    resume_command: str
    replay_command: str = ""
    image_flops: float = 0.0
    clip_each: bool = False
    decay: Callable[[int], float] | None = None
    keep_last: bool = False
    validation_images: int = 0


def fit(
    state: TrainState,
    objective: Objective,
    loader: TrainLoader,
    config: TrainConfig,
    plan: Plan,
    validate: Validate | None,
    loggers: Loggers | None = None,
) -> None:
    """Train from where `state` is to the end, or to an early stop. `loggers` get every row of the
    metrics_log.

    Saves the run's state by time and at every stop, the best validated weights when there are new ones; without
    `validate`, or with `plan.keep_last`, the last weights. Raises Interrupted after a signal (state saved), RunFailed
    after too many steps in a row that were not finite.
    """
    progress, last = state.progress, plan.folder / f"{LAST}{WHOLE}"
    epochs_a_step = config.batch_size / loader.samples
    due = _validations_a_step(config, plan, epochs_a_step)
    saved = started = time.monotonic()
    before = progress.seconds
    guard, speed, told = Guard(state, _watch(loader, config, plan)), _speed(loader, plan), set[str]()
    with StopSignal() as stop, _journal(plan, progress.step, loggers or Loggers()) as metrics_log, _settled(state):
        objective.train()
        for batches in speed.batches(loader.stream(progress.step, plan.steps if not progress.done else progress.step)):
            rate = plan.rate(progress.step)
            loss, metrics, norm = update(state, objective, batches, config, plan, rate, guard)
            progress.step = metrics_log.at(progress.step + 1)
            progress.seconds = before + time.monotonic() - started
            epoch = progress.step * epochs_a_step
            progress.done = progress.step == plan.steps
            log_due = progress.step % config.log_every == 0 or progress.done
            eval_due = progress.done or math.floor(progress.step * due) > math.floor((progress.step - 1) * due)
            is_time = time.monotonic() - saved >= config.save_seconds
            stopping, save_due = distributed.any_rank(stop.signum is not None, is_time)
            save_due |= stopping or progress.done

            if log_due or eval_due or save_due:
                guard.sync()
                speed.stop()
            if log_due:
                row = {"step": progress.step, "epoch": round(epoch, 4), "lr": rate}
                row |= _numbers({"loss": loss, **metrics}, norm)
                _check_collapse(objective, row, told)
                metrics_log.row(row | _skipped(progress) | speed.read().row())
            if eval_due and validate is not None:
                judge(state, objective, validate, metrics_log, plan, epoch, speed)
                if config.patience is not None and progress.stale >= config.patience:
                    log.info("stopped early: no better validation in %d", progress.stale)
                    progress.done = save_due = True
            if progress.done and (validate is None or plan.keep_last) and _keep(state, objective, plan):
                progress.best_step = progress.step
            _saved(partial(state.settle, wait=save_due))
            if save_due:
                is_saved = _saved(partial(state.save, last, beside=not (stopping or progress.done)))
                saved = time.monotonic()
                if stopping and not progress.done:
                    raise _interrupted(progress.step, plan, stop.signum, is_saved)
            if progress.done:
                break


@contextmanager
def _journal(plan: Plan, step: int, loggers: Loggers) -> Generator[MetricsLog]:
    """The run's metrics_log, and the loggers that read along; both are the main process's."""
    if not distributed.is_main():
        yield NoMetricsLog()
        return
    with closing(loggers), MetricsLog(plan.folder.parent, plan.steps, step, loggers.row) as metrics_log:
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


def _watch(loader: TrainLoader, config: TrainConfig, plan: Plan) -> Watch:
    folder = plan.folder.parent / "nonfinite"
    return Watch(
        folder, config.max_nonfinite_steps, loader.batch, plan.replay_command, config.micro_batch, plan.autocast
    )


def _speed(loader: TrainLoader, plan: Plan) -> Speed:
    """Of all processes together; use of the device: of each, which computes its share of the images."""
    flops, peak = plan.image_flops / distributed.world(), peak_flops(loader.device, plan.autocast)
    return Speed(loader.images, flops, peak)


def _numbers(means: Mapping[str, torch.Tensor], norm: torch.Tensor) -> dict[str, float]:
    """For a row: means over the whole batch, from those over the slices. JSON knows no NaN and no infinity."""
    found = dict(zip(means, distributed.mean(means.values()), strict=True)) | {"grad_norm": norm}
    numbers = {name: value.item() for name, value in found.items()}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _skipped(progress: Progress) -> dict[str, int]:
    return {"skipped": progress.skipped} if progress.skipped else {}


def _check_collapse(objective: Objective, row: Mapping[str, float], told: set[str]) -> None:
    """Say what is wrong with the training, once."""
    found = objective.check_collapse(row)
    if found is not None and found not in told:
        told.add(found)
        log.warning("step %d: %s", row["step"], found)


def _interrupted(step: int, plan: Plan, signum: int | None, is_saved: bool) -> Interrupted:
    lost = "" if is_saved else ", and this state could not be saved"
    message = f"stopped at step {step} of {plan.steps}{lost}. Go on with:\n  {plan.resume_command}"
    return Interrupted(signum or signal.SIGTERM, message)  # of another process's signal: as if it were our own


def _validations_a_step(config: TrainConfig, plan: Plan, epochs_a_step: float) -> float:
    match config.eval_every:
        case "auto":
            affordable = VALIDATED * config.batch_size / max(plan.validation_images, 1)
            return min(VALIDATIONS / plan.steps, affordable)
        case "end":
            return 0.0
        case epochs:
            return epochs_a_step / epochs


def judge(
    state: TrainState,
    objective: Objective,
    validate: Validate,
    metrics_log: MetricsLog,
    plan: Plan,
    epoch: float,
    speed: Speed,
) -> None:
    """Validate the averaged weights (the plain ones without an average) and keep them if they are the best so far."""
    progress = state.progress
    primary, second = validate(_judged(state, objective))
    objective.train()
    metrics = [metric for metric in (second, primary) if metric is not None]
    row = {f"val_{metric.name}": metric.value for metric in metrics}
    metrics_log.row({"step": progress.step, "epoch": round(epoch, 4), **row})
    loss = math.inf if second is None or second.value is None else float(second.value)
    score = None if primary.value is None else float(primary.value)
    if plan.keep_last:
        progress.best_score = score
    elif progress.better(primary, loss) and _keep(state, objective, plan):
        progress.best_step, progress.best_score, progress.best_loss, progress.stale = progress.step, score, loss, 0
    else:
        progress.stale += 1
    shown = "  ".join(f"val {metric.label} {metric.text()}" for metric in metrics)
    line = "epoch %5.1f  step %d/%d  %s  %s"
    log.info(line, epoch, progress.step, plan.steps, shown, speed.last or speed.read())


def _judged(state: TrainState, objective: Objective) -> nn.Module:
    return state.ema.average if state.ema else objective.eval_model


def _keep(state: TrainState, objective: Objective, plan: Plan) -> bool:
    """Save the weights that the model folder will hold, put together by all processes and written by the main one."""
    weights = {name: distributed.gather_full(tensor) for name, tensor in _judged(state, objective).state_dict().items()}
    if distributed.is_main():
        is_kept = _saved(lambda: save_tensors(plan.folder / BEST, weights, checked=True))
    else:
        is_kept = False
    return distributed.broadcast_from_main(is_kept)


def update(
    state: TrainState, objective: Objective, batches: Mapping[str, Batch], config: TrainConfig, plan: Plan, rate: float,
    guard: Guard,
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:  # fmt: skip
    """One weight update from one global batch of each stream, cut into micro-batches (the last may be short).

    With several processes, each computes the micro-batches of its slice of the batches. The gradient is that of the sum
    of all losses over the sum of all weights, whatever the cut. Where the loss or the gradient is not finite on any
    process, nothing moves. Returns this process's part of the loss (its mean over the processes is the loss), the mean
    metrics of the slice, and the gradient's global norm before clipping.
    """
    step, size = state.progress.step, count_samples(batches)
    parallel = state.parallel or Parallel(state.compute_copy.module if state.compute_copy else objective)
    device = device_of(batches)
    total, weight = torch.zeros((), device=device), 0
    metrics, means = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    guard.begin()
    parts = list(micro_batches(batches, config.micro_batch))
    for number, part in enumerate(parts, 1):
        share = count_samples(part) / size
        with parallel.micro_batch(last=number == len(parts)):
            with torch.autocast(device.type, plan.autocast or torch.bfloat16, enabled=plan.autocast is not None):
                out = parallel.call(part, step)
            (out.loss_sum / size).backward()
        if state.compute_copy is not None:
            state.compute_copy.collect()
        total += out.loss_sum.detach() / size
        weight = weight + out.weight
        assert isinstance(weight, torch.Tensor) or out.weight == count_samples(part), "not the first stream's samples"
        for sums, values in ((metrics, out.metrics), (means, out.means)):
            for name, value in values.items():
                sums[name] = sums.get(name, 0) + value.detach() * share
    if isinstance(weight, torch.Tensor):
        total = total * _rescale(objective, weight / size)
    norm = clip_gradients(objective.parameters(), plan.clip, each=plan.clip_each)
    found_inf = guard.check(total, norm)
    objective.before_update(step)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
        if plan.decay is not None and group["adapt"]:
            group["weight_decay"] = plan.decay(step)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.compute_copy is not None:
        state.compute_copy.refresh()
    objective.after_update(step, means, found_inf)
    if state.ema is not None:
        state.ema.update(found_inf)
    return total, metrics, norm


@torch.no_grad()
def _rescale(objective: nn.Module, mean_weight: torch.Tensor) -> torch.Tensor:
    """Divides gradients of losses per sample by the weight per sample of the whole batch; returns the factor."""
    whole = distributed.mean([mean_weight])[0]
    factor = 1 / torch.where(whole == 0, 1, whole)  # a batch without anything to learn from has zero gradients
    grads = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
    torch._foreach_mul_(grads, factor)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return factor


def _saved(write: Callable[[], None]) -> bool:
    try:
        write()
    except OSError as error:
        log.error("%s. The file before it is kept and the run goes on; free some space", error)
        return False
    return True
