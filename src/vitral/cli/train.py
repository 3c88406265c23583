"""`vitral train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from vitral.cli.command import Answer, Arguments, command
from vitral.cli.usage import LISTS, fitted, key_lines, picked, text_width, wrapped
from vitral.config_keys import Key, describe
from vitral.distributed import launch
from vitral.errors import UserError
from vitral.run.config import is_recipe, keys_of, load_run, recipe_and_data, recipe_values
from vitral.run.folder import claimed

HELP = """usage: vitral train [RECIPE | FILE.yaml] [PHOTOS] [key=value ...] [--json]

Trains a model into a run folder: model/ (for predict and eval), report.html, summary.json, metrics.jsonl, checkpoints/.
PHOTOS is short for data=PHOTOS. The default recipe is `small` with data, else `digits`. --json prints the summary.
Ctrl-C saves a checkpoint and prints the command that continues.

examples:
  vitral train digits                              8x8 handwritten digits, about a minute on a CPU
  vitral train small data=PHOTOS out=runs/mine     one folder of images per class
  vitral train finetune data=PHOTOS init=MODEL     start from a trained model: a run, a file or a name on the Hub
  vitral train digits optim.lr=1e-3 seed=1         any key can be changed
  vitral train runs/mine/config.yaml               the same run again
  torchrun --nproc-per-node=4 -m vitral train small data=PHOTOS    on four GPUs

most used keys, with {defaults}, meaning (type):

{keys}

all keys, by group. `vitral train --help WORD` explains those of a group or with WORD in their name or meaning,
`vitral train --help all` explains all, and `vitral train RECIPE --help` shows the values of a recipe:

{groups}

{lists}
"""

MOST_USED = {
    "data": ("data.path", "data.image_size", "data.val_fraction", "augment.flip", "augment.mixup"),
    "model": ("model.name", "init"),
    "training": ("train.epochs", "train.steps", "train.batch_size", "optim.lr", "optim.weight_decay", "train.ema"),
    "run": ("out", "resume", "overwrite", "seed", "device", "precision", "memory"),
}


def _help(words: Sequence[str]) -> str:
    recipe = next((word for word in words if is_recipe(word)), None)
    values = recipe_values(recipe) if recipe else None
    search = [word for word in words if word != recipe]
    model = keys_of(recipe)
    keys = describe(model)
    if search and search != ["all"]:
        groups = {key.name.partition(".")[0] for key in keys if "." in key.name}
        return picked(model, [f"{word}." if word in groups else word for word in search], values)
    if search:
        return "\n".join(key_lines(keys, values)) + f"\n\n{fitted(LISTS)}"
    return fitted(HELP.format(
        defaults=f"their values in {recipe}" if recipe else "their defaults",
        keys="\n".join(_most_used({key.name: key for key in keys}, values)),
        groups="\n".join(_groups(keys)), lists=LISTS,
    ))  # fmt: skip


def _most_used(keys: Mapping[str, Key], values: Mapping[str, Any] | None) -> list[str]:
    lines: list[str] = []
    for title, names in MOST_USED.items():
        lines += [*[""] * bool(lines), f"{title}:"]
        lines += key_lines([keys[name] for name in names if name in keys], values)
    return lines


def _groups(keys: Sequence[Key]) -> list[str]:
    """Return the names of all keys by group, and those of an objective's kinds by kind."""
    kinds = {kind for key in keys if key.name == "objective.kind" for kind in key.type_text.split(" | ")}
    found: dict[str, dict[str, list[str]]] = {}
    for key in sorted(keys, key=lambda key: not key.name.endswith((".kind", ".name"))):
        group, dot, name = key.name.rpartition(".")
        of = key.help.partition(":")[0] if name != "kind" else ""
        parts = found.setdefault(group + dot, {})
        parts.setdefault(f"{of}: " if kinds.issuperset(of.split(", ")) else "", []).append(name)
    lines: list[str] = []
    for group in dict.fromkeys(key.name.rpartition(".")[0] for key in keys):
        lines += [f"  {group}."] if group else []
        for of, names in found[f"{group}." if group else ""].items():
            lines += wrapped(of + " ".join(names), text_width(), 4 if group else 2)
    return lines


@command(HELP, help_page=_help)
def run(arguments: Arguments) -> Answer | int:
    """Train."""
    if not arguments.words and not arguments.pairs:
        raise UserError(
            "missing argument: a recipe or images",
            hint="A first model in a minute: vitral train digits\n  Your own images, one folder per class: "
            "vitral train PHOTOS\n  Recipes: vitral recipes; keys: vitral train --help",
        )
    recipe, pairs = recipe_and_data(arguments.words, arguments.pairs)
    config = load_run(recipe, pairs)
    with claimed(config) if launch().world == 1 else nullcontext() as folder:  # before the wait for torch
        from vitral.run.train import run as train
        from vitral.training.metrics_log import console_logging

        console_logging()
        summary = train(config, folder=folder)
    return Answer(summary, str) if arguments.json and launch().rank == 0 else 0
