"""`vitral train`."""

from __future__ import annotations

import json
from contextlib import nullcontext

from vitral.cli.main import Arguments
from vitral.config import help_text
from vitral.distributed import launch
from vitral.errors import UserError
from vitral.run.config import RunConfig, load_config, recipe_values
from vitral.run.folder import claimed

HELP = """usage: vitral train [RECIPE | FILE.yaml] [key=value ...] [--json]

Trains a model into a run folder: model/ (what predict and eval take), report.html, summary.json, metrics.jsonl,
checkpoints/. Without a recipe: `small` where data= is given, else `digits`. --json prints the summary.
Ctrl-C saves and prints the command that goes on.

key, type, {defaults}, meaning:

{keys}

examples:
  vitral train digits                                       8x8 handwritten digits, about a minute on a CPU
  vitral train small data=PHOTOS out=runs/mine              a folder with one folder of images for each class
  vitral train finetune data=PHOTOS init=runs/mine/model    start from a trained model
  vitral train digits optim.lr=1e-3 seed=1                  any key can be changed
  vitral train runs/mine/config.yaml                        the same run again
  torchrun --nproc-per-node=4 -m vitral train small data=PHOTOS    on four GPUs
"""


def run(arguments: Arguments) -> int:
    """Train, or print every key."""
    if len(arguments.words) > 1:
        raise UserError("one recipe at a time", got=" ".join(arguments.words))
    recipe = arguments.words[0] if arguments.words else None
    if arguments.help:
        values = recipe_values(recipe) if recipe else None
        defaults = "default" if recipe is None else f"value in {recipe}"
        print(HELP.format(keys=help_text(RunConfig, values), defaults=defaults), end="")
        return 0
    config = load_config(recipe, arguments.pairs)
    with claimed(config) if launch().world == 1 else nullcontext() as folder:  # before the wait for torch
        from vitral.run.train import run as train
        from vitral.training.journal import console_logging

        console_logging()
        summary = train(config, folder=folder)
    if arguments.json and launch().rank == 0:
        print(json.dumps(summary))
    return 0
