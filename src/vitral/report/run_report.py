"""The report of a run: the sections of its evaluation, with its facts, curves, notes and configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitral.evaluate.metric import Metric
from vitral.report import plots
from vitral.report.render import as_text, write_page
from vitral.report.sections import Bullets, Code, Facts, Figure, Gallery, Note, Part, Section

# Keys of the summary in the order of the report, and labels that are not the key itself.
_FACTS = (
    "recipe", "objective", "model", "parameters", "train_seconds", "steps", "epochs", "seed", "best_step",
    "temperature",
)  # fmt: skip
_LABELS = {
    "train_seconds": "Training time", "steps": "Optimizer steps", "best_step": "Step of the best checkpoint",
    "temperature": "Temperature, fitted on validation data",
    "pseudo_unsure": "Share of unlabeled images with a confidence of at most 0.5",
    "ar1": "AR at 1 detection", "ar10": "AR at 10 detections", "ar_small": "AR, small boxes",
    "ar_medium": "AR, medium boxes", "ar_large": "AR, large boxes", "crowds_and_empty": "Boxes left out",
}  # fmt: skip
_IN_SENTENCES = {"primary", "split", "count", "evaluated_by", "baseline_class"}  # of the headline


def write_report(
    path: str | Path,
    *,
    title: str,
    sections: Sequence[Section],
    summary: Mapping[str, Any],
    metrics_rows: Sequence[Mapping[str, Any]],
    primary: Metric,
    loss_unit: str,
    loss_note: str,
    config_yaml: str,
    notes: Sequence[str],
) -> None:
    """Write the report under a temporary name and rename it, so that no half file is ever there.

    sections: of the evaluation, the headline first. summary: what summary.json holds; metrics that the sections show
    are not repeated, unknown keys are shown too. metrics_rows: of metrics.jsonl. primary: the metric that validations
    are logged by. loss_unit, loss_note: of the loss that the curves show, and what to know about it. Raises OSError
    where the file cannot be written.
    """
    headline, *others = sections
    run = [_facts(summary, _names(sections, primary), primary), _curves(metrics_rows, primary, loss_unit, loss_note)]
    write_page(path, title, [headline, *run, *others, _notes(notes), _configuration(config_yaml)])


def _names(sections: Sequence[Section], primary: Metric) -> set[str]:
    """The keys of the summary that the sections show: every headline is about the primary metric."""
    names = {part.name for section in sections for part in section.parts if isinstance(part, Metric)} | {primary.name}
    return names | {f"{name}_interval" for name in names} | _IN_SENTENCES


def _facts(summary: Mapping[str, Any], elsewhere: Collection[str], primary: Metric) -> Section:
    order = [*(key for key in _FACTS if key in summary), *(key for key in summary if key not in _FACTS)]
    rows: list[tuple[str, str]] = []
    for key in order:
        value = summary[key]
        if key in elsewhere or value is None or (key == "temperature" and value == 1):
            continue
        if key == f"val_{primary.name}":
            rows.append((f"Validation {primary.label}", primary.text(value)))
            continue
        label = _LABELS.get(key, key.replace("_", " ").capitalize())
        unit = " s" if key == "train_seconds" else ""
        rows.append((label, str(value) if key == "seed" else as_text(value) + unit))
    return Section("Key facts", [Facts(rows)] if rows else ["None recorded."])


def _curves(rows: Sequence[Mapping[str, Any]], primary: Metric, loss_unit: str, loss_note: str) -> Section:
    panels = plots.training_curves(rows, primary, loss_unit)
    figures = [Figure(svg, f"{title} over the training steps") for title, svg in panels.items()]
    parts: list[Part] = [Gallery(figures), Note(loss_note)] if figures else ["No steps recorded."]
    return Section("Training curves", parts)


def _notes(notes: Sequence[str]) -> Section:
    return Section("Notes from the data", [Bullets(notes) if notes else "Nothing to note."])


def _configuration(config_yaml: str) -> Section:
    return Section("Configuration", [Code(config_yaml, f"Show all {len(config_yaml.splitlines())} lines")])
