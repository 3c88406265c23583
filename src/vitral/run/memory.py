"""`memory=` of a training run: the micro-batch and the checkpointing that fit, and what to say of them."""

from __future__ import annotations

import torch

from vitral.errors import UserError
from vitral.models.config import ResNetConfig, ViTConfig
from vitral.models.create import build_model
from vitral.models.lora import add_lora
from vitral.models.parameters import freeze_encoder
from vitral.run.config import RunConfig
from vitral.training.plan import (
    Choice,
    Job,
    choose,
    count_blocks,
    free_bytes,
    micro_batches,
    predict,
    read_bytes,
    show_bytes,
)

Architecture = ViTConfig | ResNetConfig


def make_job(config: RunConfig, architecture: Architecture, device: torch.device, validation: int) -> Job:
    """What the memory of this run depends on; `config.precision` is settled.

    Raises UserError for objectives that hold more than one model (a teacher, a decoder, several views).
    """
    assert config.precision != "auto"
    if not config.objective.estimates_memory:
        raise UserError(
            "memory is estimated for supervised training only", where="objective.kind", got=config.objective.kind,
            wanted="supervised", hint="If a run is out of memory, lower train.micro_batch or train.batch_size.",
        )  # fmt: skip
    with torch.device("meta"):
        model = build_model(architecture)
        if config.train.freeze == "encoder":
            freeze_encoder(model)
        if config.lora.rank is not None:
            add_lora(model, config.lora.rank, config.lora.alpha, config.lora.targets)
    values = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return Job(
        architecture=architecture,
        parameters=sum(count for count, _ in values),
        trained=sum(count for count, is_trained in values if is_trained),
        batch_size=config.train.batch_size,
        precision=config.precision,
        # Muon keeps one value of the matrices and two of the rest: at most two.
        state=2 if config.optim.name in ("adamw", "adam", "muon") else int(config.optim.momentum != 0),
        ema=config.train.ema is not None,
        encoder_trained=config.train.freeze != "encoder",
        validation=validation,
        device="cuda" if device.type == "cuda" else "cpu",
    )


def checkpointed_blocks(config: RunConfig, architecture: Architecture) -> int:
    """train.checkpointing as a number; `auto` that no memory= has settled is none. Raises UserError for too many."""
    asked, total = config.train.checkpointing, count_blocks(architecture)
    if isinstance(asked, int) and asked > total:
        raise UserError("more blocks than there are", where="train.checkpointing", got=asked, wanted=f"up to {total}")
    return asked if isinstance(asked, int) else total * (asked == "all")


def settle_memory(config: RunConfig, architecture: Architecture, device: torch.device, validation: int) -> RunConfig:
    """The configuration with the micro-batch and checkpointing of the plan for `config.memory`, where it is set.

    Raises UserError where nothing fits.
    """
    blocks = checkpointed_blocks(config, architecture)
    if config.memory is None:
        return _settled(config, config.train.micro_batch, blocks)
    limit = memory_limit(config.memory, device)
    job = make_job(config, architecture, device, validation)
    free = config.train.checkpointing == "auto"
    choice = choose(job, limit, config.train.micro_batch, None if free else blocks)
    if choice is None:
        least = choose(job, float("inf"), micro_batches(job)[-1], count_blocks(architecture))
        assert least is not None
        raise UserError(
            "the run does not fit", where="memory", got=show_bytes(limit),
            wanted=f"{show_bytes(least.memory_bytes)}, with {shown(least)}",
            hint="A smaller model, image or optimizer state takes less; memory=null tries it all the same.",
        )  # fmt: skip
    return _settled(config, choice.micro_batch, choice.checkpointing)


def _settled(config: RunConfig, micro_batch: int | None, blocks: int) -> RunConfig:
    update = {"micro_batch": micro_batch, "checkpointing": blocks or "none"}
    return config.model_copy(update={"train": config.train.model_copy(update=update)})


def say_memory(config: RunConfig, architecture: Architecture, device: torch.device, validation: int) -> str:
    """The plan of a settled run in one line."""
    job, micro = make_job(config, architecture, device, validation), config.train.micro_batch or config.train.batch_size
    blocks = checkpointed_blocks(config, architecture)
    needed = show_bytes(sum(predict(job, micro, blocks)))
    updates = -(-job.batch_size // micro)
    total = count_blocks(architecture)
    return f"about {needed}: {updates} x {micro} images an update, {blocks} of {total} blocks computed twice"


def smaller_plan(config: RunConfig, architecture: Architecture, device: torch.device, validation: int) -> str:
    """What to set after a run was out of memory: a way that takes three quarters of what this one was to take.

    Without a number where memory is not estimated.
    """
    if not config.objective.estimates_memory:
        return "A smaller train.micro_batch or train.checkpointing=all takes less memory."
    job = make_job(config, architecture, device, validation)
    micro, blocks = config.train.micro_batch or config.train.batch_size, checkpointed_blocks(config, architecture)
    limit = 0.75 * sum(predict(job, micro, blocks))
    found = choose(job, limit)
    if found is None:
        return "No smaller micro-batch helps: the model itself is too large for this memory."
    return f"About {show_bytes(found.memory_bytes)} and the same result: {shown(found)}"


def shown(choice: Choice) -> str:
    """A plan as keys to type."""
    return f"train.micro_batch={choice.micro_batch} train.checkpointing={choice.checkpointing or 'none'}"


def memory_limit(memory: str, device: torch.device) -> int:
    return free_bytes(device) if memory == "auto" else read_bytes(memory)
