"""Estimate the memory of a training run, and the micro-batch and activation checkpointing that fit."""

from __future__ import annotations

from typing import Any

import torch

from vitral.data.sources import open_dataset, unlabeled_source
from vitral.errors import UserError
from vitral.models.config import ModelConfig
from vitral.models.presets import resolve
from vitral.models.registry import build_config
from vitral.predictor import pick_device
from vitral.run.config import RunConfig
from vitral.run.fit_memory import checkpointed_blocks, make_job, memory_limit
from vitral.run.prepare import choose_architecture, resolve_precision
from vitral.run.summary import compute
from vitral.training.memory_estimate import alternatives, choose, micro_batches, predict
from vitral.weights.folder import find_folder, load_config


def estimate(config: RunConfig) -> dict[str, Any]:
    """Return compute, parts of the peak memory, the micro-batch and checkpointing that fit, and the alternatives.

    Configured data are opened, but no image is decoded; without data, channels and classes are the preset's.
    """
    device = torch.device(config.device) if config.memory and config.device != "auto" else pick_device(config.device)
    architecture = _architecture(config)
    config = config.model_copy(update={"precision": resolve_precision(config, device)})
    job = make_job(config, architecture, device)
    limit = memory_limit(config.memory, device)
    configured = config.train.activation_checkpointing
    blocks = None if configured == "auto" else checkpointed_blocks(config, architecture)
    choice = choose(job, limit, config.train.micro_batch, blocks)
    fits = choice is not None
    choice = choice or choose(job, float("inf"), config.train.micro_batch or micro_batches(job)[-1], blocks)
    assert choice is not None
    parts = predict(job, choice.micro_batch, choice.checkpointing)
    return {
        **compute(architecture), **choice._asdict(), "limit_bytes": limit, "fits": fits, "batch_size": job.batch_size,
        "precision": job.precision, "device": device.type, "blocks": architecture.block_count,
        "image_size": list(architecture.image_size), "parts": parts._asdict(),
        "alternatives": [row._asdict() for row in alternatives(job, limit)],
    }  # fmt: skip


def _architecture(config: RunConfig) -> ModelConfig:
    source = load_config(find_folder(config.init)) if config.init else None
    if config.data.path is not None or config.data.source == "digits":
        data = config.data if config.objective.needs_labels else unlabeled_source(config.data)
        dataset = open_dataset(data, hold_out=False, equal_classes=False, one_class=True)
        return choose_architecture(config, dataset, source)[1]
    name = config.model.name if source is None else source.name
    size = {} if config.data.image_size == "auto" else {"image_size": config.data.image_size}
    channels = {} if config.data.channels == "auto" else {"in_channels": config.data.channels}
    if config.model.name == "auto" and source is not None:
        return build_config({**source.architecture.model_dump(), **config.model.options(), **size})
    if config.model.options().get("patch_size") == "auto":
        raise UserError("auto can only be resolved from a dataset", where="model.patch_size", hint="Pass data=PATH.")
    return resolve(name, **config.model.options(), **size, **channels)
