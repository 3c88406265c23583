"""Shapes, parameters, compute and memory of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from vitral.atomic_files import whole_file
from vitral.errors import UserError
from vitral.models.config import ModelConfig
from vitral.models.cost import Precision
from vitral.models.presets import PRESETS, resolve
from vitral.models.registry import build_config
from vitral.models.summary import count_macs, count_parameters, forward_bytes, kept_activations
from vitral.models.summary import summarize as stages_of
from vitral.run.command_options import SummaryOptions
from vitral.run.page_folder import png_file
from vitral.training.memory_estimate import model_job, predict
from vitral.weights.find_model import model_config

# A module inside a block other than the first: blocks.1.attn, stages.1.blocks.0.conv1.
_INSIDE = re.compile(r"\.[1-9]\d*\.(?:.*\.)?[^.\d][^.]*$")


def summarize(name: str, options: SummaryOptions) -> dict[str, Any]:
    """Return compute and memory per image of a preset or a model folder, their growth with image size, patch size and
    depth, and the output shape of every stage. Write a plot of the growth to `options.out`, if set."""
    target = None if options.out is None else png_file(options.out, overwrite=options.overwrite)
    architecture = resolve(name) if name in PRESETS else model_config(name).architecture
    if options.image_size is not None:
        architecture = build_config({**architecture.model_dump(), "image_size": options.image_size}, where="image_size")
    precision = options.precision
    grown = _growth(architecture, precision)
    if target is not None:
        from vitral.report.cost_growth import growth_plot

        with whole_file(target) as partial:
            partial.write_bytes(growth_plot(grown))
    parts = predict(model_job(architecture, 1, precision), 1)  # AdamW, no average
    return {
        **compute(architecture), "memory_bytes": sum(parts), "precision": precision, "parts": parts._asdict(),
        "image_size": list(architecture.image_size), **grown,
        "walk": [{"stage": row.name, "shape": list(row.shape)} for row in stages_of(architecture)
                 if row.shape and not _INSIDE.search(row.name)],
        **({"formula": architecture.block_formula} if architecture.block_formula else {}),
    }  # fmt: skip


def _growth(architecture: ModelConfig, precision: Precision) -> dict[str, list[dict[str, Any]]]:
    """Return rows for 0.5, 1, 1.5 and 2 times the model's image size, patch size and depth; invalid models are left
    out."""
    own, factors = architecture.model_dump(), (0.5, 1, 1.5, 2)
    step = architecture.stride if architecture.has_patches else 1
    sizes = [tuple(max(round(side * by / step), 1) * step for side in architecture.image_size) for by in factors]
    series: dict[str, Iterable[Any]] = {"image_size": sizes}
    for key in ("patch_size", "depth"):
        if key in own:
            series[key] = dict.fromkeys(max(1, round(own[key] * by)) for by in factors)
    grown: dict[str, list[dict[str, Any]]] = {}
    for key, values in series.items():
        rows = grown["sizes" if key == "image_size" else key] = []
        for value in values:
            with suppress(
                UserError
            ):  # image size not divisible by the patch, lists with one value per block, too large
                rows.append({key: value, **_cost(architecture, {key: value}, precision)})
    return grown


def _cost(architecture: ModelConfig, changes: dict[str, Any], precision: Precision) -> dict[str, Any]:
    """Return parameters, compute and memory per image of the changed architecture."""
    other = build_config({**architecture.model_dump(), **changes}, where="summary")
    kept = kept_activations(other, 1, precision)
    return {
        "image_size": list(other.image_size), "parameters": count_parameters(other),
        "macs": sum(count_macs(other).values()), "forward_bytes": forward_bytes(other, 1),
        "training_bytes": kept.total() + kept.passing,
    }  # fmt: skip


def compute(architecture: ModelConfig) -> dict[str, Any]:
    """Return parameters and multiply-accumulates per image: total, per part, and with all tokens in the last block."""
    parts = {name: count for name, count in count_macs(architecture).items() if count}
    macs = sum(parts.values())
    return {
        "parameters": count_parameters(architecture), "macs": macs, "flops": 2 * macs,
        "macs_all_tokens": sum(count_macs(architecture, whole=True).values()), "macs_parts": parts,
    }  # fmt: skip
