"""The training loop: batch, loss, backward, clip, step, average, log, validate, save."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vitral import distributed
from vitral.data.loader import TrainLoader
from vitral.errors import Interrupted, RunFailed
from vitral.objectives.objective import Objective
from vitral.structs import Batch
from vitral.training.config import TrainConfig
from vitral.training.journal import Journal, NoJournal, log
from vitral.training.parallel import Parallel
from vitral.training.signals import StopSignal
from vitral.training.state import LAST, WHOLE, TrainState
from vitral.weights.tensors import save_tensors

VALIDATIONS = 20  # of a run, by default


def total_steps(config: TrainConfig, samples: int) -> int:
    """Weight updates of a run over `samples` training images; the last epoch is rounded up to whole batches."""
    return config.steps or math.ceil(config.epochs * samples / config.batch_size)


@dataclass(frozen=True)
class Plan:
    """What the loop is told beside its parts. rate: learning rate by step. clip: largest gradient norm or None.
    autocast: the precision of matrix products, or None for that of the weights. score: the validated value, "val_" in
    front of it, by which the best weights are chosen, and how the log calls it."""

    steps: int
    rate: Callable[[int], float]
    clip: float | None
    autocast: torch.dtype | None
    folder: Path
    resume_command: str
    score: tuple[str, str] = ("top1", "top-1")


def fit(
    state: TrainState,
    objective: Objective,
    loader: TrainLoader,
    config: TrainConfig,
    plan: Plan,
    validate: Callable[[nn.Module], Mapping[str, float]] | None,
) -> None:
    """Train from where `state` is to the end, or to an early stop. `validate` gives "val_loss" and the score.

    Saves the run's state by time and at every stop, the best validated weights when there are new ones; without
    `validate` the last weights. Raises Interrupted after a signal (state saved), RunFailed where a loss is not finite.
    """
    progress, last = state.progress, plan.folder / f"{LAST}{WHOLE}"
    epochs_a_step = config.batch_size / len(loader.store.split)
    due = _validations_a_step(config, plan.steps, epochs_a_step)
    saved = started = time.monotonic()
    before = progress.seconds
    make = Journal if distributed.is_main() else NoJournal
    with StopSignal() as stop, make(plan.folder.parent, plan.steps, progress.step) as journal:
        objective.train()
        for batch in loader.stream(progress.step, plan.steps if not progress.done else progress.step):
            rate = plan.rate(progress.step)
            loss, metrics, norm = update(state, objective, batch, config, plan, rate)
            progress.step += 1
            progress.seconds = before + time.monotonic() - started
            epoch = progress.step * epochs_a_step
            progress.done = progress.step == plan.steps
            log_due = progress.step % config.log_every == 0 or progress.done
            judge_due = progress.done or math.floor(progress.step * due) > math.floor((progress.step - 1) * due)
            is_time = time.monotonic() - saved >= config.save_seconds
            stopping, save_due = distributed.any_of(stop.signum is not None, is_time)
            save_due |= stopping or progress.done

            if log_due or judge_due or save_due:
                loss, metrics = _over_processes(loss, metrics)
                _check_finite(loss, norm, progress.step, last)
            if log_due:
                found = {"loss": loss, "grad_norm": norm, **metrics}
                row = {"step": progress.step, "epoch": round(epoch, 4), "lr": rate}
                row |= {name: value.item() for name, value in found.items()}
                journal.row(row | {"images_per_second": round(progress.step * config.batch_size / progress.seconds, 1)})
            if judge_due and validate is not None:
                judge(state, objective, validate, journal, plan, epoch)
                if config.patience is not None and progress.stale >= config.patience:
                    log.info("stopped early: no better validation in %d", progress.stale)
                    progress.done = save_due = True
            if progress.done and validate is None and _keep(state, objective, plan):
                progress.best_step = progress.step
            if save_due:
                is_saved = _saved(lambda: state.save(last))
                saved = time.monotonic()
                if stopping and not progress.done:
                    where = f"stopped at step {progress.step} of {plan.steps}"
                    lost = "" if is_saved else ", and this state could not be saved"
                    raise Interrupted(
                        stop.signum or signal.SIGTERM, f"{where}{lost}. Go on with:\n  {plan.resume_command}"
                    )
            if progress.done:
                break


def _validations_a_step(config: TrainConfig, steps: int, epochs_a_step: float) -> float:
    match config.eval_every:
        case "auto":
            return VALIDATIONS / steps
        case "end":
            return 0.0
        case epochs:
            return epochs_a_step / epochs


def _over_processes(
    loss: torch.Tensor, metrics: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The means over the whole batch, from those over the slices."""
    loss, *values = distributed.mean([loss, *metrics.values()])
    return loss, dict(zip(metrics, values, strict=True))


def _check_finite(loss: torch.Tensor, norm: torch.Tensor, step: int, last: Path) -> None:
    """Raise RunFailed before weights that a NaN has spoilt are judged or saved."""
    if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
        kept = f" Last good state: {last}" if last.exists() else ""
        what = f"the loss is {loss.item()}, the gradient's norm {norm.item()} at step {step}"
        raise RunFailed(f"{what}; a lower optim.lr may help.{kept}")


def judge(
    state: TrainState,
    objective: Objective,
    validate: Callable[[nn.Module], Mapping[str, float]],
    journal: Journal,
    plan: Plan,
    epoch: float,
) -> None:
    """Validate the averaged weights (the plain ones without an average) and keep them if they are the best so far."""
    progress = state.progress
    found = validate(_judged(state, objective))
    objective.train()
    journal.row({"step": progress.step, "epoch": round(epoch, 4), **found})
    loss, score = found["val_loss"], found[f"val_{plan.score[0]}"]
    if progress.better(score, loss) and _keep(state, objective, plan):
        progress.best_step, progress.best_score, progress.best_loss, progress.stale = progress.step, score, loss, 0
    else:
        progress.stale += 1
    line = "epoch %5.1f  step %d/%d  val loss %.4f  val %s %.2f %%"
    log.info(line, epoch, progress.step, plan.steps, loss, plan.score[1], 100 * score)


def _judged(state: TrainState, objective: Objective) -> nn.Module:
    return state.ema.average if state.ema else objective.model


def _keep(state: TrainState, objective: Objective, plan: Plan) -> bool:
    """Save the weights that the model folder will hold, put together by all processes and written by the main one."""
    weights = {name: distributed.whole(tensor) for name, tensor in _judged(state, objective).state_dict().items()}
    if distributed.is_main():
        is_kept = _saved(lambda: save_tensors(plan.folder / "best.safetensors", weights, checked=True))
    else:
        is_kept = False
    return distributed.from_main(is_kept)


def update(
    state: TrainState, objective: Objective, batch: Batch, config: TrainConfig, plan: Plan, rate: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """One weight update from one global batch, in micro-batches weighted by their share of it (the last may be short).

    Of many processes each has its slice of the batch, and micro-batches of it. Returns the mean loss and the mean
    metrics, both of the slice, and the gradient's global norm before clipping.
    """
    step, size = state.progress.step, len(batch.keys_B)
    parallel = state.parallel or Parallel(objective)
    micro = config.micro_batch or size
    device = batch.views[0].images_BCHW.device
    total, metrics = torch.zeros((), device=device), dict[str, torch.Tensor]()
    for start in range(0, size, micro):
        part = batch.slice(start, start + micro)
        share = len(part.keys_B) / size
        with parallel.micro_batch(last=start + micro >= size):
            with torch.autocast(device.type, plan.autocast or torch.bfloat16, enabled=plan.autocast is not None):
                out = parallel.call(part, step)
            (out.loss * share).backward()
        total += out.loss.detach() * share
        for name, value in out.metrics.items():
            metrics[name] = metrics.get(name, 0) + value.detach() * share
    parameters = [parameter for parameter in objective.parameters() if parameter.grad is not None]
    norm = distributed.whole(
        torch.nn.utils.clip_grad_norm_(parameters, plan.clip if plan.clip is not None else math.inf)
    )
    objective.before_update(step)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    objective.after_update(step)
    if state.ema is not None:
        state.ema.update()
    return total, metrics, norm


def _saved(write: Callable[[], None]) -> bool:
    try:
        write()
    except OSError as error:
        log.error("%s. The file before it is kept and the run goes on; free some space", error)
        return False
    return True
