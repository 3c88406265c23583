"""`vitral sweep`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from vitral.cli.main import Arguments
from vitral.cli.usage import fitted
from vitral.data.config import DataSource
from vitral.errors import UserError
from vitral.run.config import recipe_and_data, recipe_values

HELP = """usage: vitral sweep [RECIPE | FILE.yaml] key=VALUE,VALUE... [key=value ...] [--json]

Trains once for each of the values (several such keys make a grid), without a part of the train images, which then
score it; trains the best settings again on all train images, and judges them on the test images once. One folder holds
it all: sweep.json, sweep.csv, a run for each point (01, 02, ...) and best/, the run to use. --json prints sweep.json.
Ctrl-C saves and prints the command that goes on; finished points are not run again.

key, default, meaning:

  dev        of the recipe  share of the train images that score the points (data.val_fraction)
  retrain    true           train the best settings again, on everything, and judge them; needs a test split
  out        null           folder of the sweep; null: runs/sweep-RECIPE-TIME
  resume     false          go on with the sweep in out
  overwrite  false          replace the sweep in out

and every key of `vitral train` with a value, or with values between commas (but for out and where the data are).

examples:
  vitral sweep digits optim.lr=1e-3,3e-3,1e-2 dev=0.1
  vitral sweep finetune_cifar10 data=CIFAR init=MODEL optim.lr=.001,.003,.01,.03 dev=0.02 out=runs/sweep
  vitral sweep small data=PHOTOS optim.lr=3e-4,1e-3 augment.mixup=0,0.2 seed=1
  vitral sweep digits 'optim.betas=[0.9,0.99],[0.9,0.999]'           a list as a value: in brackets, quoted
"""

_FLAGS = {"true": True, "false": False}
# A comma in these is a part of the text.
_WHOLE = {"data", "out", "recipe", *(f"data.{name}" for name in DataSource.model_fields)}


def run(arguments: Arguments) -> int:
    """Sweep and print the table."""
    if arguments.help:
        print(fitted(HELP), end="")
        return 0
    recipe, keys = recipe_and_data(arguments.words, arguments.pairs)
    if recipe is not None:
        recipe_values(recipe)  # a wrong name is said before torch is imported
    flags = {name: _flag(name, keys.pop(name)) for name in ("retrain", "resume", "overwrite") if name in keys}
    dev, out = keys.pop("dev", None), keys.pop("out", None)
    lines = {key: [text] if key in _WHOLE else split_values(text) for key, text in keys.items()}
    grid = {key: line for key, line in lines.items() if len(line) > 1}
    from vitral.run.sweep import sweep

    found = sweep(recipe, grid, {key: keys[key] for key in keys if key not in grid}, dev=dev, out=out, **flags)
    print(json.dumps(found) if arguments.json else _table(found))
    return 0


def split_values(text: str) -> list[str]:
    """The values between the commas that are not in brackets."""
    return re.split(r",(?![^\[\]]*\])", text)


def _flag(name: str, text: str) -> bool:
    if text not in _FLAGS:
        raise UserError("wrong value", where=name, got=repr(text), wanted="true or false")
    return _FLAGS[text]


def _table(found: Mapping[str, Any]) -> str:
    from vitral.tasks.registry import TASKS

    metric, best = TASKS[found["task"]].metrics[0], found["best"]
    score = f"val_{metric.name}"
    header = ["run", *found["grid"], score, "val_loss", "seconds", ""]
    rows = [header]
    for row in found["points"]:
        wins = all(row[key] == value for key, value in best.items())
        numbers = (
            ["failed", "", ""] if "error" in row
            else [
                metric.text(row[score]), "" if row["val_loss"] is None else f"{row['val_loss']:.4f}",
                f"{row['train_seconds']:.0f}",
            ]
        )  # fmt: skip
        rows.append([row["run"], *(str(row[key]) for key in found["grid"]), *numbers, "best" if wins else ""])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    if found["result"] is not None:
        result = found["result"]
        text = metric.text(result[metric.name])
        lines.append(f"\nbest, trained on all: {metric.label} {text} of {result['count']} {result['split']} images")
    return "\n".join(lines)
