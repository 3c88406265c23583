"""`memory=` of a training run: choose micro-batch and activation checkpointing to fit, and describe them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from vitral.errors import UserError
from vitral.models.config import ModelConfig
from vitral.models.cost import Device, Kept, Precision, cached, record_step
from vitral.models.create import build_model
from vitral.models.lora import add_lora
from vitral.models.model import ImageModel
from vitral.models.parameters import freeze_encoder
from vitral.objectives.config import ObjectiveConfig
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.objectives.registry import OBJECTIVES
from vitral.optim.config import OptimConfig
from vitral.optim.master_weights import ComputeCopy
from vitral.optim.optimizer import parameter_groups
from vitral.run.config import RunConfig, streams_of
from vitral.structs import Batch, View
from vitral.tasks.registry import TASKS
from vitral.training.config import LoraConfig
from vitral.training.memory_estimate import (
    Choice,
    Job,
    choose,
    free_bytes,
    interpolated,
    micro_batches,
    predict,
    read_bytes,
    show_bytes,
)

Size = tuple[int, int]
Shape = tuple[str, int, tuple[Size, ...], bool]  # of a stream: name, samples for each of the first, views, labels
_STEPS = 1000  # of the run that is measured, at its last one: what is done at its start alone takes less


def limit_training(model: ImageModel, freeze: str, lora: LoraConfig) -> ImageModel:
    """Return the model after what the run does not train is frozen, and low-rank adapters are added."""
    if freeze == "encoder":
        freeze_encoder(model)
    if lora.rank is not None:
        add_lora(model, lora.rank, lora.alpha, lora.targets)
    return model


def make_job(config: RunConfig, architecture: ModelConfig, device: torch.device, validation: int) -> Job:
    """Return what the memory of this run depends on, from its own objective on the meta device; `config.precision` is
    settled. Raises UserError for an objective that does not run there."""
    assert config.precision != "auto"
    kind = config.objective.without_files()
    objective = _objective(kind, architecture, config.train.freeze, config.lora)
    streams = streams_of(config, architecture)
    shapes = tuple(
        (name, stream.batch_size // config.train.batch_size, tuple(view.size for view in stream.views), stream.labeled)
        for name, stream in streams.items()
    )
    measure = partial(
        _step, kind, architecture, config.train.freeze, config.lora, shapes, config.precision,
        "cuda" if device.type == "cuda" else "cpu",
    )  # fmt: skip
    values = [(parameter.numel(), parameter.requires_grad) for parameter in objective.parameters()]
    pixels = sum(
        ratio * sum(height * width for height, width in (architecture.image_size, *sizes))
        for _, ratio, sizes, _ in shapes
    )
    return Job(
        architecture=architecture,
        parameters=sum(count for count, _ in values),
        trained=sum(count for count, is_trained in values if is_trained),
        batch_size=config.train.batch_size,
        kept=interpolated(measure, config.train.batch_size),
        sample_bytes=4 * architecture.in_channels * pixels,
        precision=config.precision,
        optimizer=_state_values(objective, config.optim),
        average=sum(p.numel() for p in objective.model.parameters()) * (config.train.ema is not None),
        validation=validation,
        adds_up=objective.adds_up and not architecture.uses_batch_statistics,
    )


@cached(8)
def _objective(kind: ObjectiveConfig, architecture: ModelConfig, freeze: str, lora: LoraConfig) -> Objective:
    with torch.device("meta"):
        return OBJECTIVES[kind.kind](
            lambda: limit_training(build_model(architecture), freeze, lora), kind, ObjectiveContext(_STEPS)
        ).train()


@cached(32)
def _step(
    kind: ObjectiveConfig, architecture: ModelConfig, freeze: str, lora: LoraConfig, shapes: Sequence[Shape],
    precision: Precision, device: Device, samples: int,
) -> Kept:  # fmt: skip
    """What one step on so many samples keeps, with everything that the objective computes: views, teacher, decoder."""
    try:
        return _measured(kind, architecture, freeze, lora, shapes, precision, device, samples)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            "memory cannot be estimated: this objective's step depends on the values of its images",
            where="objective.kind", got=kind.kind, hint=str(error).partition("\n")[0],
        ) from error  # fmt: skip


def _measured(
    kind: ObjectiveConfig, architecture: ModelConfig, freeze: str, lora: LoraConfig, shapes: Sequence[Shape],
    precision: Precision, device: Device, samples: int,
) -> Kept:  # fmt: skip
    objective = _objective(kind, architecture, freeze, lora)
    if precision == "bfloat16_params":
        copied = ComputeCopy(objective).module
        assert isinstance(copied, Objective)
        objective = copied
    batches = _batches(kind, architecture, shapes, samples)
    images = [view.images_BCHW for batch in batches.values() for view in batch.views]
    return record_step(
        objective, objective.model, lambda: objective(batches, _STEPS - 1).loss, images, precision, device
    ).kept()


def _batches(
    kind: ObjectiveConfig, architecture: ModelConfig, shapes: Sequence[Shape], samples: int
) -> dict[str, Batch]:
    """Batches without values: every view of each sample, and its annotation."""
    task, batches = TASKS[kind.task or "classification"], dict[str, Batch]()
    with torch.device("meta"):
        for name, ratio, sizes, labeled in shapes:
            count = ratio * samples
            views = [
                View(torch.empty(count, architecture.in_channels, *size), torch.empty(count, 3, 3)) for size in sizes
            ]
            targets = {"label": task.blank_targets(count, architecture.num_classes)} if labeled else {}
            batches[name] = Batch(tuple(views), targets, torch.empty(count, dtype=torch.long))
    return batches


def _state_values(objective: Objective, config: OptimConfig) -> int:
    """Float32 values that the optimizer keeps: Adam two for each trained one, momentum one; Muon one of the matrices
    that it moves."""
    groups = parameter_groups(objective, 0.0, muon=config.name == "muon")
    adam = config.name in ("adamw", "adam", "muon")
    each = [1 if group["parts"] else 2 if adam else int(config.momentum != 0) for group in groups]
    return sum(values * sum(p.numel() for p in group["params"]) for values, group in zip(each, groups, strict=True))


def checkpointed_blocks(config: RunConfig, architecture: ModelConfig) -> int:
    """train.activation_checkpointing as a number; `auto` that no memory= has settled is none. Raises UserError for too
    many."""
    setting, total = config.train.activation_checkpointing, architecture.block_count
    if isinstance(setting, int) and setting > total:
        raise UserError(
            "more blocks than there are", where="train.activation_checkpointing", got=setting, expected=f"up to {total}"
        )
    return setting if isinstance(setting, int) else total * (setting == "all")


def resolve_memory(config: RunConfig, architecture: ModelConfig, device: torch.device, validation: int) -> RunConfig:
    """The configuration with the micro-batch and checkpointing of the plan for `config.memory`, where it is set.

    Raises UserError where nothing fits.
    """
    blocks = checkpointed_blocks(config, architecture)
    if config.memory is None:
        return _resolved(config, config.train.micro_batch, blocks)
    limit = memory_limit(config.memory, device)
    job = make_job(config, architecture, device, validation)
    free = config.train.activation_checkpointing == "auto"
    choice = choose(job, limit, config.train.micro_batch, None if free else blocks)
    if choice is None:
        least = choose(job, float("inf"), micro_batches(job)[-1], architecture.block_count)
        assert least is not None
        raise UserError(
            "the run does not fit", where="memory", got=show_bytes(limit),
            expected=f"{show_bytes(least.memory_bytes)}, with {shown(least)}",
            hint="A smaller model, image or optimizer state takes less; memory=null tries it all the same.",
        )  # fmt: skip
    return _resolved(config, choice.micro_batch, choice.checkpointing)


def _resolved(config: RunConfig, micro_batch: int | None, blocks: int) -> RunConfig:
    update = {"micro_batch": micro_batch, "activation_checkpointing": blocks or "none"}
    return config.model_copy(update={"train": config.train.model_copy(update=update)})


def describe_memory(config: RunConfig, architecture: ModelConfig, device: torch.device, validation: int) -> str:
    """The plan of a settled run in one line."""
    job, micro = make_job(config, architecture, device, validation), config.train.micro_batch or config.train.batch_size
    blocks = checkpointed_blocks(config, architecture)
    needed = show_bytes(sum(predict(job, micro, blocks)))
    updates = -(-job.batch_size // micro)
    total = architecture.block_count
    differs = (
        "" if job.adds_up or updates == 1 else "; each micro-batch is normalized alone, so results differ a little"
    )
    return f"about {needed}: {updates} x {micro} images per update, {blocks} of {total} blocks computed twice{differs}"


def smaller_batch_hint(config: RunConfig, architecture: ModelConfig, device: torch.device, validation: int) -> str:
    """What to set after a run was out of memory: a way that takes three quarters of what this one was to take.

    Without a number where memory cannot be estimated.
    """
    micro, blocks = config.train.micro_batch or config.train.batch_size, checkpointed_blocks(config, architecture)
    try:
        job = make_job(config, architecture, device, validation)
        limit = 0.75 * sum(predict(job, micro, blocks))
    except (UserError, RuntimeError, TypeError):
        return "A smaller train.micro_batch or train.activation_checkpointing=all takes less memory."
    found = choose(job, limit)
    if found is None:
        return "No smaller micro-batch helps: the model itself is too large for this memory."
    same = (
        "and the same result" if job.adds_up else "(each micro-batch is normalized alone, so results differ a little)"
    )
    return f"About {show_bytes(found.memory_bytes)} {same}: {shown(found)}"


def shown(choice: Choice) -> str:
    """A plan as keys to type."""
    return f"train.micro_batch={choice.micro_batch} train.activation_checkpointing={choice.checkpointing or 'none'}"


def memory_limit(memory: str, device: torch.device) -> int:
    return free_bytes(device) if memory == "auto" else read_bytes(memory)
