"""`vitral models`."""

from __future__ import annotations

import json

from vitral.cli.main import Arguments
from vitral.cli.usage import fitted
from vitral.errors import UserError
from vitral.models.config import ModelConfig
from vitral.models.presets import list_models, preset_table, resolve

HELP = """usage: vitral models [PATTERN] [--json]

Lists the presets (model.name=...) with image size, patch size, width, depth, heads, parameters (head included) and work
of one image: GMAC (10^9 multiply-accumulates) with all tokens in the last block, as papers count. Of residual networks:
stride, width of the first stage, number of residual blocks. `vitral plan NAME` also says what Vitral computes.

examples:
  vitral models
  vitral models '*tiny*'
"""


def run(arguments: Arguments) -> int:
    """List the presets."""
    if arguments.help:
        print(fitted(HELP), end="")
        return 0
    if arguments.pairs or len(arguments.words) > 1:
        raise UserError("one pattern at most is wanted", got=" ".join([*arguments.words, *arguments.pairs]))
    names = list_models(*arguments.words)
    if not names:
        raise UserError("no preset fits this pattern", where=arguments.words[0], hint="`vitral models` lists all.")
    table = preset_table()
    rows = [(name, resolve(name), table[name]) for name in names]
    if arguments.json:
        print(
            json.dumps(
                [
                    {
                        "name": name,
                        **numbers,
                        **c.model_dump(mode="json"),
                    }
                    for name, c, numbers in rows
                ]
            )
        )
        return 0
    sizes = f"{'image':>5} {'patch':>5} {'width':>5} {'depth':>5} {'heads':>5}"
    print(f"{'name':<32} {sizes} {'parameters':>13} {'GMAC':>8}  classes")
    for name, c, numbers in rows:
        work = f"{numbers['parameters']:>13,} {numbers['macs_all_tokens'] / 1e9:>8.2f}"
        shape = f"{c.image_size[0]:>5} {_cells(c)} {work}"
        print(f"{name:<32} {shape}  {c.num_classes}")
    return 0


def _cells(config: ModelConfig) -> str:
    """Patch size (without patches the stride), width, depth and heads."""
    c = config
    return f"{c.stride:>5} {c.model_dump().get('width', '-'):>5} {c.block_count:>5} {c.head_count or '-':>5}"
