"""Resume a stopped run, and choose the weights that it ends with."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.nn import Module

from vitral import distributed
from vitral.errors import UserError
from vitral.objectives.objective import Objective
from vitral.optim.schedules import learning_rate
from vitral.run.config import difference
from vitral.run.folder import CHECKPOINTS, read_config
from vitral.run.run_keys import RunKeys
from vitral.training.loop import total_steps
from vitral.training.metrics_log import log
from vitral.training.train_state import BEST, Progress, TrainState
from vitral.weights.stopped_run import finish_command, resume_command
from vitral.weights.tensors import DamagedFile, load_tensors

_LENGTH = {"train.steps", "train.epochs"}  # a resumed run may have another length


def resume(folder: Path, config: RunKeys, state: TrainState, length: tuple[int, int]) -> list[str]:
    """Restore the newest whole checkpoint of the same run; returns what there is to say of others, and of a run that is
    to be longer or shorter now. length: the run's steps, and its train samples."""
    before = read_config(folder)
    changed = [(key, old, new) for key, old, new in difference(before, config) if key not in _LENGTH]
    if changed:
        got = "; ".join(f"{key}: {old}, now {new}" for key, old, new in changed)
        hint = f"Resume with: {resume_command(folder)}"
        raise UserError("the run was configured otherwise", where=str(folder), got=got, hint=hint)
    notes = state.load_newest(folder / CHECKPOINTS)
    progress, (steps, samples) = state.progress, length
    planned = total_steps(before.train, samples)
    if progress.best_step >= 0 and (trouble := _load_best(folder, progress)[1]):
        lost = f"The best weights so far, of step {progress.best_step}, are lost"
        notes.append(f"{trouble}\n{lost}: the next validation counts as the best")
        progress.forget_best()
    if steps != planned:
        notes.append(_relength(folder, config, progress, planned, steps))
    return notes


def _relength(folder: Path, config: RunKeys, progress: Progress, planned: int, steps: int) -> str:
    """Make a resumed run end at another step; returns what that means for its schedules."""
    at = progress.step
    if steps < at:
        raise UserError(
            "the run is beyond this step", where="train.steps", got=steps, expected=f"{at} or more",
            hint=f"End the run where it is: {finish_command(folder)}",
        )  # fmt: skip
    progress.done = steps == at
    rates = [f"{learning_rate(at, total, config.optim):.3g}" for total in (planned, steps) if at < total]
    rate = f" (learning rate {rates[1]}, was {rates[0]})" if len(rates) > 1 else ""
    return (
        f"the run ends at step {steps} now, not at step {planned}: from step {at} on, all schedules are those of "
        f"{steps} steps{rate}"
    )


def _load_best(folder: Path, progress: Progress) -> tuple[dict[str, Tensor], str | None]:
    """The best validated weights, and why a process lacks them, if one does."""
    if progress.best_step < 0:
        return {}, "no weights have been validated yet"
    found, trouble = dict[str, Tensor](), None
    try:
        found = load_tensors(folder / CHECKPOINTS / BEST, checked=True)[0]
    except DamagedFile as error:
        trouble = str(error)
    return found, distributed.first_trouble(trouble)


def take_best(model: Module, state: TrainState, objective: Objective, folder: Path) -> bool:
    """Give the model the best validated weights (without validation the last); where there are none or they cannot be
    read, those of the state, and return False."""
    found, trouble = _load_best(folder, state.progress)
    if trouble:
        step = state.progress.best_step = state.progress.step
        log.warning("%s\nThe model folder gets the last weights instead, of step %d", trouble, step)
        last = state.ema.average if state.ema else objective.eval_model
        found = {name: distributed.gather_full(tensor) for name, tensor in last.state_dict().items()}
    model.load_state_dict(found)
    return not trouble
