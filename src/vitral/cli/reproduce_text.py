"""Tables and conclusions of `vitral reproduce` as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitral.cli.table import table
from vitral.evaluate.metric import eps_text


def positions_text(found: Mapping[str, Any]) -> str:
    """Return the table of positions and its conclusions as text."""
    rows = [
        (
            row["variant"],
            *("-" if value is None else f"{100 * value:.2f}" for value in (row["mean"], row["std"], row["paper"])),
        )
        for row in found["rows"]
    ]
    c = found["claims"]
    return "\n".join([
        table(("positions", "top-1, %", "std", "paper, %"), rows), "",
        f"{found['seeds']} seeds per row, {found['count']} {found['split']} images of {found['data']}, "
        f"{found['steps']} steps; paper: ViT-B/16, ImageNet, 5 shots (table 8)",
        f"none is the worst: {'yes' if c['none_is_worst'] else 'no'} (paper: yes); the mean of all others is higher by "
        f"{100 * c['gap']:.2f} +- {100 * c['gap_error']:.2f} points (paper: {100 * c['gap_paper']:.2f})",
        f"range among the others: {100 * c['range']:.2f} points (paper: {100 * c['range_paper']:.2f})",
        f"rank correlation with the paper over its {sum(row['paper'] is not None for row in found['rows'])} rows: "
        f"{c['rank_correlation']:.2f}",
    ])  # fmt: skip


def bias_text(found: Mapping[str, Any]) -> str:
    """Return the table of ViT and CNN and the lead of the CNN as text."""
    keys = ("mean", "std", "consistency_mean", "consistency_std")
    rows = [
        (row["model"], f"{row['fraction']:g}", row["images"], *(f"{100 * row[key]:.2f}" for key in keys))
        for row in found["rows"]
    ]
    means = {(row["model"], row["fraction"]): row["mean"] for row in found["rows"]}
    leads = {f: 100 * (means["CNN", f] - means["ViT", f]) for f in found["fractions"]}
    return "\n".join([
        table(("model", "fraction", "images", "top-1, %", "std", "unchanged by shifts, %", "std"), rows), "",
        f"{found['seeds']} seeds per row; shifts by {found['shift']} pixels in 8 directions",
        f"both models with the recipe's optimizer and learning rate, unless optim.* was given; {found['steps']} "
        "steps for every fraction",
        f"lead of the CNN, points: {', '.join(f'{lead:+.2f} at {f:g}' for f, lead in leads.items())}",
    ])  # fmt: skip


def _mean_std(row: Mapping[str, Any], key: str, scale: float = 100, digits: int = 1) -> str:
    """ "97.2 +- 0.4" from the values KEY_mean and KEY_std of a row."""
    return f"{scale * row[f'{key}_mean']:.{digits}f} +- {scale * row[f'{key}_std']:.{digits}f}"


def _points(pair: Mapping[str, Any]) -> str:
    """A difference of shares with its interval, in points."""
    low, high = (100 * end for end in pair["interval"])
    return f"{100 * pair['difference']:+.1f} ({low:+.1f} to {high:+.1f})"


def fgsm_text(found: Mapping[str, Any]) -> str:
    """Return the table of the variants of adversarial training and the verdict as text."""
    keys = ("clean_top1", "fgsm_top1", "pgd_top1", "clean", "robust")
    rows = [
        (row["variant"], *(_mean_std(row, key) for key in keys),
         ", ".join("-" if step is None else str(step) for step in row["collapsed"]))
        for row in found["rows"]
    ]  # fmt: skip
    claim, runs = found["claim"], found["seeds"]
    columns = ("training", "train, %", "train, FGSM, %", "train, PGD, %", "test, %", "test, PGD, %", "collapse at step")
    counts = ", ".join(f"{name} {count} of {runs}" for name, count in claim["collapsed"].items())
    warned = ", ".join(f"{row['variant']} {sum(row['overfits'])} of {runs}" for row in found["rows"])
    lines = [
        table(columns, rows), "",
        f"mean +- standard deviation of {runs} seeds, last of {found['steps']} steps, eps {eps_text(found['eps'])} in "
        "linf; train: 128 images, PGD with 7 steps; test: PGD with 20 steps",
        f"runs with FGSM above 80 % and PGD below 10 % on train images at a step: {counts}",
        f"runs that end with PGD below half of FGSM on train images: {warned}",
    ]  # fmt: skip
    if claim["verdict"] is not None:
        rule = "all runs of FGSM did, and none of N-FGSM"
        text = "claim: FGSM without a random start collapses, N-FGSM at the same eps does not: "
        lines.append(text + _here(claim["verdict"], rule))
    return "\n".join(lines)


def _here(verdict: str, rule: str) -> str:
    return f"{verdict} here (it holds if {rule})"


def vat_text(found: Mapping[str, Any]) -> str:
    """Return the table of VAT beside the labels alone and the verdict as text."""
    means = {(row["method"], row["labels_per_class"]): row for row in found["rows"]}
    rows = [
        (
            gain["labels_per_class"],
            *(f"{100 * means[method, gain['labels_per_class']][key]:.1f}"
              for method in ("supervised", "VAT") for key in ("mean", "std")),
            _points(gain),
        )
        for gain in found["gains"]
    ]  # fmt: skip
    claim = found["claim"]
    columns = ("labels per class", "labels alone, %", "std", "VAT, %", "std", "gain, points (95 % interval)")
    lines = [
        table(columns, rows), "",
        f"top-1 of the last of {found['steps']} steps; {found['seeds']} draws of labels, the same for both methods; "
        "gains are paired by draw, interval by Student's t",
    ]  # fmt: skip
    if claim["verdict"] is not None:
        fewest = found["gains"][0]["labels_per_class"]
        excess = ", ".join(f"{_points(each)} over that of {each['labels_per_class']}" for each in claim["excess"])
        lines += [
            f"largest mean gain: with {claim['largest_at']} labels per class; gain with {fewest} less others: {excess}",
            "claim: the gain is largest with the fewest labels: "
            + _here(claim["verdict"], "the gain and its lead over each other one are above 0 with their intervals"),
        ]
    return "\n".join(lines)


def confidence_text(found: Mapping[str, Any]) -> str:
    """Return the tables of confidence and calibration, inside and outside the classes, and the verdicts as text."""
    outside: Sequence[str] = found["outside"]
    inside = [
        (row["variant"], row["steps"], _mean_std(row, "top1"), _mean_std(row, "confidence"), _mean_std(row, "above"),
         _mean_std(row, "ece"), _mean_std(row, "ece_scaled"), _mean_std(row, "nll", 1, 3),
         _mean_std(row, "temperature", 1, 2))
        for row in found["rows"]
    ]  # fmt: skip
    other = [
        (row["variant"], *(_mean_std(row, f"{kind}_{key}") for kind in outside for key in ("confidence", "auroc")))
        for row in found["rows"]
    ]
    claims = [
        (claim["variant"], claim["against"], *(_points(claim[key]) for key in ("confidence", "ece")), claim["verdict"])
        for claim in found["claims"]
    ]
    columns = (
        "training",
        "steps",
        "top-1, %",
        "confidence, %",
        "above 0.999, %",
        "ECE, %",
        "ECE scaled, %",
        "NLL",
        "T",
    )
    return "\n".join([
        table(columns, inside), "",
        table(("training", *(f"{kind}, {key}, %" for kind in outside for key in ("confidence", "AUROC"))), other), "",
        table(("training", "against", "confidence lower by, points", "ECE lower by, points", "claim"), claims), "",
        f"mean +- standard deviation of {found['seeds']} seeds, {found['count']} images; scaled: by a temperature T "
        "fitted on other images",
        "AUROC: probability that a test image has a higher confidence than an image of no known class",
        "claim: the attack makes confidences reasonable; it holds if confidence and ECE on test images are lower, "
        "with their 95 % intervals, and does not hold if one of them is higher",
    ])  # fmt: skip
