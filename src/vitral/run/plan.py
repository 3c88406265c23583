"""Memory and work of a recipe or a model, before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import torch

from vitral.data.sources import open_dataset
from vitral.errors import UserError, taken
from vitral.models.config import ModelConfig
from vitral.models.measure import Precision
from vitral.models.presets import PRESETS, resolve
from vitral.models.registry import build_config
from vitral.models.summary import count_macs, count_parameters, forward_bytes, kept_activations, summarize
from vitral.predictor import pick_device
from vitral.run.config import RunConfig
from vitral.run.memory import checkpointed_blocks, make_job, memory_limit
from vitral.run.options import PlanOptions
from vitral.run.prepare import EVAL_BATCH, choose_architecture, settle_precision
from vitral.training.plan import alternatives, choose, free_bytes, micro_batches, model_job, predict
from vitral.weights.folder import find_folder, load_config
from vitral.whole import whole_file

_INSIDE_LATER = re.compile(r"\.[1-9]\d*\.(?:.*\.)?\d*[^.\d][^.]*$")  # blocks but the first are shown as a whole


def plan_recipe(config: RunConfig) -> dict[str, Any]:
    """Work, parts of the memory at its peak, the way through a batch that fits and the alternatives.

    Data that the recipe names are opened, but no image is decoded; without them channels and classes are the preset's.
    """
    device = torch.device(config.device) if config.memory and config.device != "auto" else pick_device(config.device)
    architecture = _architecture(config)
    config = config.model_copy(update={"precision": settle_precision(config, device)})
    job = make_job(config, architecture, device, EVAL_BATCH)
    limit = free_bytes(device) if config.memory is None else memory_limit(config.memory, device)
    asked = config.train.checkpointing
    blocks = None if asked == "auto" else checkpointed_blocks(config, architecture)
    choice = choose(job, limit, config.train.micro_batch, blocks)
    fits = choice is not None
    choice = choice or choose(job, float("inf"), config.train.micro_batch or micro_batches(job)[-1], blocks)
    assert choice is not None
    parts = predict(job, choice.micro_batch, choice.checkpointing)
    return {
        **_work(architecture), **choice._asdict(), "limit_bytes": limit, "fits": fits, "batch_size": job.batch_size,
        "precision": job.precision, "device": device.type, "blocks": architecture.block_count,
        "image_size": list(architecture.image_size), "parts": parts._asdict(),
        "alternatives": [row._asdict() for row in alternatives(job, limit)],
    }  # fmt: skip


def _architecture(config: RunConfig) -> ModelConfig:
    source = load_config(find_folder(config.init)) if config.init else None
    if config.data.path is not None or config.data.source == "digits":
        return choose_architecture(config, open_dataset(config.data, hold_out=False, one_class=True), source)[1]
    name = config.model.name if source is None else source.name
    size = {} if config.data.image_size == "auto" else {"image_size": config.data.image_size}
    channels = {} if config.data.channels == "auto" else {"in_channels": config.data.channels}
    if config.model.name == "auto" and source is not None:
        return build_config({**source.architecture.model_dump(), **config.model.options(), **size})
    if config.model.options().get("patch_size") == "auto":
        raise UserError("auto needs the images", where="model.patch_size", hint="Name them: data=PATH.")
    return resolve(name, **config.model.options(), **size, **channels)


def plan_model(name: str, options: PlanOptions) -> dict[str, Any]:
    """Work and memory of one image, of a preset or a model folder, how they grow with its size, its patches and the
    number of blocks, and its way through the model. Writes the picture of the growth to `options.out`, if asked for."""
    target = _picture(options)
    architecture = resolve(name) if name in PRESETS else load_config(find_folder(name)).architecture
    if options.image_size is not None:
        architecture = build_config({**architecture.model_dump(), "image_size": options.image_size}, where="image_size")
    precision = options.precision
    grown = {
        "sizes": [_grown(architecture, {"image_size": size}, precision) for size in _sizes(architecture)],
        **{key: _series(architecture, key, precision) for key in ("patch_size", "depth")
           if key in type(architecture).model_fields},
    }  # fmt: skip
    if target is not None:
        from vitral.report.growth import growth_plot

        with whole_file(target) as partial:
            partial.write_bytes(growth_plot(grown))
    parts = predict(model_job(architecture, 1, precision), 1)  # AdamW, no average
    return {
        **_work(architecture), "memory_bytes": sum(parts), "precision": precision, "parts": parts._asdict(),
        "image_size": list(architecture.image_size), **grown,
        "walk": [{"stage": row.name, "shape": list(row.shape)} for row in summarize(architecture)
                 if row.shape and not _INSIDE_LATER.search(row.name)],
        **({"formula": architecture.block_formula} if architecture.block_formula else {}),
    }  # fmt: skip


def _picture(options: PlanOptions) -> Path | None:
    """Where the picture goes. Raises UserError for a place that is taken or is none."""
    if options.out is None:
        return None
    path = Path(options.out).expanduser()
    if path.suffix.lower() != ".png":
        raise UserError("the picture is a PNG", where="out", got=options.out, wanted="a name that ends in .png")
    if path.is_dir() or (path.exists() and not options.overwrite):
        raise taken(path, overwrite=not path.is_dir())
    if not path.parent.is_dir():
        raise UserError("no such folder", where="out", got=path.parent)
    return path


def _sizes(architecture: ModelConfig) -> list[tuple[int, ...]]:
    factors = (0.5, 1.0, 1.5, 2.0)
    return [tuple(_multiple(side * factor, architecture) for side in architecture.image_size) for factor in factors]


def _series(
    architecture: ModelConfig, key: Literal["patch_size", "depth"], precision: Precision
) -> list[dict[str, Any]]:
    """Half, once, one and a half times and twice the model's own value, as far as such a model can be."""
    own = architecture.model_dump()[key]
    rows: list[dict[str, Any]] = []
    for value in dict.fromkeys(max(1, round(own * factor)) for factor in (0.5, 1, 1.5, 2)):
        try:
            rows.append({key: value, **_grown(architecture, {key: value}, precision)})
        except UserError:  # a patch that the image is no multiple of, lists of as many values as blocks
            continue
    return rows


def _grown(architecture: ModelConfig, changes: dict[str, Any], precision: Precision) -> dict[str, Any]:
    """Parameters, work and memory of one image with something changed."""
    other = build_config({**architecture.model_dump(), **changes}, where="plan")
    kept = kept_activations(other, 1, precision)
    return {
        "image_size": list(other.image_size), "parameters": count_parameters(other),
        "macs": sum(count_macs(other).values()), "forward_bytes": forward_bytes(other, 1),
        "training_bytes": kept.total() + kept.passing,
    }  # fmt: skip


def _multiple(side: float, architecture: ModelConfig) -> int:
    step = architecture.stride if architecture.has_patches else 1
    return max(round(side / step), 1) * step


def _work(architecture: ModelConfig) -> dict[str, Any]:
    """Parameters, and multiply-accumulates of one forward image, by part too, and with all tokens in the last block."""
    parts = {name: count for name, count in count_macs(architecture).items() if count}
    macs = sum(parts.values())
    return {
        "parameters": count_parameters(architecture), "macs": macs, "flops": 2 * macs,
        "macs_all_tokens": sum(count_macs(architecture, whole=True).values()), "macs_parts": parts,
    }  # fmt: skip
