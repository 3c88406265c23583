"""`vitral models`."""

from __future__ import annotations

import json

from vitral.cli.main import Arguments
from vitral.cli.usage import fitted
from vitral.errors import UserError
from vitral.models.config import ResNetConfig, ViTConfig
from vitral.models.flops import count_macs
from vitral.models.presets import count_parameters, list_models, resolve

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
    rows = [(name, resolve(name)) for name in names]
    if arguments.json:
        print(
            json.dumps(
                [
                    {
                        "name": name,
                        "parameters": count_parameters(c),
                        "macs_all_tokens": _macs(c),
                        **c.model_dump(mode="json"),
                    }
                    for name, c in rows
                ]
            )
        )
        return 0
    sizes = f"{'image':>5} {'patch':>5} {'width':>5} {'depth':>5} {'heads':>5}"
    print(f"{'name':<32} {sizes} {'parameters':>13} {'GMAC':>8}  classes")
    for name, c in rows:
        shape = f"{c.image_size[0]:>5} {_cells(c)} {count_parameters(c):>13,} {_macs(c) / 1e9:>8.2f}"
        print(f"{name:<32} {shape}  {c.num_classes}")
    return 0


def _macs(config: ViTConfig | ResNetConfig) -> int:
    return sum(count_macs(config, whole=True).values())


def _cells(config: ViTConfig | ResNetConfig) -> str:
    """Patch size, width, depth and heads; a residual network has a stride, and residual blocks for its depth."""
    c = config
    if isinstance(c, ViTConfig):
        return f"{c.patch_size:>5} {c.width:>5} {c.depth:>5} {c.heads:>5}"
    return f"{c.stride:>5} {c.width:>5} {sum(c.blocks):>5} {'-':>5}"
