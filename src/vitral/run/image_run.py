"""Assemble a run that learns from images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from vitral import distributed
from vitral.data.config import UNLABELED
from vitral.data.dataset import Dataset
from vitral.data.loader import StreamLoader, TrainLoader
from vitral.data.sampling import class_shares
from vitral.errors import UserError, plural
from vitral.evaluate.metric import Metric
from vitral.models.summary import count_macs
from vitral.objectives.class_balance import NO_BALANCE, ClassBalance, class_balance, needs_balance
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.objectives.registry import OBJECTIVES
from vitral.run.assembly import Assembly, make_state, parallel_mode, resolve_steps
from vitral.run.config import RunConfig
from vitral.run.eval_target import EvalData
from vitral.run.finish import finish, is_validated
from vitral.run.fit_memory import describe_memory, make_job, smaller_batch_hint
from vitral.run.prepare import RunContext, prepare
from vitral.run.split_record import save_split
from vitral.tasks.registry import TASKS
from vitral.training.loop import Validation
from vitral.training.metrics_log import log
from vitral.training.train_state import TrainState

TrainImages = Callable[[int], Iterable[tuple[Tensor, Tensor]]]


class ImageRun(Assembly[RunConfig]):
    """A run on images, whatever the task."""

    def __init__(self, config: RunConfig, dataset: Dataset | None = None) -> None:
        self.prepared = prepare(config, dataset)
        self.data = EvalData(self.prepared)
        self.config, self.device = self.prepared.config, self.prepared.device
        self.samples = len(self.prepared.train.split)

    def close(self) -> None:
        """See the base class."""
        self.data.close()
        self.prepared.close()

    def state(self, resuming: bool = False) -> tuple[TrainState, Objective]:
        """See the base class."""
        return assemble(self.prepared, partial(self.data.batches, "train"), resuming=resuming)

    def loader(self) -> TrainLoader:
        """See the base class."""
        return train_loader(self.prepared)

    def remember(self, folder: Path) -> None:
        """Which images were held out, by content."""
        save_split(folder, self.prepared.dataset)

    def log_start(self, objective: Objective, steps: int, folder: Path) -> None:
        """See the base class."""
        _log_start(self.prepared, objective, steps, folder)

    def validation(self) -> Validation | None:
        """By the first evaluator."""
        if not is_validated(self.prepared):
            return None
        task, evaluators = self.prepared.task, dict([next(iter(self.config.eval.items()))])

        def evaluate(model: Module) -> tuple[Metric, Metric | None]:
            found = task.evaluate(self.data.subject(model, "val", in_training=True), evaluators)
            return found.primary, found.metric(task.tie_breaker or "")

        counts = {name: len(split) for name, split in self.prepared.dataset.splits.items()}
        return Validation(evaluate, next(iter(evaluators.values())).images(counts))

    @property
    def keep_last(self) -> bool:
        """As the objective does."""
        return self.config.objective.keeps_last

    @property
    def flops(self) -> float:
        """See `_image_flops`."""
        return _image_flops(self.prepared) if self.prepared.task.has_head else 0.0

    @property
    def smaller_hint(self) -> str:
        """With the largest batch that fits, for one process."""
        if distributed.world() > 1:
            return "A smaller train.micro_batch or train.activation_checkpointing=all takes less, with the same result."
        return smaller_batch_hint(self.config, partial(make_job, self.config, self.prepared.architecture, self.device))

    def finish(self, state: TrainState, objective: Objective, folder: Path) -> dict[str, Any]:
        """See the base class."""
        model = self.prepared.build() if parallel_mode(self.config) == "fsdp" else objective.eval_model
        return finish(self.prepared, state, objective, model, folder, self.data)


def assemble(
    prepared: RunContext, train_images: TrainImages | None = None, *, resuming: bool = False
) -> tuple[TrainState, Objective]:
    """Build the training state and the objective, at step 0. train_images and resuming: see `ObjectiveContext`."""
    config, prepared = prepared.config, prepared if resuming else prepared.with_codes()
    torch.manual_seed(config.seed)
    samples = len(prepared.train.split)
    steps = resolve_steps(config, samples)
    if config.objective.kind != "dynamic_vit" and getattr(prepared.architecture, "pruner_blocks", ()):
        hint = "objective.kind=dynamic_vit init_head=true trains it; model.pruner_blocks=none leaves it out."
        raise UserError("the pruner would not be trained", where="model.pruner_blocks", hint=hint)
    epoch_steps = samples / config.train.batch_size
    context = ObjectiveContext(
        steps, epoch_steps, config.seed, _class_balance(prepared), train_images, config.train.log_every,
        resuming,
    )  # fmt: skip
    objective = OBJECTIVES[config.objective.kind](prepared.build, config.objective, context).to(prepared.device)
    own = config.train.batch_size // distributed.world()
    micro = min(config.train.micro_batch or own, own)
    drop_path = prepared.architecture.dropped_samples
    if drop_path and round(micro * (1 - drop_path)) == micro:
        what = "has no effect: no whole sample of a micro-batch is dropped"
        raise UserError(what, where="model.drop_path", got=f"{drop_path} at {micro} images")
    started = prepared.dataset.whole_fingerprint, prepared.init_fingerprint
    unused = config.objective.head_only > 0
    return make_state(config, objective, steps, prepared.build, started, unused=unused), objective


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
        log.info("memory: %s", describe_memory(config, make_job(config, prepared.architecture, prepared.device)))
    if config.optim.name == "adam" and config.optim.weight_decay:
        log.warning("optim: adam adds the decay to the gradient and rescales both; values meant for adamw don't train")
    of_evaluators = (warning for keys in config.eval.values() for warning in keys.warnings())
    for warning in (*config.objective.warnings(config), *of_evaluators):
        log.warning("%s", warning)
    batch = plural(config.train.batch_size, "image")
    if len(prepared.streams) > 1:
        batch = " and ".join(f"{stream.batch_size} {name}" for name, stream in prepared.streams.items()) + " images"
    if config.objective.steps_per_batch > 1:
        batch += f", {config.objective.steps_per_batch} steps per batch,"
    way = prepared.device, config.precision, folder
    log.info("run: %s of %s on %s, %s, into %s", plural(steps, "step"), batch, *way)


def train_loader(prepared: RunContext) -> TrainLoader:
    """The run's streams of batches; of many processes each has its share of every batch."""
    hidden = prepared.dataset.hidden
    return TrainLoader({
        name: StreamLoader(
            prepared.stores[name], stream, prepared.config.seed, rank=distributed.rank(), world=distributed.world(),
            number=number, hidden=hidden.boxes if hidden and name == UNLABELED else None,
        )
        for number, (name, stream) in enumerate(prepared.streams.items())
    }, prepared.config.objective.steps_per_batch)  # fmt: skip


def _image_flops(prepared: RunContext) -> float:
    """Operations for one image of a step, of any stream, in all its views: two a multiply-accumulate, and twice as many
    backward as forward. 0, unknown, where only a part is trained, and less is computed backward."""
    config, streams = prepared.config, prepared.streams.values()
    is_whole = config.train.freeze == "none" and config.lora.rank is None
    views = sum(stream.batch_size * len(stream.views) for stream in streams)
    images = sum(stream.batch_size for stream in streams)
    macs = sum(count_macs(prepared.architecture).values())
    return 6.0 * macs * views / images * config.objective.passes if is_whole else 0.0
