"""`vitral models`."""

from __future__ import annotations

from typing import Any

from vitral.cli.command import Answer, Arguments, NoKeys, command
from vitral.cli.table import table
from vitral.errors import UserError
from vitral.models.config import ResNetConfig, ViTConfig
from vitral.models.flops import count_macs
from vitral.models.presets import count_parameters, list_models, resolve

HELP = """usage: vitral models [PATTERN] [--json]

Lists the model presets (model.name=...) with image size, patch size, width, depth, heads, parameters (head included)
and compute per image in GMAC (10^9 multiply-accumulates), with all tokens in the last block, as papers count. For
ResNets: stride, width of the first stage, number of residual blocks. `vitral summary NAME` shows one in detail.

examples:
  vitral models
  vitral models '*tiny*'
"""
_COLUMNS = ("name", "image", "patch", "width", "depth", "heads", "parameters", "GMAC", "classes")


@command(HELP, NoKeys)
def run(arguments: Arguments, _: NoKeys) -> Answer:
    """List the presets."""
    names = list_models(*arguments.words)
    if not names:
        raise UserError("no preset matches this pattern", where=arguments.words[0], hint="`vitral models` lists all.")
    configs = [resolve(name) for name in names]
    found = [_entry(name, config) for name, config in zip(names, configs, strict=True)]
    return Answer(found, lambda: table(_COLUMNS, map(_cells, found, configs)))


def _entry(name: str, config: ViTConfig | ResNetConfig) -> dict[str, Any]:
    macs = sum(count_macs(config, whole=True).values())
    counts = {"parameters": count_parameters(config), "macs_all_tokens": macs}
    return {"name": name, **counts, **config.model_dump(mode="json")}


def _cells(row: dict[str, Any], c: ViTConfig | ResNetConfig) -> list[object]:
    """A row; a ResNet has a stride in place of a patch size, and residual blocks for its depth."""
    shape = (
        [c.patch_size, c.width, c.depth, c.heads]
        if isinstance(c, ViTConfig)
        else [c.stride, c.width, sum(c.blocks), "-"]
    )
    work = [f"{row['parameters']:,}", f"{row['macs_all_tokens'] / 1e9:.2f}", c.num_classes]
    return [row["name"], c.image_size[0], *shape, *work]
