"""`vitral eval`."""

from __future__ import annotations

from typing import Any

from vitral.cli.command import Answer, Arguments, below, command
from vitral.cli.table import table
from vitral.errors import plural
from vitral.run.options import EvalOptions

HELP = """usage: vitral eval MODEL [key=value ...] [--json]

Measures a model on labeled images: top-1 with a 95 % Wilson interval, top-5, precision and recall of each class,
confusions, calibration; for multi-label data mean average precision and F1. Without data= the images are those of the
training run. A metric below min_top1 or min_map gives exit code 3.

key=default, meaning (type):

{keys}

examples:
  vitral eval vitral-digits
  vitral eval runs/mine/model data=OTHER_PHOTOS min_top1=0.9
  vitral eval runs/b/model compare=runs/a/model             compare on the same images (McNemar's test)
"""


@command(HELP, EvalOptions)
def run(arguments: Arguments, options: EvalOptions) -> Answer:
    """Evaluate and print."""
    from vitral.run.evaluate import evaluate

    found = evaluate(arguments.words[0], options)
    code = below(found, _NAMES, top1=options.min_top1, map=options.min_map)
    return Answer(found, lambda: _table(found), code)


_NAMES = {"top1": "top-1", "map": "mAP", "exact_match": "every class right"}


def _table(found: dict[str, Any]) -> str:
    lines = _multi_label(found) if "map" in found else _single_label(found)
    if found["skipped"]:
        lines.append(f"\n{plural(len(found['skipped']), 'damaged image')} left out:")
        lines += [f"  {each}" for each in found["skipped"]]
    if "compare" in found:
        other = found["compare"]
        score = next(key for key in _NAMES if key in other)
        low, high = other["difference_interval"]
        lines.append(
            f"\nagainst {other['model']} ({_NAMES[score]} {100 * other[score]:.2f} %): "
            f"{100 * other['difference']:+.2f} points (95 % interval {100 * low:+.2f} to {100 * high:+.2f}), "
            f"right only here {other['only_a']}, only there {other['only_b']}, McNemar p = {other['p_value']:.3g}"
        )
    return "\n".join(lines)


def _multi_label(found: dict[str, Any]) -> list[str]:
    low, high = found["exact_match_interval"]
    keys = ("ap", "precision", "recall", "f1")
    rows = [(name, *(_percent(row[key]) for key in keys), row["count"]) for name, row in found["per_class"].items()]
    return [
        f"mAP    {100 * found['map']:.2f} %  of {_images(found)}",
        f"F1     {100 * found['micro_f1']:.2f} % micro, {100 * found['macro_f1']:.2f} % macro, at a probability of 0.5",
        f"exact  {100 * found['exact_match']:.2f} % with every class right  "
        f"(95 % interval {100 * low:.2f} to {100 * high:.2f} %)   loss {found['loss']:.4f} nats",
        f"\n{table(('class', 'AP', 'precision', 'recall', 'F1', 'images'), rows)}",
    ]


def _single_label(found: dict[str, Any]) -> list[str]:
    low, high = found["top1_interval"]
    lines = [
        f"top-1  {100 * found['top1']:.2f} %  (95 % interval {100 * low:.2f} to {100 * high:.2f} %) of {_images(found)}"
    ]
    lines.append(f"guess  {100 * found['baseline']:.2f} %  (always {found['baseline_class']}, the commonest class)")
    if "top5" in found:
        lines.append(f"top-5  {100 * found['top5']:.2f} %")
    lines.append(
        f"ECE    {found['ece']:.4f}  ({found['ece_uncalibrated']:.4f} without temperature scaling)"
        f"   loss {found['loss']:.4f} nats"
    )
    if found["ece"] > found["ece_uncalibrated"]:
        lines.append("       temperature scaling makes the calibration error larger on these images")
    names = list(found["per_class"])
    rows: list[tuple[object, ...]] = []
    for index, (name, row) in enumerate(found["per_class"].items()):
        confusions = sorted(
            ((count, names[j]) for j, count in enumerate(found["confusion"][index]) if j != index and count),
            reverse=True,
        )
        mixed = ", ".join(f"{other} ({count})" for count, other in confusions[:3])
        rows.append((name, _percent(row["precision"]), _percent(row["recall"]), row["count"], mixed))
    lines.append("\n" + table(("class", "precision", "recall", "images", "most often taken for"), rows))
    return lines


def _images(found: dict[str, Any]) -> str:
    """Images that are not split have no split to name."""
    split = "" if found["splits"] == ["train"] else f"{found['split']} "
    return f"{found['count']} {split}images"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
