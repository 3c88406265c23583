"""What virtual adversarial training gains over the labels alone, by the number of labels.

The question of arXiv 1704.03976: unlabeled images help most where labels are few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitral.report.plots import accuracy_over_labels
from vitral.reproduce.config import VatOptions
from vitral.reproduce.runs import (
    base_keys,
    check_run,
    comparison,
    finished,
    mean_and_std,
    open_classes,
    paired,
    settings,
    verdict,
    write_plot,
    write_table,
)
from vitral.training.metrics_log import console_logging, log

PLOT = "labels.svg"
METHODS = ("supervised", "VAT")
SETS = {
    **dict.fromkeys(("objective.kind", "objective.eps"), "the methods are supervised and VAT; eps= is VAT's."),
    **dict.fromkeys(("data.shots", "data.labels_per_class"), "labels= names the numbers of labels."),
    "data.unlabeled": "VAT learns from the images whose labels are hidden.",
    "data.unlabeled_ratio": "unlabeled_ratio= is VAT's.",
}
# Few labels leave none to choose weights by: the last ones are evaluated.
DEFAULTS = {"data.validation": "none", "objective.label_smoothing": 0.0, "train.batch_size": 32}


def vat(options: VatOptions | None = None, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Train with the labels alone and with VAT on the same draws of labels; returns what table.json holds; draws
    labels.svg.

    The seed of a run draws labels, weights and order. Each of "rows" is a method at a number of labels per class, with
    top-1 of the last weights for each seed; "gains" has the differences of the methods, seed by seed, with their
    interval; "claim" whether the gain is largest with the fewest labels.
    """
    console_logging()
    options = options or VatOptions()
    recipe, keys = base_keys(options, overrides or {}, SETS, DEFAULTS, augment=True)
    dataset = open_classes(recipe, keys)
    keys["check.skip"] = True
    labels = sorted(set(options.labels))
    for count in labels:
        for method in METHODS:
            check_run(recipe, {**keys, **_method_keys(method, count, options)}, dataset)
    rows: list[dict[str, Any]] = []
    with comparison("vat", options, overrides or {}) as folder:
        for count in labels:
            for method in METHODS:
                top1 = list[float]()
                for seed in range(options.seeds):
                    log.info("%s, %d labels per class, seed %d", method, count, seed)
                    where = folder / f"{method.lower()}-{count}-{seed}"
                    own = {**keys, **_method_keys(method, count, options), "seed": seed}
                    top1.append(finished(where, recipe, own, dataset)["top1"])
                rows.append({"method": method, "labels_per_class": count, "top1": top1, **mean_and_std(top1)})
    found = {**settings(options), "labels": labels, "rows": rows, **conclusions(rows)}
    write_table(folder, found)
    curves = {
        method: [(row["labels_per_class"], row["mean"], min(row["top1"]), max(row["top1"]))
                 for row in rows if row["method"] == method]
        for method in METHODS
    }  # fmt: skip
    write_plot(folder / PLOT, accuracy_over_labels(curves))
    return found


def _method_keys(method: str, count: int, options: VatOptions) -> dict[str, Any]:
    if method == "supervised":
        rate = {} if options.supervised_lr is None else {"optim.lr": options.supervised_lr}
        return {"data.shots": count, **rate}
    return {
        "objective.kind": "vat", "objective.eps": options.eps, "data.labels_per_class": count,
        "data.unlabeled_ratio": options.unlabeled_ratio,
    }  # fmt: skip


def conclusions(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the "gains" by the number of labels, ascending, and the "claim" that the gain with the fewest labels is
    the largest: its `excess` over each other gain, seed by seed, with the verdict on all of them."""
    top1 = {(row["method"], row["labels_per_class"]): row["top1"] for row in rows}
    counts = sorted({count for _, count in top1})
    gains = [{"labels_per_class": count, **paired(top1["VAT", count], top1["supervised", count])} for count in counts]
    fewest, *others = gains
    excess = [
        {"labels_per_class": other["labels_per_class"], **paired(fewest["differences"], other["differences"])}
        for other in others
    ]
    largest = max(gains, key=lambda gain: gain["difference"])["labels_per_class"]
    claim = {"largest_at": largest, "excess": excess, "verdict": verdict([fewest, *excess]) if excess else None}
    return {"gains": gains, "claim": claim}
