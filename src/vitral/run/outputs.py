"""What a finished run leaves: predictions.csv, summary.json, report.html, the config of the model folder."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitral.data.config import DataSource
from vitral.data.loader import ImageStore
from vitral.errors import NAMES, UserError, command
from vitral.evaluate.classify import wilson_interval
from vitral.evaluate.problems import PROBLEMS
from vitral.keys import as_word
from vitral.run.check import noted
from vitral.run.config import RunConfig, difference, load_config, recipe_values, recipes
from vitral.run.prepare import Prepared
from vitral.version import __version__
from vitral.weights.folder import FolderConfig, Preprocessing
from vitral.whole import whole_file

Array = np.ndarray[Any, Any]
WORST, WORST_CLASSES = 24, 5
_JUDGED = ("split", "top1", "top1_interval", "count", "judged_by")  # of an encoder


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


def write_predictions(
    path: Path, names: list[str], classes: tuple[str, ...], labels_N: Array, probabilities_NC: Array
) -> None:
    """One line a sample: its name, its label, the likeliest class with its probability, and whether that is right.

    Multi-label: the classes that are there, those with a probability of 0.5 or more and their probabilities, each
    joined by ";", and whether they are the same. A name that begins like a formula has an apostrophe in front.
    """
    with (
        whole_file(path) as partial,
        partial.open("w", encoding="utf-8", errors=NAMES, newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["image", "label", "prediction", "score", "correct"])
        if labels_N.ndim == 2:
            for name, hot_C, row_C in zip(names, labels_N.astype(bool), probabilities_NC, strict=True):
                said_C = row_C >= 0.5
                words = [
                    ";".join(_cell(classes[i]) for i in np.flatnonzero(one_C).tolist()) for one_C in (hot_C, said_C)
                ]
                scores = ";".join(f"{score:.6f}" for score in row_C[said_C].tolist())
                writer.writerow([_cell(name), *words, scores, str(bool((hot_C == said_C).all())).lower()])
            return
        for name, label, row_C in zip(names, labels_N.tolist(), probabilities_NC, strict=True):
            best = int(row_C.argmax())
            words = [_cell(text) for text in (name, classes[label], classes[best])]
            writer.writerow([*words, f"{row_C[best]:.6f}", str(best == label).lower()])


def _cell(text: str) -> str:
    """A name that no spreadsheet takes for a formula: an apostrophe stands in front of what would begin one."""
    if not str(text).startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def worst_mistakes(
    store: ImageStore, classes: tuple[str, ...], probabilities_NC: Array
) -> list[tuple[Array, str, str, float, str]]:
    """The most confident wrong answers: (image uint8 [H,W,C], truth, prediction, its probability, name)."""
    if store.split.multi_label:  # there is no one wrong answer to show
        return []
    labels_N, answers_N = store.split.labels_N, probabilities_NC.argmax(axis=1)
    wrong = np.flatnonzero(answers_N != labels_N)
    wrong = wrong[np.argsort(-probabilities_NC[wrong, answers_N[wrong]], kind="stable")][:WORST]
    rows: list[tuple[Array, str, str, float, str]] = []
    for index in wrong.tolist():
        image_CHW = store.get(torch.tensor([index]))[0].mul(255).round().byte().cpu()
        answer = int(answers_N[index])
        truth, score = classes[int(labels_N[index])], float(probabilities_NC[index, answer])
        rows.append((image_CHW.permute(1, 2, 0).numpy(), truth, classes[answer], score, str(store.split.names[index])))
    return rows


def result_line(summary: Mapping[str, Any]) -> str:
    """The number of a run with its interval, in one line."""
    if "map" in summary:
        low, high = summary["exact_match_interval"]
        return (
            f"mAP {100 * summary['map']:.2f} % on {summary['count']} images; every class right in "
            f"{100 * summary['exact_match']:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f} %)"
        )
    low, high = summary["top1_interval"]
    return (
        f"top-1 {100 * summary['top1']:.2f} % of {summary['count']} images "
        f"(95 % interval {100 * low:.2f} to {100 * high:.2f} %)"
    )


def worst_classes(per_class: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The classes that are found least often: class, images found, count, and the 95 % interval of the share."""
    rows: list[dict[str, Any]] = []
    for name, row in per_class.items():
        if row["count"]:
            found = round(row["recall"] * row["count"])
            interval = list(wilson_interval(found, row["count"]))
            rows.append({"class": name, "found": found, "count": row["count"], "interval": interval})
    return sorted(rows, key=lambda row: row["found"] / row["count"])[:WORST_CLASSES]


def again_command(asked: RunConfig) -> str | None:
    """The command line that trains so again, of a recipe that comes with the package; else None. Folders are named by
    their last part: where they are is another matter elsewhere."""
    if asked.recipe not in recipes():
        return None
    given = {"init": asked.init} if asked.init else {}  # some recipes cannot do without
    if asked.model.name != recipe_values(asked.recipe).get("model.name", "auto"):
        given["model.name"] = asked.model.name  # it brings its own parts
    try:
        changed = difference(load_config(asked.recipe, given), asked)
    except UserError:  # nor without other keys
        return None
    keys = [
        (key, value) for key, _, value in changed if (key, value) != ("data.source", "auto")
    ]  # a path's own default
    words = ["vitral", "train", asked.recipe]
    for key, value in [*given.items(), *keys]:
        if key in ("data.path", "init") and Path(value or "").exists():
            value = Path(value).name
        words.append(f"{key}={as_word(value)}")
    return command(*words)


def folder_config(
    prepared: Prepared,
    summary: Mapping[str, Any],
    temperature: float = 1.0,
    per_class: Mapping[str, Mapping[str, Any]] | None = None,
) -> FolderConfig:
    """config.json of the model folder; without classes where the model has no head. per_class: as evaluation gives it,
    for the card."""
    config, dataset = prepared.config, prepared.dataset
    classes = dataset.classes if prepared.architecture.num_classes else ()
    told = ("split", *PROBLEMS[dataset.problem_type].headline) if classes else _JUDGED
    shown = {
        key: getattr(config.data, key) for key in ("fit", "interpolation", "crop_ratio", "background", "max_pixels")
    }
    shown["value_range"] = dataset.value_range
    shown |= {"image_size": prepared.architecture.image_size, "channels": prepared.architecture.in_channels}
    return FolderConfig(
        name=prepared.name,
        architecture=prepared.architecture,
        id2label={str(index): name for index, name in enumerate(classes)},
        problem_type=dataset.problem_type if classes else "single_label_classification",
        preprocessing=Preprocessing(**shown),
        temperature=temperature,
        provenance={
            "recipe": config.recipe, "seed": config.seed, "init": config.init, "objective": config.objective.kind,
            "command": again_command(prepared.asked),
            "data": {
                "name": dataset.name,
                **config.data.model_dump(mode="json", include=set(DataSource.model_fields)),
                "val_fraction": config.data.val_fraction, "validation": config.data.validation,
                "fingerprint": dataset.fingerprint,
                "content": prepared.report.fingerprint if prepared.report else None,
                "notes": noted(prepared.report, config, dataset),
                "counts": {name: len(split) for name, split in dataset.splits.items()},
            },
            "weights": summary["weights"], "step": summary["best_step"], "steps": summary["steps"],
            "validated": "val_top1" in summary or "val_map" in summary, "versions": versions(),
            "worst_classes": worst_classes(per_class or {}),
            "metrics": {key: summary[key] for key in told if classes or key in summary},
        },
    )  # fmt: skip
