"""`vitral models`."""

from __future__ import annotations

from typing import Any

from vitral.cli.command import Answer, Arguments, NoKeys, command
from vitral.cli.table import table
from vitral.errors import UserError
from vitral.models.architecture_config import ArchitectureConfig
from vitral.models.presets import list_models, preset_table, resolve_any

HELP = """usage: vitral models [PATTERN] [--json]

Lists the model presets (model.name=...) with image size, patch size, width, depth, heads, parameters (head included)
and compute per image in GMAC (10^9 multiply-accumulates), with all tokens in the last block, as papers count. For
ResNets: stride, width of the first stage, number of residual blocks. For models that write text: compute with texts of
32 tokens, and the size of the vocabulary as outputs. `vitral summary NAME` shows an encoder of images in detail.

examples:
  vitral models
  vitral models '*tiny*'
"""
_COLUMNS = ("name", "image", "patch", "width", "depth", "heads", "parameters", "GMAC", "outputs")


@command(HELP, NoKeys)
def run(arguments: Arguments, _: NoKeys) -> Answer:
    """List the presets."""
    names = list_models(*arguments.words)
    if not names:
        raise UserError("no preset matches this pattern", where=arguments.words[0], hint="`vitral models` lists all.")
    numbers, configs = preset_table(), [resolve_any(name) for name in names]
    found = [
        {"name": name, **numbers[name], **config.model_dump(mode="json")}
        for name, config in zip(names, configs, strict=True)
    ]
    return Answer(found, lambda: table(_COLUMNS, map(_cells, found, configs)))


def _cells(row: dict[str, Any], c: ArchitectureConfig) -> list[object]:
    """Return a table row."""
    *shape, outputs = c.table_row
    return [row["name"], *shape, f"{row['parameters']:,}", f"{row['macs_all_tokens'] / 1e9:.2f}", outputs]
