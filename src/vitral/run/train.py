"""Train: from configuration to model folder, in order."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from vitral import distributed
from vitral.data.dataset import Dataset
from vitral.data.loader import TrainLoader
from vitral.errors import Interrupted, RunFailed, UserError
from vitral.objectives.objective import Objective
from vitral.run.assembly import Assembly, parallel_mode
from vitral.run.config import load_run
from vitral.run.finish import environment
from vitral.run.folder import CHECKPOINTS, claimed, open_folder, resume_with, write_length
from vitral.run.resume import resume
from vitral.run.run_keys import RunKeys
from vitral.training.loggers import Logger, Loggers, TensorBoard
from vitral.training.loop import train_loop
from vitral.training.metrics_log import console_logging, console_silence, log, log_file
from vitral.training.signals import StopSignal, signum_of
from vitral.training.throughput import Throughput, peak_flops
from vitral.training.train_state import TrainState, has_checkpoint


def train(
    recipe: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    loggers: Sequence[Logger] = (),
    **more: Any,
) -> dict[str, Any]:
    """Train by a recipe (or YAML file) and dotted overrides; returns what summary.json holds, and `out`, its folder.

    `train("digits", {"optim.lr": 3e-4}, out="runs/a", seed=1)`: `more` takes undotted keys; `out` is the run folder;
    `loggers` get every row of metrics.jsonl.
    Raises UserError for wrong configuration or data (nothing written), Interrupted after Ctrl-C with the state saved.
    """
    keys = {**(overrides or {}), **more}
    if out is not None:
        keys["out"] = str(out)
    console_logging()
    return run(load_run(recipe, keys), loggers=loggers)


def run(
    config: RunKeys, dataset: Dataset | None = None, loggers: Sequence[Logger] = (), folder: Path | None = None
) -> dict[str, Any]:
    """The run that a configuration describes, on its data or on those given. Torch's settings are left as they were.

    Every process of a launcher calls this; the main one writes and speaks. folder: the run folder, where the caller has
    claimed it already.
    """
    alone = parallel_mode(config) == "fsdp"
    with (
        distributed.processes(config.device, alone=alone),
        StopSignal(at_once=True),
        ExitStack() as held,
    ):
        with distributed.error_barrier():
            if distributed.is_main() and folder is None:
                folder = held.enter_context(claimed(config))
        folder = distributed.broadcast_from_main(folder)
        assert folder is not None
        if config.train.tensorboard:
            loggers = (*loggers, TensorBoard(folder / "tensorboard"))
        is_started = distributed.broadcast_from_main(has_checkpoint(folder / CHECKPOINTS))
        resuming = is_started and (config.resume or config.finish)
        if config.finish and not resuming:
            hint = "finish=true ends a run that was stopped; this one has saved no checkpoint yet."
            raise UserError("there is no run to finish", where="out", got=folder, hint=hint)
        resumable = resuming
        try:
            with (
                torch.random.fork_rng(),
                torch_settings(config),
                nullcontext() if distributed.is_main() else console_silence(),
                ExitStack() as closes,
            ):
                parts = _open(config, dataset, folder, resuming, closes)
                resumable = True
                return {**_train(*parts, folder, loggers), "out": str(folder)}
        except KeyboardInterrupt as stop:
            again = "The same command starts it again."
            if resumable:
                again = f"Resume with:\n  {resume_with(folder, config)}"
            raise Interrupted(signum_of(stop), f"stopped outside of training. {again}") from None


def _open(
    config: RunKeys, dataset: Dataset | None, folder: Path, resuming: bool, closes: ExitStack
) -> tuple[Assembly[Any], TrainState, Objective, TrainLoader]:
    """Assemble the parts of the run and start its files, or restore them. `closes` ends what is opened."""
    with distributed.error_barrier():
        parts = closes.enter_context(closing(assembly_of(config, dataset)))
    with distributed.error_barrier():
        state, objective = parts.state(resuming)
        loader = parts.loader()
        notes = resume(folder, parts.config, state, (state.steps, parts.samples)) if resuming else []
    if config.resume and not resuming:
        notes = [f"nothing to resume in {folder}: the run starts from step 0"]
    closes.enter_context(_explained(parts, folder))
    if distributed.is_main():
        if not resuming:
            open_folder(folder, parts.config, environment(parts.device))
            parts.remember(folder)
        elif notes:
            write_length(folder, parts.config)
        closes.enter_context(log_file(folder / "train.log"))
    for note in notes:
        log.warning("%s", note)
    return parts, state, objective, loader


def assembly_of(config: RunKeys, dataset: Dataset | None = None) -> Assembly[Any]:
    """Open the data (unless given) and settle every `auto` of a run. Raises UserError for what is wrong with them."""
    module, _, name = config.assembly.partition(":")
    return getattr(import_module(module), name)(config, dataset)


def _train(
    parts: Assembly[Any], state: TrainState, objective: Objective, loader: TrainLoader, folder: Path,
    loggers: Sequence[Logger],
) -> dict[str, Any]:  # fmt: skip
    """Train to the end and finish the run; returns what summary.json holds."""
    config = parts.config
    parts.log_start(objective, state.steps, folder)
    if config.finish:
        log.info("the run is ended at step %d of %d", state.progress.step, state.steps)
    else:
        if state.progress.step:
            log.info("resuming at step %d", state.progress.step)
        peak = peak_flops(loader.device, state.autocast)
        try:
            train_loop(
                state, objective, loader, config.train, config.optim, folder, validation=parts.validation(),
                keep_last=parts.keep_last,
                throughput=Throughput(loader.images, parts.flops / distributed.world(), peak),
                loggers=Loggers(loggers, config.model_dump(mode="json")),
            )  # fmt: skip
        except Interrupted as stop:
            raise Interrupted(stop.signum, f"{stop}. Resume with:\n  {resume_with(folder, config)}") from None
    return parts.finish(state, objective, folder)


@contextmanager
def _explained(parts: Assembly[Any], folder: Path) -> Generator[None]:
    """Turn failures of a correctly configured run (disk, memory) into messages."""
    try:
        yield
    except OSError as error:
        raise RunFailed(f"{error}. Checkpoints are in {folder / CHECKPOINTS}") from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise RunFailed(f"out of memory: {str(error).splitlines()[0]}\n  {parts.smaller_hint}") from error
        raise


@contextmanager
def torch_settings(config: RunKeys) -> Generator[None]:
    """Set determinism as configured; restore it, and the number of threads (which a resume sets), at the end."""
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(threads)
