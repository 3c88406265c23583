"""End of a run: evaluate the kept weights, write the artifacts, print the result."""

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
from torch import nn

from vitral import distributed
from vitral.atomic_files import whole_file, write_json
from vitral.config import dump_yaml
from vitral.data.config import DataSource
from vitral.errors import NAMES, command
from vitral.evaluate.pseudo_labels import PseudoLabelQuality
from vitral.models.lora import merge_lora
from vitral.objectives.objective import Objective
from vitral.report.pseudo_labels import pseudo_label_sections
from vitral.report.run_report import write_report
from vitral.run.check import noted
from vitral.run.eval_target import EvalData
from vitral.run.folder import SUMMARY
from vitral.run.prepare import RunContext
from vitral.run.resume import take_best
from vitral.run.self_supervised import pictures_of
from vitral.run.unlabeled_images import log_unlabeled, measure_unlabeled
from vitral.tasks.task import Array, Evaluation, Samples, Task
from vitral.training.metrics_log import MetricsLog, log
from vitral.training.train_state import TrainState
from vitral.version import __version__
from vitral.weights.card import model_card
from vitral.weights.folder import FolderConfig, save_folder


def is_validated(prepared: RunContext) -> bool:
    """Whether there are validation images to evaluate by during the run."""
    config = prepared.config
    has_val = "val" in prepared.val_stores and config.data.validation != "none"
    return has_val and prepared.task.can_evaluate(prepared.dataset)


def finish(
    prepared: RunContext, state: TrainState, objective: Objective, model: nn.Module, folder: Path, data: EvalData
) -> dict[str, Any]:
    """Evaluate the best weights (without validation the last), write what the run leaves, say the number; `model` is
    given these weights. Returns what summary.json holds."""
    config, progress, task = prepared.config, state.progress, prepared.task
    is_best = take_best(model, state, objective, folder)
    merge_lora(model)
    subjects = {split: data.subject(model, split) for split in prepared.val_stores}
    chosen = is_validated(prepared) and not config.objective.keeps_last
    if chosen:
        task = task.calibrated(*subjects["val"].outputs()) if task.has_head else task
        if not is_best:
            first = dict([next(iter(config.eval.items()))])
            progress.best_score = prepared.task.evaluate(subjects["val"], first).primary.value
    split = next((name for name in ("test", "val") if name in subjects), None)
    evaluation = None
    if split is not None and task.can_evaluate(prepared.dataset):
        evaluation = task.evaluate(subjects[split], config.eval)
    unlabeled = measure_unlabeled(prepared, data, model, task)
    has_average = state.ema is not None or objective.eval_model is not objective.model
    summary: dict[str, Any] = {
        "recipe": config.recipe, "objective": config.objective.kind,
        **({"split": split, **evaluation.summary(task)} if evaluation else {}),
        **(unlabeled.summary() if unlabeled else {}),
        **({f"val_{evaluation.primary.name}": progress.best_score} if chosen and evaluation else {}),
        "train_seconds": round(progress.seconds, 1), "steps": progress.step, "best_step": progress.best_step,
        "weights": "averaged (EMA) weights" if has_average else "plain weights",
        **({"skipped_steps": progress.skipped} if progress.skipped else {}),
        "seed": config.seed, "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **({"temperature": task.temperature} if task.has_head else {}),
    }  # fmt: skip
    # By all processes, whatever the evaluators.
    scores_NS = task.scores_of(subjects[split].outputs()[0]) if task.has_head and split is not None else None
    if not distributed.is_main():
        return summary
    kept = folder_config(prepared, task, summary, evaluation, validated=chosen)
    save_folder(folder / "model", model, kept, model_card(kept))
    if scores_NS is not None and split is not None:
        rows = task.prediction_rows(prepared.dataset.splits[split].names, subjects[split].outputs()[1], scores_NS)
        write_predictions(folder / "predictions.csv", rows)
    if config.report:
        annotations = subjects[split].outputs()[1] if scores_NS is not None and split is not None else None
        _report(prepared, objective, folder, summary, task, evaluation, (scores_NS, annotations), unlabeled)
    write_json(folder / SUMMARY, summary)  # last: a folder that has it is complete
    if unlabeled is not None:
        log_unlabeled(unlabeled)
    _log_result(task, evaluation, progress.seconds, folder, has_report=config.report)
    return summary


def _log_result(task: Task, evaluation: Evaluation | None, seconds: float, folder: Path, *, has_report: bool) -> None:
    if evaluation is not None:
        line, *more = task.log_lines(evaluation)
        for text in (f"{evaluation.split} {line}, {seconds:.0f} s", *more):
            log.info("%s", text)
    log.info("in %s: model, summary.json%s", folder, ", report.html" if has_report else "")
    if task.has_head:
        ways = command("vitral", "predict", str(folder), "IMAGE"), command("vitral", "eval", str(folder))
        log.info("next: %s, or %s", *ways)


def _report(
    prepared: RunContext, objective: Objective, folder: Path, summary: dict[str, Any], task: Task,
    evaluation: Evaluation | None, measured: tuple[Array | None, Any], unlabeled: PseudoLabelQuality | None,
) -> None:  # fmt: skip
    config, dataset = prepared.config, prepared.dataset
    split = next((name for name in ("test", "val") if name in prepared.val_stores), "train")
    store = prepared.val_stores.get(split, prepared.train)

    def image(place: int) -> Array:
        return store.get(torch.tensor([place]))[0].permute(1, 2, 0).cpu().numpy()

    def source(place: int) -> Array:
        return part.read(place).permute(1, 2, 0).numpy()

    part, (scores_NS, annotations) = dataset.splits[split], measured
    annotations = part.labels_N if annotations is None else annotations
    samples = Samples(scores_NS, annotations, part.names, image, pictures_of(store, objective), source)
    without = ", without labels" if not config.objective.needs_labels else ""
    rows, count = MetricsLog.read(folder), len(dataset.classes)
    write_report(
        folder / "report.html",
        title=f"{config.recipe}: {prepared.name} on {dataset.name}{without}",
        sections=[
            *task.sections(evaluation, samples),
            *(pseudo_label_sections(unlabeled, rows, count) if unlabeled else []),
        ],
        summary=summary,
        metrics_rows=rows,
        primary=evaluation.primary if evaluation else task.metrics[0],
        loss_unit=task.loss_unit,
        loss_note=task.loss_note,
        config_yaml=dump_yaml(config.model_dump(mode="json")),
        notes=noted(prepared.report, config, dataset),
    )


def folder_config(
    prepared: RunContext, task: Task, summary: Mapping[str, Any], evaluation: Evaluation | None, *, validated: bool
) -> FolderConfig:
    """config.json of the model folder, with the task as it is after calibration. validated: whether the weights are the
    best ones on validation data."""
    config, dataset, data = prepared.config, prepared.dataset, prepared.config.data
    unlabeled: dict[str, Any] = {}
    if dataset.unlabeled is not None:
        unlabeled = data.model_dump(
            mode="json", include={"unlabeled", "labels_per_class", "labeled_images", "unlabeled_ratio"}
        )
        unlabeled["unlabeled_fingerprint"] = dataset.unlabeled.fingerprint
    return FolderConfig(
        name=prepared.name,
        architecture=prepared.architecture,
        id2label={str(index): name for index, name in enumerate(task.labels)},
        task=task.name,
        preprocessing=prepared.image_spec,
        temperature=task.temperature,
        task_state=dict(task.state),
        provenance={
            "recipe": config.recipe, "seed": config.seed, "init": config.init, "objective": config.objective.kind,
            "command": prepared.command,
            "data": {
                "name": dataset.name, **data.model_dump(mode="json", include=set(DataSource.model_fields)),
                "val_fraction": data.val_fraction, "validation": data.validation, "fingerprint": dataset.fingerprint,
                "content": prepared.report.fingerprint if prepared.report else None,
                "notes": noted(prepared.report, config, dataset),
                "counts": {name: len(split) for name, split in dataset.parts.items()}, **unlabeled,
            },
            "weights": summary["weights"], "step": summary["best_step"], "steps": summary["steps"],
            "validated": validated, "versions": versions(),
            **(task.provenance(evaluation) if evaluation else {"metrics": {}}),
        },
    )  # fmt: skip


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
