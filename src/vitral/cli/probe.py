"""`vitral probe`."""

from __future__ import annotations

import json
import sys
from typing import Any

from vitral.cli.main import Arguments
from vitral.cli.usage import page
from vitral.config import build, with_overrides
from vitral.errors import UserError, plural
from vitral.run.config import expand_data
from vitral.run.options import ProbeOptions

HELP = """usage: vitral probe MODEL [key=value ...] [--json]

Judges a model's features, frozen, before any head: the train images teach a simple classifier, the test images (else
the validation images, held out of train if need be) judge it. Any classes will do, not only the model's own. Without
data= on the data of its training. Exit code 3 below min_top1.

kind=knn      weighted votes of the nearest train images; top-1 for each knn.k
kind=linear   logistic regression; its penalty is chosen on held-out train images
kind=fewshot  least squares on a few train images of each class; the mean of several choices

key=default, meaning (type):

{keys}

examples:
  vitral probe vitral-digits
  vitral probe runs/mine data=OTHER_PHOTOS kind=linear
  vitral probe runs/mine kind=fewshot fewshot.shots=5,10 features=cls min_top1=0.6
"""


def run(arguments: Arguments) -> int:
    """Probe and print."""
    if arguments.help:
        print(page(HELP, ProbeOptions, arguments.words), end="")
        return 0
    if len(arguments.words) != 1:
        raise UserError(
            "one model is wanted", got=" ".join(arguments.words) or "none", hint="vitral probe MODEL [key=value ...]"
        )
    options = build(ProbeOptions, with_overrides(ProbeOptions, {}, expand_data(arguments.pairs)))
    from vitral.run.probe import probe

    found = probe(arguments.words[0], options)
    print(json.dumps(found) if arguments.json else _table(found))
    if options.min_top1 is not None and found["top1"] < options.min_top1:
        print(f"top-1 {found['top1']:.4f} is below min_top1={options.min_top1}", file=sys.stderr)
        return 3
    return 0


def _table(found: dict[str, Any]) -> str:
    low, high = found["top1_interval"]
    lines = [
        f"top-1  {100 * found['top1']:.2f} %  (95 % interval {100 * low:.2f} to {100 * high:.2f} %)"
        f" of {found['count']} {found['split']} images, by {found['train_count']} of train",
        *_TABLES[found["kind"]](found),
    ]
    if found["skipped"]:
        lines += [
            f"\n{plural(len(found['skipped']), 'damaged image')} left out:",
            *(f"  {each}" for each in found["skipped"]),
        ]
    return "\n".join(lines)


def _knn(found: dict[str, Any]) -> list[str]:
    chosen = ", the best of these on the judged images" if len(found["per_k"]) > 1 else ""
    rows = [f"{k:>5}  {100 * row['top1']:>5.2f} %" for k, row in found["per_k"].items()]
    return [f"kind=knn with k = {found['best_k']}{chosen}", "\n    k    top-1", *rows]


def _linear(found: dict[str, Any]) -> list[str]:
    rows = [f"{l2:>7}  {100 * share:>5.2f} %" for l2, share in found["held_out"].items()]
    chosen = ", chosen on held-out train images" if rows else ""
    return [f"kind=linear with l2 = {found['l2']:g}{chosen}", *(["\n     l2    held-out top-1", *rows] if rows else [])]


def _fewshot(found: dict[str, Any]) -> list[str]:
    rows = [
        f"{shots:>5}  {100 * row['top1']:>5.2f} %" + ("" if row["std"] is None else f"  {100 * row['std']:>5.2f}")
        for shots, row in found["per_shot"].items()
    ]
    last, row = list(found["per_shot"].items())[-1]
    fewer = f" where there are as many ({row['images']} in all, at least {row['fewest']} per class)" * row["short"]
    title = f"kind=fewshot with {last} train images per class{fewer}, mean of {len(row['seeds'])} choices"
    return [title, "\nshots    top-1  standard deviation over the choices", *rows]


_TABLES = {"knn": _knn, "linear": _linear, "fewshot": _fewshot}
