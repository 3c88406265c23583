"""`vitral prune`."""

from __future__ import annotations

import json
from typing import Any

from vitral.cli.main import Arguments
from vitral.cli.usage import page
from vitral.config import build, with_overrides
from vitral.errors import UserError
from vitral.run.config import expand_data
from vitral.run.options import PruneOptions

HELP = """usage: vitral prune MODEL out=DIR [flops=0.7] [key=value ...] [--json]

Takes the attention heads and the hidden features of the MLPs out of a Vision Transformer that its loss on images would
miss least (first-order Taylor expansion), until a share of the multiply-accumulates is left. out= is an ordinary model
folder with smaller tensors. Fine-tune it afterwards: accuracy drops until then. Without data= the images are those of
its training.

key=default, meaning (type):

{keys}

examples:
  vitral prune vitral-digits flops=0.7 out=smaller
  vitral train digits init=smaller init_head=true model.name=auto train.epochs=20 optim.lr=1e-3 out=runs/smaller
  vitral eval runs/smaller compare=vitral-digits
"""


def run(arguments: Arguments) -> int:
    """Prune, and say what is left."""
    if arguments.help:
        print(page(HELP, PruneOptions, arguments.words), end="")
        return 0
    if len(arguments.words) != 1:
        got = " ".join(arguments.words) or "none"
        raise UserError("one model is wanted", got=got, hint="vitral prune MODEL out=DIR [key=value ...]")
    options = build(PruneOptions, with_overrides(PruneOptions, {}, expand_data(arguments.pairs)))
    from vitral.run.prune import prune_model

    found = prune_model(arguments.words[0], options)
    print(json.dumps(found) if arguments.json else _text(found))
    return 0


def _text(found: dict[str, Any]) -> str:
    rows = [
        f"{name:<21} {before:>13,} {after:>13,}  {100 * after / before:5.1f} %"
        for name, (before, after) in (("parameters", found["parameters"]), ("multiply-accumulates", found["macs"]))
    ]
    return "\n".join(
        [
            f"{'':<21} {'before':>13} {'after':>13}", *rows,
            f"heads of each block:           {', '.join(map(str, found['heads']))}",
            f"hidden features of each block: {', '.join(map(str, found['mlp_dims']))}",
            f"in {found['out']}. Fine-tune it now, its accuracy has dropped:",
            f"  {found['next']}",
        ]
    )  # fmt: skip
