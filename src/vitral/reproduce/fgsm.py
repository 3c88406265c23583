"""Catastrophic overfitting of adversarial training by one step, and the remedies for it.

Observed by Wong et al. 2020 (arXiv 2001.03994), explained by Andriushchenko and Flammarion 2020 (2007.02617): trained
by FGSM at a large radius, a model suddenly withstands FGSM almost always and PGD almost never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitral.objectives.adversarial import overfits
from vitral.report.attack_plots import training_accuracies
from vitral.reproduce.config import FgsmOptions, Variant
from vitral.reproduce.runs import (
    Verdict,
    base_keys,
    check_run,
    comparison,
    finished,
    mean_and_std,
    open_classes,
    settings,
    write_plot,
    write_table,
)
from vitral.training.metrics_log import MetricsLog, console_logging, log

PLOT = "overfitting.svg"
SETS = {
    **dict.fromkeys(
        ("objective.kind", "objective.attack.kind", "objective.attack.steps"),
        "the variants are FGSM, FGSM-RS, N-FGSM, FGSM + GradAlign and PGD.",
    ),
    **{f"objective.{key}": f"{key}= is that of all variants." for key in ("eps_warmup", "align")},
    **dict.fromkeys(("objective.attack.eps", "eval.pgd.eps"), "eps= is the radius of all attacks."),
    "objective.monitor_images": "the curves are those of the monitor.",
}
CURVES = ("clean_top1", "fgsm_top1", "pgd_top1")
COLLAPSED = {"fgsm_top1": 0.8, "pgd_top1": 0.1}  # the one above, the other below
TEST_STEPS = 20  # of PGD


def fgsm(options: FgsmOptions | None = None, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Train all variants at one radius and length; returns what table.json holds; draws overfitting.svg.

    Each of "rows" is a variant, with a value for each seed: `clean` and `robust`, top-1 of the last weights on the
    evaluated images and under PGD; at the end `clean_top1`, `fgsm_top1` and `pgd_top1` on 128 train images;
    `collapsed`, the step of the function of that name; `overfits`, whether the objective warns of the last step;
    `curves`, the three accuracies over `step`. "claim" is that of `conclusion`.
    """
    console_logging()
    options = options or FgsmOptions()
    # Clean accuracy would choose weights from before the radius has grown.
    defaults = {"data.validation": "none", "train.log_every": max(options.steps // 24, 1)}
    recipe, keys = base_keys(options, overrides or {}, SETS, defaults)
    keys |= {
        "objective.kind": "adversarial", "objective.attack.eps": options.eps,
        "objective.eps_warmup": options.eps_warmup, "eval.clean": {}, "eval.pgd.eps": options.eps,
        "eval.pgd.steps": TEST_STEPS, "eval.pgd.samples": options.samples,
    }  # fmt: skip
    variants = {variant: _keys_of(variant, options) for variant in options.variants}
    dataset = open_classes(recipe, keys)
    keys["check.skip"] = True
    for own in variants.values():
        check_run(recipe, {**keys, **own}, dataset)
    rows: list[dict[str, Any]] = []
    with comparison("fgsm", options, overrides or {}) as folder:
        for variant in options.variants:
            summaries, logs = list[dict[str, Any]](), list[list[dict[str, Any]]]()
            for seed in range(options.seeds):
                log.info("%s, seed %d", NAMES[variant], seed)
                where = folder / f"{variant}-{seed}"
                summaries.append(finished(where, recipe, {**keys, **variants[variant], "seed": seed}, dataset))
                logs.append(MetricsLog.read(where))
            rows.append({"variant": NAMES[variant], **_row(summaries, logs)})
    found = {**settings(options), "rows": rows, "claim": conclusion(rows)}
    write_table(folder, found)
    write_plot(folder / PLOT, training_accuracies({row["variant"]: row["curves"] for row in rows}))
    return found


NAMES: dict[Variant, str] = {
    "fgsm": "FGSM", "fgsm_rs": "FGSM-RS", "nfgsm": "N-FGSM", "grad_align": "FGSM + GradAlign", "pgd": "PGD",
}  # fmt: skip


def _keys_of(variant: Variant, options: FgsmOptions) -> dict[str, Any]:
    if variant == "grad_align":
        return {"objective.attack.kind": "fgsm", "objective.align": options.align}
    if variant == "pgd":
        return {"objective.attack.kind": "pgd", "objective.attack.steps": options.attack_steps}
    return {"objective.attack.kind": variant}


def _row(summaries: Sequence[Mapping[str, Any]], logs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The values of a variant from the summaries and logs of its runs."""
    common = set.intersection(*({row["step"] for row in rows if CURVES[0] in row} for rows in logs))
    monitored = [[row for row in rows if row["step"] in common] for rows in logs]
    curves = {key: [[row[key] for row in rows] for rows in monitored] for key in ("step", *CURVES)}
    values = {
        "clean": [found["top1"] for found in summaries], "robust": [found["pgd_top1"] for found in summaries],
        **{key: [curve[-1] for curve in curves[key]] for key in CURVES},
    }  # fmt: skip
    spread = {f"{key}_{name}": value for key, each in values.items() for name, value in mean_and_std(each).items()}
    return {
        **values, **spread, "collapsed": [collapsed(rows) for rows in monitored],
        "overfits": [overfits(*pair) for pair in zip(values["fgsm_top1"], values["pgd_top1"], strict=True)],
        "curves": curves,
    }  # fmt: skip


def collapsed(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The first step of a log at which top-1 of the train images is above 80 % under FGSM and below 10 % under PGD."""
    for row in rows:
        if row["fgsm_top1"] > COLLAPSED["fgsm_top1"] and row["pgd_top1"] < COLLAPSED["pgd_top1"]:
            return row["step"]
    return None


def conclusion(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many runs of each variant collapsed, and the verdict on the claim that FGSM without a random start
    collapses and N-FGSM does not: it holds if all runs of FGSM did and none of N-FGSM; it does not hold if none of FGSM
    did, or as many of N-FGSM; else it is undecided. None without both variants."""
    counts = {row["variant"]: sum(step is not None for step in row["collapsed"]) for row in rows}
    runs = len(rows[0]["collapsed"])
    if not {"FGSM", "N-FGSM"} <= counts.keys():
        return {"collapsed": counts, "verdict": None}
    fgsm, nfgsm = counts["FGSM"], counts["N-FGSM"]
    found: Verdict = "undecided"
    if fgsm == runs and not nfgsm:
        found = "holds"
    elif fgsm <= nfgsm:
        found = "does not hold"
    return {"collapsed": counts, "verdict": found}
