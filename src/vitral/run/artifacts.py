"""Files of a finished run: predictions.csv, summary.json, report.html, and the config of the model folder."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitral.atomic_files import whole_file
from vitral.data.config import DataSource
from vitral.data.dataset import Dataset
from vitral.data.image_spec import ImageSpec
from vitral.errors import NAMES
from vitral.run.check import noted
from vitral.run.config import RunConfig
from vitral.run.prepare import RunContext
from vitral.tasks.task import Evaluation, Task
from vitral.version import __version__
from vitral.weights.folder import FolderConfig


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    import PIL

    return {
        "vitral": __version__, "python": platform.python_version(), "torch": str(torch.__version__),
        "numpy": np.__version__, "pillow": PIL.__version__,
    }  # fmt: skip


def environment(device: torch.device) -> dict[str, Any]:
    """env.json: versions, machine, threads and time (UTC)."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "processor_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_predictions(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """predictions.csv, of the lines that the task gives."""
    with (
        whole_file(path) as partial,
        partial.open("w", encoding="utf-8", errors=NAMES, newline="") as file,
    ):
        csv.writer(file).writerows(rows)


def _unlabeled(config: RunConfig, dataset: Dataset) -> dict[str, Any]:
    """Where the images without labels came from."""
    if dataset.unlabeled is None:
        return {}
    keys = config.data.model_dump(mode="json", include={"unlabeled", "labels_per_class", "unlabeled_ratio"})
    return {**keys, "unlabeled_fingerprint": dataset.unlabeled.fingerprint}


def folder_config(
    prepared: RunContext, task: Task, summary: Mapping[str, Any], evaluation: Evaluation | None, *, validated: bool
) -> FolderConfig:
    """config.json of the model folder, with the task as it is after calibration. validated: whether the weights are the
    best ones on validation data."""
    config, dataset = prepared.config, prepared.dataset
    shown = {
        key: getattr(config.data, key)
        for key in ("resize_mode", "interpolation", "crop_pct", "background", "max_pixels")
    }
    shown["value_range"] = dataset.value_range
    shown |= {"image_size": prepared.architecture.image_size, "channels": prepared.architecture.in_channels}
    return FolderConfig(
        name=prepared.name,
        architecture=prepared.architecture,
        id2label={str(index): name for index, name in enumerate(task.labels)},
        task=task.name,
        preprocessing=ImageSpec(**shown),
        temperature=task.temperature,
        task_state=dict(task.state),
        provenance={
            "recipe": config.recipe, "seed": config.seed, "init": config.init, "objective": config.objective.kind,
            "command": prepared.command,
            "data": {
                "name": dataset.name,
                **config.data.model_dump(mode="json", include=set(DataSource.model_fields)),
                "val_fraction": config.data.val_fraction, "validation": config.data.validation,
                "fingerprint": dataset.fingerprint,
                "content": prepared.report.fingerprint if prepared.report else None,
                "notes": noted(prepared.report, config, dataset),
                "counts": {name: len(split) for name, split in dataset.parts.items()},
                **_unlabeled(config, dataset),
            },
            "weights": summary["weights"], "step": summary["best_step"], "steps": summary["steps"],
            "validated": validated, "versions": versions(),
            **(task.provenance(evaluation) if evaluation else {"metrics": {}}),
        },
    )  # fmt: skip
