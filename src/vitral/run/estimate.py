"""Estimate the memory of a training run, and the micro-batch and activation checkpointing that fit."""

from __future__ import annotations

from typing import Any

import torch

from vitral.data.sources import open_dataset, unlabeled_source
from vitral.data.text.batches import padded_widths
from vitral.errors import UserError
from vitral.models.config import ModelConfig
from vitral.models.presets import resolve
from vitral.models.registry import build_config
from vitral.predictor import pick_device
from vitral.run.config import RunConfig
from vitral.run.fit_memory import checkpointed_blocks, make_job, memory_limit
from vitral.run.prepare import choose_architecture, resolve_precision
from vitral.run.run_keys import RunKeys
from vitral.run.summary import compute
from vitral.run.text_config import TextRunConfig
from vitral.run.text_memory import compute as text_compute
from vitral.run.text_memory import make_text_job, text_architecture
from vitral.training.memory_estimate import alternatives, choose, micro_batches, predict
from vitral.weights.folder import find_folder, load_config


def estimate(config: RunKeys) -> dict[str, Any]:
    """Return compute, parts of the peak memory, the micro-batch and checkpointing that fit, and the alternatives.

    Configured data are opened, but no image is decoded; without data, channels and classes are the preset's. Texts are
    read, since the tokenizer and the longest one decide.
    """
    device = torch.device(config.device) if config.memory and config.device != "auto" else pick_device(config.device)
    config = config.model_copy(update={"precision": resolve_precision(config, device)})
    if isinstance(config, TextRunConfig):
        sequence, ids = text_architecture(config)
        widths = padded_widths(ids, slice(None), config.data.pad_multiple)
        job = make_text_job(config, sequence, ids, device)
        found = text_compute(sequence, *widths) | {"target_positions": widths[0], "source_positions": widths[1]}
        size = list(sequence.input_shapes["image"][:2]) if sequence.reads_images else None
    else:
        assert isinstance(config, RunConfig)
        architecture = _architecture(config)
        job, found, size = make_job(config, architecture, device), compute(architecture), list(architecture.image_size)
    limit = memory_limit(config.memory, device)
    configured = config.train.activation_checkpointing
    blocks = None if configured == "auto" else checkpointed_blocks(config, job.architecture)
    choice = choose(job, limit, config.train.micro_batch, blocks)
    fits = choice is not None
    choice = choice or choose(job, float("inf"), config.train.micro_batch or micro_batches(job)[-1], blocks)
    assert choice is not None
    parts = predict(job, choice.micro_batch, choice.checkpointing)
    return {
        **found, **choice._asdict(), "limit_bytes": limit, "fits": fits, "batch_size": job.batch_size,
        "precision": job.precision, "device": device.type, "blocks": job.architecture.block_count,
        "image_size": size, "parts": parts._asdict(),
        "alternatives": [row._asdict() for row in alternatives(job, limit)],
    }  # fmt: skip


def _architecture(config: RunConfig) -> ModelConfig:
    source = load_config(find_folder(config.init)) if config.init else None
    if config.data.path is not None or config.data.source in ("digits", "digits_scenes"):
        data = config.data if config.objective.needs_labels else unlabeled_source(config.data)
        boxes = config.objective.learns_boxes
        dataset = open_dataset(data, hold_out=False, equal_classes=False, one_class=True, boxes=boxes)
        return choose_architecture(config, dataset, source)[1]
    name = config.model.name if source is None else source.name
    size = {} if config.data.image_size == "auto" else {"image_size": config.data.image_size}
    channels = {} if config.data.channels == "auto" else {"in_channels": config.data.channels}
    if config.model.name == "auto" and source is not None:
        return build_config({**source.architecture.model_dump(), **config.model.options(), **size})
    if config.model.options().get("patch_size") == "auto":
        raise UserError("auto can only be resolved from a dataset", where="model.patch_size", hint="Pass data=PATH.")
    return resolve(name, **config.model.options(), **size, **channels)
