"""Export a model folder for another library, and compare it, read back, with the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitral.atomic_files import whole_folder, write_json
from vitral.export import hf, timm
from vitral.export.config import ExportOptions
from vitral.export.package import Package, refuse, resized_sides
from vitral.export.parity import BeyondLimit
from vitral.models.model import ImageModel
from vitral.weights.convert import read_external
from vitral.weights.digests import WEIGHTS
from vitral.weights.find_model import load_model
from vitral.weights.folder import FolderConfig, free_place
from vitral.weights.tensors import save_tensors

FORMATS: dict[str, Callable[[ImageModel, FolderConfig], Package]] = {"hf": hf.package, "timm": timm.package}

_IMAGES = 4
_LIMIT = 1e-5


class Written(NamedTuple):
    """Where the export is, the largest difference of an output to the model's, over how many images."""

    out: Path
    difference: float
    images: int
    notes: list[str]


def export(model: str, options: ExportOptions) -> Written:
    """Write MODEL for another library. Raises UserError for models that it does not have, BeyondLimit where what is
    read back differs: nothing is written then."""
    out = free_place(options.out, options.overwrite)
    network, config = load_model(model, options.image_size)
    is_scaled = config.task_state and config.id2label and not config.make_task().has_places
    refuse(options.format, [f"outputs that are scaled by the task {config.task}"] if is_scaled else [])
    refuse(options.format, ["boxes of objects"] if config.make_task().has_places else [])
    padded = config.preprocessing.resize_mode == "pad"
    refuse(options.format, ["images that are padded (data.resize_mode=pad)"] if padded else [])
    packed = FORMATS[options.format](network, config)
    notes = list(packed.notes)
    if config.temperature != 1:
        notes.append(f"the temperature {config.temperature:.4g} stays behind: logits are equal, scores are not")
    with whole_folder(out) as folder:
        save_tensors(folder / WEIGHTS, packed.tensors, {"format": "pt"})
        for name, tree in packed.files.items():
            write_json(folder / name, tree)
        difference = _difference(network, config, folder)
    return Written(out, difference, _IMAGES, notes)


@torch.inference_mode()
def _difference(network: ImageModel, config: FolderConfig, folder: Path) -> float:
    """Of random images, between the model and the export as our own importer reads it."""
    again = read_external(folder)
    mine, theirs = (_essence(each) for each in (config, again.config))
    if mine != theirs:
        wrong = ", ".join(f"{key} {theirs[key]}, not {mine[key]}" for key in mine if mine[key] != theirs[key])
        raise BeyondLimit(f"the export says something else than the model: {wrong[:500]}")
    shape = (_IMAGES, config.architecture.in_channels, *config.architecture.image_size)
    images_BCHW = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    outputs: list[Tensor] = [each(images_BCHW) for each in (network, again.model)]
    difference = float((outputs[0] - outputs[1]).abs().max())
    if not difference <= _LIMIT:
        raise BeyondLimit(f"the export differs from the model by {difference:.1e}, more than {_LIMIT:g}")
    return difference


def _essence(config: FolderConfig) -> dict[str, Any]:
    """What the JSON files have to say of a model besides its weights."""
    shown, architecture = config.preprocessing, config.architecture
    return {
        "id2label": config.id2label, "mean": architecture.mean, "std": architecture.std,
        "resize_mode": shown.resize_mode, "interpolation": shown.interpolation,
        "resized": resized_sides(config), "image_size": shown.image_size,
    }  # fmt: skip
