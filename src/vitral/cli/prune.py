"""`vitral prune`."""

from __future__ import annotations

from typing import Any

from vitral.cli.command import Answer, Arguments, command
from vitral.cli.table import table
from vitral.run.command_options import PruneOptions

HELP = """usage: vitral prune MODEL out=DIR [flops=0.7] [key=value ...] [--json]

Removes the least important attention heads and hidden MLP features of a Vision Transformer, by the first-order Taylor
expansion of its loss on images, until at most a share of the multiply-accumulates is left. out= becomes an ordinary
model folder with smaller tensors. Accuracy drops until the model is fine-tuned. Without data= the images are the train
images of the model.

{keys}

examples:
  vitral prune vitral-digits flops=0.7 out=smaller
  vitral train digits init=smaller init_head=true model.name=auto train.epochs=20 optim.lr=1e-3 out=runs/smaller
  vitral eval runs/smaller compare=vitral-digits
"""


@command(HELP, PruneOptions)
def run(arguments: Arguments, options: PruneOptions) -> Answer:
    """Prune, and print the remaining size."""
    from vitral.run.prune import prune_model

    found = prune_model(arguments.words[0], options)
    return Answer(found, lambda: _text(found))


def _text(found: dict[str, Any]) -> str:
    counts = (("parameters", found["parameters"]), ("multiply-accumulates", found["macs"]))
    rows = [(name, f"{old:,}", f"{new:,}", f"{100 * new / old:.1f} %") for name, (old, new) in counts]
    return "\n".join(
        [
            table(("", "before", "after", "left"), rows),
            f"heads of each block:           {', '.join(map(str, found['heads']))}",
            f"hidden features of each block: {', '.join(map(str, found['mlp_dims']))}",
            f"written to {found['out']}. Its accuracy has dropped; fine-tune it with:",
            f"  {found['next']}",
        ]
    )
