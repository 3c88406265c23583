"""`memory=` of a training run: choose micro-batch and activation checkpointing to fit, and describe them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from vitral.errors import UserError
from vitral.models.architecture_config import ArchitectureConfig
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
from vitral.run.run_keys import RunKeys
from vitral.structs import Batch, View
from vitral.tasks.registry import TASKS
from vitral.training import memory_estimate as memory
from vitral.training.config import LoraConfig

Run = TypeVar("Run", bound=RunKeys)
EVAL_BATCH = 256  # images evaluated at once
STEPS = 1000  # of the run that is measured, at its last one: what is done at its start alone takes less
_DIFFERS = "each micro-batch is normalized alone, so results differ a little"


class _Step(NamedTuple):
    """What decides how much a step keeps for each sample. streams: name, samples for each of the first stream's, sizes
    of the views, and whether there are targets."""

    kind: ObjectiveConfig
    architecture: ModelConfig
    freeze: str
    lora: LoraConfig
    streams: tuple[tuple[str, int, tuple[tuple[int, int], ...], bool], ...]
    precision: Precision
    device: Device


def limit_training(model: ImageModel, freeze: str, lora: LoraConfig) -> ImageModel:
    """Return the model after what the run does not train is frozen, and low-rank adapters are added."""
    if freeze == "encoder":
        freeze_encoder(model)
    if lora.rank is not None:
        add_lora(model, lora.rank, lora.alpha, lora.targets)
    return model


def make_job(
    config: RunConfig, architecture: ModelConfig, device: torch.device, validation: int = EVAL_BATCH
) -> memory.Job:
    """Return what the memory of this run depends on, from its own objective on the meta device; `config.precision` is
    settled. Raises UserError for an objective that does not run there."""
    assert config.precision != "auto"
    size = config.train.batch_size
    pseudo = config.objective.learns_boxes  # unlabeled images have pseudo-boxes
    streams = tuple(
        (name, stream.batch_size // size, tuple(view.size for view in stream.views), stream.labeled or pseudo)
        for name, stream in streams_of(config, architecture).items()
    )
    step = _Step(
        config.objective.without_files(), architecture, config.train.freeze, config.lora, streams, config.precision,
        "cuda" if device.type == "cuda" else "cpu",
    )  # fmt: skip
    objective = _objective(step)
    pixels = sum(ratio * sum(map(math.prod, (architecture.image_size, *sizes))) for _, ratio, sizes, _ in streams)
    kept = memory.interpolated(partial(_kept, step), size)
    return job_of(objective, config, architecture, kept, 4 * architecture.in_channels * pixels, validation)


def job_of(
    objective: Objective, config: RunKeys, architecture: ArchitectureConfig, kept: Callable[[int], Kept],
    sample_bytes: int, validation: int = 0,
) -> memory.Job:  # fmt: skip
    """The job of a run with this objective, which lies on any device; `config.precision` is settled."""
    assert config.precision != "auto"
    return memory.Job(
        architecture=architecture,
        parameters=_count(objective.parameters()),
        trained=_count(parameter for parameter in objective.parameters() if parameter.requires_grad),
        batch_size=config.train.batch_size,
        kept=kept,
        sample_bytes=sample_bytes,
        precision=config.precision,
        optimizer=_state_values(objective, config.optim),
        average=_count(objective.model.parameters()) * (config.train.ema is not None),
        validation=validation,
        adds_up=objective.adds_up and not architecture.uses_batch_statistics,
    )


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


@cached(8)
def _objective(step: _Step) -> Objective:
    with torch.device("meta"):
        return OBJECTIVES[step.kind.kind](
            lambda: limit_training(build_model(step.architecture), step.freeze, step.lora), step.kind,
            ObjectiveContext(STEPS),
        ).train()  # fmt: skip


@cached(32)
def _kept(step: _Step, samples: int) -> Kept:
    """What one step on so many samples keeps, with everything that the objective computes: views, teacher, decoder."""
    try:
        return kept_by(_objective(step), _batches(step, samples), step.precision, step.device)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            "memory cannot be estimated: this objective's step depends on the values of its images",
            where="objective.kind", got=step.kind.kind, hint=str(error).partition("\n")[0],
        ) from error  # fmt: skip


def kept_by(
    objective: Objective, batches: Mapping[str, Batch], precision: Precision, device: Device, place: str = "meta"
) -> Kept:
    """What the last step of a run keeps of these batches; objective and batches lie at `place`."""
    if precision == "bfloat16_params":
        copied = ComputeCopy(objective).module
        assert isinstance(copied, Objective)
        objective = copied
    given = [view.images_BCHW for batch in batches.values() for view in batch.views]
    loss = partial(objective, batches, STEPS - 1)
    return record_step(objective, objective.model, lambda: loss().loss, given, precision, device, place).kept()


def _batches(step: _Step, samples: int) -> dict[str, Batch]:
    """Batches without values: every view of each sample, and its annotation."""
    task, batches = TASKS[step.kind.task or "classification"], dict[str, Batch]()
    channels = step.architecture.in_channels
    with torch.device("meta"):
        for name, ratio, sizes, labeled in step.streams:
            count = ratio * samples
            views = [View(torch.empty(count, channels, *size), torch.empty(count, 3, 3)) for size in sizes]
            targets = task.blank_targets(count, step.architecture) if labeled else {}
            batches[name] = Batch(tuple(views), targets, torch.empty(count, dtype=torch.long))
    return batches


def _state_values(objective: Objective, config: OptimConfig) -> int:
    """Float32 values that the optimizer keeps: Adam two for each trained one, momentum one; Muon one of the matrices
    that it moves."""
    groups = parameter_groups(objective, 0.0, muon=config.name == "muon")
    adam = config.name in ("adamw", "adam", "muon")
    each = [1 if group["parts"] else 2 if adam else int(config.momentum != 0) for group in groups]
    return sum(values * _count(group["params"]) for values, group in zip(each, groups, strict=True))


def checkpointed_blocks(config: RunKeys, architecture: ArchitectureConfig) -> int:
    """train.activation_checkpointing as a number; `auto` that no memory= has settled is none. Raises UserError for too
    many."""
    setting, total = config.train.activation_checkpointing, architecture.block_count
    if isinstance(setting, int) and setting > total:
        raise UserError(
            "more blocks than there are", where="train.activation_checkpointing", got=setting, expected=f"up to {total}"
        )
    return setting if isinstance(setting, int) else total * (setting == "all")


def resolve_memory(
    config: Run, architecture: ArchitectureConfig, device: torch.device, make: Callable[[], memory.Job]
) -> Run:
    """The configuration with the micro-batch and checkpointing of the plan for `config.memory`, where it is set. make:
    returns the job of the run.

    Raises UserError where nothing fits.
    """
    micro_batch, blocks = config.train.micro_batch, checkpointed_blocks(config, architecture)
    if config.memory is not None:
        limit, job = memory_limit(config.memory, device), make()
        free = config.train.activation_checkpointing == "auto"
        choice = memory.choose(job, limit, micro_batch, None if free else blocks)
        if choice is None:
            least = memory.choose(job, math.inf, memory.micro_batches(job)[-1], architecture.block_count)
            assert least is not None
            raise UserError(
                "the run does not fit", where="memory", got=memory.show_bytes(limit),
                expected=f"{memory.show_bytes(least.memory_bytes)}, with {shown(least)}",
                hint="A smaller model, image or optimizer state takes less; memory=null tries it all the same.",
            )  # fmt: skip
        micro_batch, blocks = choice.micro_batch, choice.checkpointing
    update = {"micro_batch": micro_batch, "activation_checkpointing": blocks or "none"}
    return config.model_copy(update={"train": config.train.model_copy(update=update)})


def describe_memory(config: RunKeys, job: memory.Job) -> str:
    """The plan of a settled run in one line."""
    micro = config.train.micro_batch or config.train.batch_size
    blocks, updates = checkpointed_blocks(config, job.architecture), -(-job.batch_size // micro)
    differs = "" if job.adds_up or updates == 1 else f"; {_DIFFERS}"
    needed, total = memory.show_bytes(sum(memory.predict(job, micro, blocks))), job.architecture.block_count
    return (
        f"about {needed}: {updates} x {micro} samples per update, {blocks} of {total} blocks computed twice{differs} "
        f"(limit: {config.memory})"
    )


def smaller_batch_hint(config: RunKeys, make: Callable[[], memory.Job]) -> str:
    """What to set after a run was out of memory: a way that takes three quarters of what this one was to take. make:
    returns the job of the run.

    Without a number where memory cannot be estimated.
    """
    micro = config.train.micro_batch or config.train.batch_size
    try:
        job = make()
        limit = 0.75 * sum(memory.predict(job, micro, checkpointed_blocks(config, job.architecture)))
    except (UserError, RuntimeError, TypeError):
        return "A smaller train.micro_batch or train.activation_checkpointing=all takes less memory."
    found = memory.choose(job, limit)
    if found is None:
        return "No smaller micro-batch helps: the model itself is too large for this memory."
    same = "and the same result" if job.adds_up else f"({_DIFFERS})"
    return f"About {memory.show_bytes(found.memory_bytes)} {same}: {shown(found)}"


def shown(choice: memory.Choice) -> str:
    """A plan as keys to type."""
    return f"train.micro_batch={choice.micro_batch} train.activation_checkpointing={choice.checkpointing or 'none'}"


def memory_limit(limit: str | None, device: torch.device) -> int:
    """Return the bytes that `memory=` allows; null and auto: what is free."""
    return memory.free_bytes(device) if limit in (None, "auto") else memory.read_bytes(limit)
