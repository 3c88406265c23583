"""`vitral sweep`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vitral.cli.command import Answer, Arguments, command, own_options
from vitral.cli.table import table
from vitral.cli.usage import page
from vitral.data.config import DataSource
from vitral.run.command_options import SweepOptions
from vitral.run.config import recipe_and_data, recipe_values

HELP = """usage: vitral sweep [RECIPE | FILE.yaml] [PHOTOS] key=VALUE,VALUE... [key=value ...] [--json]

Trains once per value (several such keys make a grid) on a part of the train images and scores each setting on the rest
of them. Then retrains the best setting on all training data and evaluates it once on the test set. The folder holds
sweep.json, sweep.csv, one run per point (01, 02, ...) and best/, the run to use. --json prints sweep.json. Ctrl-C saves
and prints the command that continues; finished points are not repeated.

{keys}

and every key of `vitral train` with one value, or with several between commas (except out and the source of the data).

examples:
  vitral sweep digits optim.lr=1e-3,3e-3,1e-2 dev=0.1
  vitral sweep finetune_cifar10 data=CIFAR init=MODEL optim.lr=.001,.003,.01,.03 dev=0.02 out=runs/sweep
  vitral sweep small data=PHOTOS optim.lr=3e-4,1e-3 augment.mixup=0,0.2 seed=1
  vitral sweep digits 'optim.betas=[0.9,0.99],[0.9,0.999]'           a list as a value: in brackets, quoted
"""

# Keys whose values may contain commas.
_WHOLE = {"data", "out", "recipe", *(f"data.{name}" for name in DataSource.model_fields)}


@command(HELP, help_page=lambda words: page(HELP, SweepOptions, words))
def run(arguments: Arguments) -> Answer:
    """Sweep and print the table."""
    recipe, keys = recipe_and_data(arguments.words, arguments.pairs)
    if recipe is not None:
        recipe_values(recipe)  # an unknown name is reported before torch is imported
    options, keys = own_options(SweepOptions, keys)
    lines = {key: [text] if key in _WHOLE else split_values(text) for key, text in keys.items()}
    grid = {key: line for key, line in lines.items() if len(line) > 1}
    from vitral.run.sweep import sweep

    found = sweep(recipe, grid, {key: keys[key] for key in keys if key not in grid}, **options.model_dump())
    return Answer(found, lambda: _text(found))


def split_values(text: str) -> list[str]:
    """Split at the commas outside of brackets."""
    return re.split(r",(?![^\[\]]*\])", text)


def _text(found: Mapping[str, Any]) -> str:
    from vitral.tasks.registry import TASKS

    metric, best = TASKS[found["task"]].metrics[0], found["best"]
    score = f"val_{metric.name}"
    rows: list[list[object]] = []
    for row in found["points"]:
        wins = all(row[key] == value for key, value in best.items())
        numbers = (
            ["failed", "", ""] if "error" in row
            else [
                metric.text(row[score]), "" if row["val_loss"] is None else f"{row['val_loss']:.4f}",
                f"{row['train_seconds']:.0f}",
            ]
        )  # fmt: skip
        rows.append([row["run"], *(row[key] for key in found["grid"]), *numbers, "best" if wins else ""])
    text = table(("run", *found["grid"], score, "val_loss", "seconds", ""), rows)
    if (result := found["result"]) is None:
        return text
    share = metric.text(result[metric.name])
    return f"{text}\n\nbest, trained on all: {metric.label} {share} of {result['count']} {result['split']} images"
