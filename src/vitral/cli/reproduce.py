"""`vitral reproduce`."""

from __future__ import annotations

import json

from vitral.cli.main import Arguments
from vitral.cli.usage import page
from vitral.config import build, with_overrides
from vitral.errors import UserError, nearest
from vitral.reproduce.config import BiasOptions, ReproduceOptions

HELP = """usage: vitral reproduce positions|inductive-bias [key=value ...] [--json]

Runs a comparison of the ViT paper at your scale, several seeds a row, and prints the table.

positions       without positions, 1-D, 2-D, relative, at the stem or in every layer (appendix D.4, table 8); the
                paper's numbers beside, and whether its ordering holds
inductive-bias  ViT and a ResNet on fractions of the train images, and how both keep their answer when the image moves
                (sections 3.1 and 4.3); with a plot. Both kinds train with the recipe's optimizer and rate (those of a
                ViT, unless optim.* says otherwise) and for the same number of steps, whatever the fraction

key=default, meaning (type):

{keys}

and every key of `vitral train` but those that the comparison sets itself: seed, overwrite, finish, train.steps,
train.epochs, data.path, data.source; of positions model.positions and model.positions_at; of inductive-bias
model.name (vit= and cnn= name the presets; other model.* keys are the ViT's). Ctrl-C saves and prints the command that
goes on.

examples:
  vitral reproduce positions data=digits
  vitral reproduce positions data=PHOTOS seeds=5 steps=3000 model.pool=cls
  vitral reproduce inductive-bias fractions=0.1,1 cnn=resnet18_cifar
"""

KINDS = {"positions": ReproduceOptions, "inductive-bias": BiasOptions}


def run(arguments: Arguments) -> int:
    """Compare and print."""
    if arguments.help:
        print(page(HELP, BiasOptions, arguments.words), end="")
        return 0
    if len(arguments.words) != 1 or arguments.words[0] not in KINDS:
        got = " ".join(arguments.words) or "none"
        raise UserError("one comparison is wanted", got=got, wanted=", ".join(KINDS), nearest=nearest(got, KINDS))
    kind = KINDS[arguments.words[0]]
    pairs = dict(arguments.pairs)
    own = {key: pairs.pop(key) for key in list(pairs) if key in kind.model_fields}
    options = build(kind, with_overrides(kind, {}, own))
    from vitral.reproduce import bias, positions

    if isinstance(options, BiasOptions):
        found = bias.inductive_bias(options, pairs)
        print(json.dumps(found) if arguments.json else bias.table(found))
    else:
        found = positions.positions(options, pairs)
        print(json.dumps(found) if arguments.json else positions.table(found))
    return 0
