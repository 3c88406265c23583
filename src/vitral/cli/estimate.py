"""`vitral estimate`."""

from __future__ import annotations

from typing import Any

from vitral.cli.command import Answer, Arguments, command
from vitral.cli.summary import compute_lines, parts_table
from vitral.cli.table import table
from vitral.errors import UserError
from vitral.models.presets import PRESETS
from vitral.run.config import load_run, recipe_and_data

HELP = """usage: vitral estimate [RECIPE | FILE.yaml] [PHOTOS] [memory=8GB] [key=value ...] [--json]

Estimates the memory of a training run before it starts, and finds the micro-batch and activation checkpointing that fit
into `memory` (by default: the free memory) at the recipe's batch size with the least recomputation. Takes the keys of
`vitral train`. `vitral docs memory` has the formula; `vitral summary MODEL` describes a model.

examples:
  vitral estimate digits
  vitral estimate pronounce memory=2GB
  vitral estimate deit_s16_in1k memory=8GB device=cuda
  vitral estimate pretrain_in1k_b16 memory=24GB device=cuda precision=bfloat16_params
"""


@command(HELP)
def run(arguments: Arguments) -> Answer:
    """Estimate and print."""
    if not arguments.words and not arguments.pairs:
        raise UserError("missing argument: RECIPE", hint="For example: vitral estimate digits. Recipes: vitral recipes")
    recipe, pairs = recipe_and_data(arguments.words, arguments.pairs)
    if recipe in PRESETS:
        raise UserError("this is a model, not a recipe", where=recipe, hint=f"Use: vitral summary {recipe}")
    config = load_run(recipe, pairs)
    from vitral.run.estimate import estimate

    found = estimate(config)
    return Answer(found, lambda: _text(found))


def _compute_lines(found: dict[str, Any]) -> list[str]:
    """Of a run on texts: of one sample with the longest ones."""
    if "target_positions" not in found:
        return compute_lines(found)
    target, source, size = found["target_positions"], found["source_positions"], found["image_size"]
    read = f"one image of {size[0]} x {size[1]}" if size else f"a source of {source} positions"
    rows = [(name, f"{count:,}", f"{100 * count / found['macs']:.1f} %") for name, count in found["macs_parts"].items()]
    return [
        f"{found['parameters']:,} parameters",
        f"forward pass of {read} and a target of {target}: {found['macs']:,} multiply-accumulates"
        f" ({found['flops']:,} operations), as in training; the longest training texts", table((), rows, 2),
    ]  # fmt: skip


def _text(found: dict[str, Any]) -> str:
    from vitral.training.memory_estimate import show_bytes

    limit = found["limit_bytes"]
    rows = [
        (row["micro_batch"], row["accumulation"], f"{row['checkpointing']} of {found['blocks']}",
         show_bytes(row["memory_bytes"]), "too much" * (row["memory_bytes"] > limit))
        for row in found["alternatives"]
    ]  # fmt: skip
    return "\n".join(
        [
            *_compute_lines(found), "",
            f"a step of {found['batch_size']} samples on {found['device']}, {found['precision']}: about"
            f" {show_bytes(found['memory_bytes'])}, {'fits' if found['fits'] else 'DOES NOT FIT'} into"
            f" {show_bytes(limit)} with",
            f"  train.micro_batch={found['micro_batch']}"
            f" train.activation_checkpointing={found['checkpointing'] or 'none'}", "",
            parts_table(found["parts"]), "",
            table(("micro-batch", "accumulation", "checkpointed blocks", "memory", ""), rows),
        ]
    )  # fmt: skip
