"""Open and check the data of a run: errors stop it, warnings are shown, damaged images are left out."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

from vitral.data.check import Normalization, check_dataset, decoding
from vitral.data.check_cache import cache_folder
from vitral.data.config import DataConfig
from vitral.data.damaged_images import find_damage, without_damage
from vitral.data.dataset import Dataset
from vitral.data.findings import CheckReport, Finding
from vitral.data.sources import make_val_split, open_dataset, unlabeled_source
from vitral.data.unlabeled import with_unlabeled, without_held_out
from vitral.errors import UserError, command
from vitral.run.config import RunConfig
from vitral.run.text_config import TextRunConfig
from vitral.training.metrics_log import counted, log

_NAMED = 3  # images in one line of the log
# Findings on classes only: irrelevant without labels.
_OF_LABELS = (
    "one-class",
    "empty-class",
    "split-classes",
    "flat-folder",
    "split-names",
    "name-label",
    "duplicates-labels",
)


def open_checked(
    config: RunConfig, data: DataConfig, normalization: Normalization | None
) -> tuple[Dataset, CheckReport | None]:
    """The data that `data` points at, checked before a validation split is carved; None for the report with check.skip.

    Raises UserError that lists every error which `check.allow` doesn't name, and all that opening raises.
    """
    workers = data.workers if data.workers != "auto" else None
    labeled, boxes = config.objective.needs_labels, config.objective.learns_boxes
    if not labeled:
        data = unlabeled_source(data)
        allow = tuple(dict.fromkeys((*config.check.allow, *_OF_LABELS)))
        config = config.model_copy(update={"check": config.check.model_copy(update={"allow": allow})})
    if config.check.skip:
        allow = set(config.check.allow)
        equal = not allow & {"split-classes", "empty-class"}
        one = "one-class" in allow
        dataset = open_dataset(data, hold_out=False, equal_classes=equal, one_class=one, boxes=boxes)
        dataset = _beside(dataset, data)
        if data.max_bad:
            dataset = without_damage(dataset, find_damage(dataset, workers), data.max_bad)
        dataset = replace(dataset, notes=(*dataset.notes, "DATA NOT CHECKED (check.skip=true)"))
        return _held_out(dataset, data, labeled), None
    dataset = _beside(open_dataset(data, hold_out=False, equal_classes=False, one_class=True, boxes=boxes), data)
    started = time.perf_counter()
    with counted("checking images", sum(map(len, dataset.parts.values()))) as tick:
        report = check_dataset(
            dataset, workers=workers, normalization=normalization, max_bad=data.max_bad, variant=decoding(data),
            cache=cache_folder(), tick=tick,
        )  # fmt: skip
    tell(report, config, time.perf_counter() - started)
    refuse(report, config)
    whole = without_damage(dataset, report.damaged, data.max_bad)
    return _held_out(whole, data, labeled), report


def _beside(dataset: Dataset, data: DataConfig) -> Dataset:
    return dataset if data.unlabeled is None else with_unlabeled(dataset, data)


def _held_out(dataset: Dataset, data: DataConfig, labeled: bool) -> Dataset:
    """With a validation split as `data` says; images without classes are all for training."""
    if not labeled and len(dataset.classes) < 2:
        return replace(
            dataset, notes=(*dataset.notes, "trained on all images; without classes there is nothing to evaluate")
        )
    return without_held_out(make_val_split(dataset, data.val_fraction, data.validation, to_evaluate=labeled))


def check_given(dataset: Dataset, config: RunConfig) -> CheckReport | None:
    """Check images given as arrays: reported like any other check, but nothing is refused, since the code that
    calls from Python has them in hand; errors that `check.allow` doesn't name are a Python warning, in one line."""
    if config.check.skip:
        return None
    started = time.perf_counter()
    report = check_dataset(dataset)
    tell(report, config, time.perf_counter() - started)
    errors = report.errors(config.check.allow)
    if errors:
        text = "; ".join(f"{finding.message} [{finding.code}]" for finding in errors)
        warnings.warn(f"{dataset.name}: {text}", stacklevel=2)
    return report


def tell(report: CheckReport, config: RunConfig | TextRunConfig, seconds: float, what: str = "images") -> None:
    """Every warning, and every allowed error, as one line of the log."""
    for finding in report.shown(config.check.allow):
        log.warning("data: %s", finding_line(finding))
    how = "as before (cached)" if report.cached else f"in {seconds:.1f} s"
    log.info("data: %s %s checked %s", f"{sum(report.counts.values()):,}", what, how)


def finding_line(finding: Finding) -> str:
    """A finding as one line of the log, with the first samples."""
    names = ", ".join(sample.name for group in finding.groups for sample in group[:2])
    few = [sample.name for group in finding.groups[:_NAMED] for sample in group][:_NAMED]
    more = f": {', '.join(few)}{' ...' if len(names) > len(', '.join(few)) else ''}" if few else ""
    return f"{finding.message} [{finding.code}]{more}"


def noted(report: CheckReport | None, config: RunConfig, dataset: Dataset) -> list[str]:
    """What a report and a model card say of the data: notes, and what the check found and did not refuse."""
    shown = () if report is None else report.shown(config.check.allow)
    return [*dataset.notes, *(f"{finding.message} [{finding.code}]" for finding in shown)]


def refuse(report: CheckReport, config: RunConfig | TextRunConfig) -> None:
    """Raise one UserError with all errors that are not allowed, if there are any."""
    errors = report.errors(config.check.allow)
    if not errors:
        return
    lines: list[str] = []
    for finding in errors:
        few = [finding.sign.join(str(sample) for sample in group) for group in finding.groups[:_NAMED]]
        lines.append(f"{finding.code}: {finding.message}" + "".join(f"\n      {each}" for each in few))
    codes = list(dict.fromkeys(finding.code for finding in errors))
    allowable = [code for code in codes if code not in ("damaged", "text-long")]
    allowed = ",".join([*config.check.allow, *allowable])
    hints: list[str] = []
    if isinstance(config, RunConfig):
        hints.append(
            f"See all: vitral data check {command(str(config.data.path or config.data.source))} out=check.html"
        )
    if allowable:
        hints.append(f"To train all the same: check.allow={allowed}")
    if "text-long" in codes:
        hints.append("To shorten long texts: data.truncate=true. To take them: raise data.max_source, data.max_target")
    if "damaged" in codes:
        limit = f"data.max_bad={sum(map(len, report.damaged.values()))}"
        is_limited = isinstance(config, RunConfig)
        hints.append(f"To leave damaged images out: {limit}" if is_limited else "Remove the damaged images.")
    text = "\n    ".join(lines)
    raise UserError(f"the data have errors:\n    {text}", where=report.name, hint="\n  ".join(hints))
