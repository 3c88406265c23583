"""`vitral eval`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from vitral.cli.main import Arguments
from vitral.cli.usage import page
from vitral.config import build, with_overrides
from vitral.errors import UserError, plural
from vitral.run.config import expand_data
from vitral.run.options import EvalOptions

if TYPE_CHECKING:
    from vitral.run.evaluate import Measured

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
    from vitral.run.evaluate import measure

    measured = measure(arguments.words[0], options)
    print(json.dumps(measured.result) if arguments.json else _text(measured))
    missed = options.missed(measured.result)
    for text in missed:
        print(text, file=sys.stderr)
    return 3 if missed else 0


def _text(measured: Measured) -> str:
    from vitral.report.render import to_console

    task, evaluation, result = measured
    lines = [to_console(task.console(evaluation))]
    if result["skipped"]:
        lines.append(f"\n{plural(len(result['skipped']), 'damaged image')} left out:")
        lines += [f"  {each}" for each in result["skipped"]]
    if "compare" in result:
        lines.append(f"\n{task.comparison(result['compare'])}")
    return "\n".join(lines)
