"""`vitral train`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext

from vitral.cli.main import Arguments
from vitral.cli.usage import LISTS, fitted, picked
from vitral.distributed import launch
from vitral.errors import UserError
from vitral.keys import describe, key_lines, text_width, wrapped
from vitral.run.config import RunConfig, is_recipe, load_config, recipe_and_data, recipe_values
from vitral.run.folder import claimed

HELP = """usage: vitral train [RECIPE | FILE.yaml] [PHOTOS] [key=value ...] [--json]

Trains a model into a run folder: model/ (what predict and eval take), report.html, summary.json, metrics.jsonl,
checkpoints/. PHOTOS is short for data=PHOTOS. Without a recipe it is `small` where data are given, else `digits`.
--json prints the summary. Ctrl-C saves and prints the command that goes on.

examples:
  vitral train digits                              8x8 handwritten digits, about a minute on a CPU
  vitral train small data=PHOTOS out=runs/mine     a folder with one folder of images for each class
  vitral train finetune data=PHOTOS init=MODEL     start from a trained model: a run, a file or a hub name
  vitral train digits optim.lr=1e-3 seed=1         any key can be changed
  vitral train runs/mine/config.yaml               the same run again
  torchrun --nproc-per-node=4 -m vitral train small data=PHOTOS    on four GPUs

most used keys, with {defaults}, meaning (type):

{keys}

all keys, by group; `vitral train --help WORD` explains those of a group, or with this word in their name or meaning, as
`vitral train --help optim`; `vitral train --help all` explains all; `vitral train RECIPE --help` shows its values:

{groups}

{lists}
"""

MOST_USED = (
    "data.path", "out", "init", "model.name", "data.image_size", "train.epochs", "train.steps", "train.batch_size",
    "optim.lr", "optim.weight_decay", "augment.flip", "augment.mixup", "data.val_fraction", "train.ema", "seed",
    "device", "precision", "memory", "resume", "overwrite",
)  # fmt: skip


def run(arguments: Arguments) -> int:
    """Train, or print the keys."""
    if arguments.help:
        print(_help(arguments.words), end="")
        return 0
    if not arguments.words and not arguments.pairs:
        raise UserError(
            "a recipe or images are needed",
            hint="A first model in a minute: vitral train digits\n  Your own images, one folder per class: "
            "vitral train PHOTOS\n  Recipes: vitral recipes; keys: vitral train --help",
        )
    recipe, pairs = recipe_and_data(arguments.words, arguments.pairs)
    config = load_config(recipe, pairs)
    with claimed(config) if launch().world == 1 else nullcontext() as folder:  # before the wait for torch
        from vitral.run.train import run as train
        from vitral.training.journal import console_logging

        console_logging()
        summary = train(config, folder=folder)
    if arguments.json and launch().rank == 0:
        print(json.dumps(summary))
    return 0


def _help(words: Sequence[str]) -> str:
    recipe = next((word for word in words if is_recipe(word)), None)
    values = recipe_values(recipe) if recipe else None
    asked = [word for word in words if word != recipe]
    keys = describe(RunConfig)
    if asked and asked != ["all"]:
        groups = {key.name.partition(".")[0] for key in keys if "." in key.name}
        return picked(RunConfig, [f"{word}." if word in groups else word for word in asked], values)
    if asked:
        return "\n".join(key_lines(keys, values)) + f"\n\n{fitted(LISTS)}"
    used = [key for name in MOST_USED for key in keys if key.name == name]
    return fitted(HELP.format(
        defaults=f"their values in {recipe}" if recipe else "their defaults", keys="\n".join(key_lines(used, values)),
        groups="\n".join(_groups([key.name for key in keys])), lists=LISTS,
    ))  # fmt: skip


def _groups(names: Sequence[str]) -> list[str]:
    """The names of all keys below those of their groups."""
    found: dict[str, list[str]] = {}
    for name in names:
        group, dot, rest = name.partition(".")
        found.setdefault(f"{group}." if dot else "", []).append(rest if dot else name)
    lines: list[str] = []
    for group, keys in found.items():
        lines += [f"  {group}"] if group else []
        lines += wrapped(" ".join(keys), text_width(), 4 if group else 2)
    return lines
