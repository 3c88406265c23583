"""`vitral eval`."""

from __future__ import annotations

import json
import sys
from typing import Any

from vitral.cli.main import Arguments
from vitral.cli.usage import page
from vitral.config import build, with_overrides
from vitral.errors import UserError, plural
from vitral.run.config import expand_data
from vitral.run.options import EvalOptions

HELP = """usage: vitral eval MODEL [key=value ...] [--json]

Measures a model on images with known classes, each once: top-1 with a 95 % Wilson interval, top-5, precision and
recall of each class, confusions, calibration; where images have several classes mean average precision and F1. Without
data= on the data of its training. Exit code 3 below min_top1 or min_map.

key=default, meaning (type):

{keys}

examples:
  vitral eval vitral-digits
  vitral eval runs/mine/model data=OTHER_PHOTOS min_top1=0.9
  vitral eval runs/b/model compare=runs/a/model             is b really better? (McNemar's test, same images)
"""


def run(arguments: Arguments) -> int:
    """Evaluate and print."""
    if arguments.help:
        print(page(HELP, EvalOptions, arguments.words), end="")
        return 0
    if len(arguments.words) != 1:
        raise UserError(
            "one model is wanted", got=" ".join(arguments.words) or "none", hint="vitral eval MODEL [key=value ...]"
        )
    options = build(EvalOptions, with_overrides(EvalOptions, {}, expand_data(arguments.pairs)))
    from vitral.run.evaluate import evaluate

    found = evaluate(arguments.words[0], options)
    print(json.dumps(found) if arguments.json else _table(found))
    missed = options.missed(found)
    for text in missed:
        print(text, file=sys.stderr)
    return 3 if missed else 0


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
    width = max(5, *(len(name) for name in found["per_class"]))
    return [
        f"mAP    {100 * found['map']:.2f} %  of {_images(found)}",
        f"F1     {100 * found['micro_f1']:.2f} % micro, {100 * found['macro_f1']:.2f} % macro, at a probability of 0.5",
        f"exact  {100 * found['exact_match']:.2f} % with every class right  "
        f"(95 % interval {100 * low:.2f} to {100 * high:.2f} %)   loss {found['loss']:.4f} nats",
        f"\n{'class':<{width}}  {'AP':>7}  precision   recall       F1  images",
        *(
            f"{name:<{width}}  {_percent(row['ap']):>7}  {_percent(row['precision']):>9}  "
            f"{_percent(row['recall']):>7}  {_percent(row['f1']):>7}  {row['count']:>6}"
            for name, row in found["per_class"].items()
        ),
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
    width = max(5, *(len(name) for name in names))
    lines.append(f"\n{'class':<{width}}  precision  recall  images  most often taken for")
    for index, (name, row) in enumerate(found["per_class"].items()):
        confusions = sorted(
            ((count, names[j]) for j, count in enumerate(found["confusion"][index]) if j != index and count),
            reverse=True,
        )
        mixed = ", ".join(f"{other} ({count})" for count, other in confusions[:3])
        lines.append(
            f"{name:<{width}}  {_percent(row['precision']):>9}  {_percent(row['recall']):>6}  "
            f"{row['count']:>6}  {mixed}".rstrip()
        )
    return lines


def _images(found: dict[str, Any]) -> str:
    """Images that are not split have no split to name."""
    split = "" if found["splits"] == ["train"] else f"{found['split']} "
    return f"{found['count']} {split}images"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
