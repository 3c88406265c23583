"""Train: from configuration to model folder, in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from vitral import distributed
from vitral.data.dataset import Dataset
from vitral.data.loader import StreamLoader, TrainLoader
from vitral.data.sampling import class_shares
from vitral.errors import Interrupted, RunFailed, UserError, plural
from vitral.evaluate.metric import Metric
from vitral.models.model import ImageModel
from vitral.models.summary import count_macs
from vitral.objectives.class_balance import NO_BALANCE, ClassBalance, class_balance, needs_balance
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.objectives.registry import OBJECTIVES
from vitral.optim.ema import WeightEMA
from vitral.optim.master_weights import ComputeCopy
from vitral.optim.optimizer import make_optimizer
from vitral.run.config import RunConfig, load_config
from vitral.run.eval_target import EvalData
from vitral.run.finish import environment, finish, is_validated
from vitral.run.fit_memory import describe_memory, smaller_batch_hint
from vitral.run.folder import CHECKPOINTS, claimed, open_folder, resume_with, write_length
from vitral.run.prepare import RunContext, prepare
from vitral.run.resume import resume
from vitral.run.split_record import save_split
from vitral.tasks.registry import TASKS
from vitral.training.loggers import Logger, Loggers, TensorBoard
from vitral.training.loop import Validation, total_steps, train_loop
from vitral.training.metrics_log import console_logging, console_silence, log, log_file
from vitral.training.parallel import Parallel
from vitral.training.signals import StopSignal, signum_of
from vitral.training.throughput import Throughput, peak_flops
from vitral.training.train_state import Progress, TrainState, has_checkpoint


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
    return run(load_config(recipe, keys), loggers=loggers)


def run(
    config: RunConfig, dataset: Dataset | None = None, loggers: Sequence[Logger] = (), folder: Path | None = None
) -> dict[str, Any]:
    """The run that a configuration describes, on its data or on those given. Torch's settings are left as they were.

    Every process of a launcher calls this; the main one writes and speaks. folder: the run folder, where the caller has
    claimed it already.
    """
    alone = _mode(config) == "fsdp"
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


TrainImages = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
Parts = tuple[RunContext, EvalData, TrainState, Objective, TrainLoader]


def _open(config: RunConfig, dataset: Dataset | None, folder: Path, resuming: bool, closes: ExitStack) -> Parts:
    """Assemble the parts of the run and start its files, or restore them. `closes` ends what is opened."""
    with distributed.error_barrier():
        prepared = closes.enter_context(closing(prepare(config, dataset)))
        data = closes.enter_context(closing(EvalData(prepared)))
    with distributed.error_barrier():
        state, objective = assemble(prepared, partial(data.batches, "train"))
        loader = train_loader(prepared)
        length = state.steps, len(prepared.train.split)
        notes = resume(folder, prepared.config, state, length) if resuming else []
    if config.resume and not resuming:
        notes = [f"nothing to resume in {folder}: the run starts from step 0"]
    closes.enter_context(_explained(prepared, folder))
    if distributed.is_main():
        if not resuming:
            open_folder(folder, prepared.config, environment(prepared.device))
            save_split(folder, prepared.dataset)
        elif notes:
            write_length(folder, prepared.config)
        closes.enter_context(log_file(folder / "train.log"))
    for note in notes:
        log.warning("%s", note)
    return prepared, data, state, objective, loader


def _train(
    prepared: RunContext, data: EvalData, state: TrainState, objective: Objective, loader: TrainLoader, folder: Path,
    loggers: Sequence[Logger],
) -> dict[str, Any]:  # fmt: skip
    """Train to the end and finish the run; returns what summary.json holds."""
    config, task = prepared.config, prepared.task
    _log_start(prepared, objective, state.steps, folder)
    if config.finish:
        log.info("the run is ended at step %d of %d", state.progress.step, state.steps)
    else:
        if state.progress.step:
            log.info("resuming at step %d", state.progress.step)
        evaluators = dict([next(iter(config.eval.items()))])

        def evaluate(model: Module) -> tuple[Metric, Metric | None]:
            found = task.evaluate(data.subject(model, "val", in_training=True), evaluators)
            return found.primary, found.metric(task.tie_breaker or "")

        counts = {name: len(split) for name, split in prepared.dataset.splits.items()}
        images = next(iter(evaluators.values())).images(counts)
        flops, peak = _image_flops(prepared) if task.has_head else 0.0, peak_flops(loader.device, state.autocast)
        try:
            train_loop(
                state, objective, loader, config.train, config.optim, folder,
                validation=Validation(evaluate, images) if is_validated(prepared) else None,
                keep_last=config.objective.keeps_last,
                throughput=Throughput(loader.images, flops / distributed.world(), peak),
                loggers=Loggers(loggers, config.model_dump(mode="json")),
            )  # fmt: skip
        except Interrupted as stop:
            raise Interrupted(stop.signum, f"{stop}. Resume with:\n  {resume_with(folder, config)}") from None
    model = prepared.build() if _mode(config) == "fsdp" else objective.eval_model
    return finish(prepared, state, objective, model, folder, data)


@contextmanager
def _explained(prepared: RunContext, folder: Path) -> Generator[None]:
    """Turn failures of a correctly configured run (disk, memory) into messages."""
    try:
        yield
    except OSError as error:
        raise RunFailed(f"{error}. Checkpoints are in {folder / CHECKPOINTS}") from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            hint = "A smaller train.micro_batch or train.activation_checkpointing=all takes less, with the same result."
            if distributed.world() == 1:
                hint = smaller_batch_hint(prepared.config, prepared.architecture, prepared.device)
            raise RunFailed(f"out of memory: {str(error).splitlines()[0]}\n  {hint}") from error
        raise


def _mode(config: RunConfig) -> str:
    """How the run is spread over the processes that the launcher started."""
    mode, world = config.train.parallel, distributed.launch().world
    if mode == "none" and world > 1:
        raise UserError(
            f"{world} processes would each train the same model", where="train.parallel", got="none",
            expected="auto, ddp or fsdp",
        )  # fmt: skip
    if config.memory is not None and world > 1:
        raise UserError(
            "memory is estimated for one process only", where="memory", got=f"{config.memory} for {world} processes",
            expected="null", hint="Set train.micro_batch and train.activation_checkpointing instead.",
        )  # fmt: skip
    if mode == "auto":
        return "ddp" if world > 1 else "none"
    return mode


@contextmanager
def torch_settings(config: RunConfig) -> Generator[None]:
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


def assemble(prepared: RunContext, train_images: TrainImages | None = None) -> tuple[TrainState, Objective]:
    """Build the training state and the objective, at step 0. train_images: see `ObjectiveContext`."""
    config = prepared.config
    torch.manual_seed(config.seed)
    samples = len(prepared.train.split)
    steps = resolve_steps(config, samples)
    if config.objective.kind != "dynamic_vit" and getattr(prepared.architecture, "pruner_blocks", ()):
        hint = "objective.kind=dynamic_vit init_head=true trains it; model.pruner_blocks=none leaves it out."
        raise UserError("the pruner would not be trained", where="model.pruner_blocks", hint=hint)
    epoch_steps = samples / config.train.batch_size
    context = ObjectiveContext(steps, epoch_steps, config.seed, _class_balance(prepared), train_images)
    objective = OBJECTIVES[config.objective.kind](prepared.build, config.objective, context).to(prepared.device)
    own = config.train.batch_size // distributed.world()
    micro = min(config.train.micro_batch or own, own)
    drop_path = prepared.architecture.dropped_samples
    if drop_path and round(micro * (1 - drop_path)) == micro:
        what = "has no effect: no whole sample of a micro-batch is dropped"
        raise UserError(what, where="model.drop_path", got=f"{drop_path} at {micro} images")
    mode = _mode(config)
    _cut(objective.model, mode)
    optimizer = make_optimizer(objective, config.optim)
    decay, ema = config.train.ema, None
    if decay is not None:
        ema = WeightEMA(objective.model, _cut(prepared.build(), mode), decay, config.train.ema_warmup)
    compute_copy = ComputeCopy(objective) if config.precision == "bfloat16_params" else None
    computing = _compiled(config, compute_copy.module if compute_copy else objective, mode)
    unused = config.objective.head_only > 0
    parallel = Parallel(computing, ddp=mode == "ddp", unused=unused, each=compute_copy is not None)
    if distributed.rank():  # equal weights were drawn on all; what dropout drops differs
        torch.manual_seed(config.seed + distributed.rank() * 0x9E3779B9)
    started = prepared.dataset.whole_fingerprint, prepared.init_fingerprint
    autocast = torch.bfloat16 if config.precision == "bfloat16" else None
    state = TrainState(objective, optimizer, ema, Progress(), *started, compute_copy, parallel, autocast, steps)
    return state, objective


def _compiled(config: RunConfig, objective: Module, mode: str) -> Module:
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


def _cut(model: ImageModel, mode: str) -> Module:
    """Cut the weights over all processes, with fsdp alone."""
    if mode != "fsdp":
        return model
    from vitral.training.sharded import shard

    return shard(model, next(model.parameters()).device)


def resolve_steps(config: RunConfig, samples: int) -> int:
    """The weight updates of a run over so many train images. Raises UserError for a warm-up that is no shorter."""
    steps = total_steps(config.train, samples)
    if config.optim.warmup >= max(steps, 1):
        what = "the warm-up is longer than the run"
        raise UserError(what, where="optim.warmup", got=config.optim.warmup, expected=f"below {steps}")
    return steps


def _class_balance(prepared: RunContext) -> ClassBalance:
    """The loss's correction for classes of unequal size, from their shares among the images as training draws them."""
    config, dataset, setting = prepared.config, prepared.dataset, prepared.config.objective
    if not needs_balance(setting):
        return NO_BALANCE
    if not prepared.task.is_exclusive:
        raise UserError(
            "class weights and logit adjustment need one class per image", where="objective", got="multi-label data",
            hint="Set objective.class_weights=none objective.logit_adjustment=0.",
        )  # fmt: skip
    shares_K = class_shares(dataset.splits["train"].labels_N, len(dataset.classes), config.data.balance)
    return class_balance(setting, shares_K.tolist(), dataset.classes)


def _log_start(prepared: RunContext, objective: Objective, steps: int, folder: Path) -> None:
    config, dataset = prepared.config, prepared.dataset
    for note in dataset.notes:
        log.info("data: %s", note)
    splits = ", ".join(f"{len(split)} {name}" for name, split in dataset.parts.items())
    outputs = TASKS[dataset.task].count_outputs(len(dataset.classes))
    shape = "x".join(map(str, (*prepared.architecture.image_size, dataset.channels)))
    log.info("data: %s: %s images, %s, %s", dataset.name, splits, outputs, shape)
    count = sum(parameter.numel() for parameter in objective.model.parameters())
    trained = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
    part = f", {trained:,} of them trained" if trained != count else ""
    log.info("model: %s, %s, %s parameters%s", prepared.name, prepared.architecture.cells, f"{count:,}", part)
    if config.memory is not None:
        text = describe_memory(config, prepared.architecture, prepared.device)
        log.info("memory: %s (limit: %s)", text, config.memory)
    if config.optim.name == "adam" and config.optim.weight_decay:
        log.warning("optim: adam adds the decay to the gradient and rescales both; values meant for adamw don't train")
    batch = plural(config.train.batch_size, "image")
    if len(prepared.streams) > 1:
        batch = " and ".join(f"{stream.batch_size} {name}" for name, stream in prepared.streams.items()) + " images"
    way = prepared.device, config.precision, folder
    log.info("run: %s of %s on %s, %s, into %s", plural(steps, "step"), batch, *way)


def train_loader(prepared: RunContext) -> TrainLoader:
    """The run's streams of batches; of many processes each has its share of every batch."""
    return TrainLoader({
        name: StreamLoader(
            prepared.stores[name], stream, prepared.config.seed, rank=distributed.rank(), world=distributed.world(),
            number=number,
        )
        for number, (name, stream) in enumerate(prepared.streams.items())
    })  # fmt: skip


def _image_flops(prepared: RunContext) -> float:
    """Operations for one image of a step, of any stream, in all its views: two a multiply-accumulate, and twice as many
    backward as forward. 0, unknown, where only a part is trained, and less is computed backward."""
    config, streams = prepared.config, prepared.streams.values()
    is_whole = config.train.freeze == "none" and config.lora.rank is None
    views = sum(stream.batch_size * len(stream.views) for stream in streams)
    images = sum(stream.batch_size for stream in streams)
    macs = sum(count_macs(prepared.architecture).values())
    return 6.0 * macs * views / images * config.objective.passes if is_whole else 0.0
