"""`vitral summary`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitral.cli.command import Answer, Arguments, command
from vitral.cli.table import table
from vitral.errors import UserError, nearest
from vitral.models.presets import PRESETS
from vitral.run.command_options import SummaryOptions
from vitral.run.config import is_recipe
from vitral.run.text_options import TextSummaryOptions

HELP = """usage: vitral summary MODEL|NAME [key=value ...] [--json]

Prints the output shape of every stage of a model, its parameters, multiply-accumulates and memory per image, and how
they grow with image size, patch size and depth. NAME is a preset (`vitral models`); MODEL is a bundled model, a model
folder, a run folder, weights of another library or a name on the Hugging Face Hub. `vitral estimate RECIPE` estimates
the memory of a training run. A model that writes text: its parts, the way of a sentence or an image through it, and
what self-attention, recurrence and convolution cost per layer at its width.

{keys}

examples:
  vitral summary vit_base_patch16_224
  vitral summary vit_base_patch16_224 image_size=384
  vitral summary runs/mine out=growth.png
  vitral summary transformer_base length=100
"""


@command(HELP, SummaryOptions, text=TextSummaryOptions)
def run(arguments: Arguments, options: SummaryOptions | TextSummaryOptions) -> Answer:
    """Summarize and print."""
    name = arguments.words[0]
    if isinstance(options, TextSummaryOptions):
        from vitral.run.text_summary import summarize_text

        of_text = summarize_text(name, options)
        return Answer(of_text, lambda: _of_text(of_text))
    is_local = name in PRESETS or Path(name).expanduser().exists()
    if not is_local and is_recipe(name):
        raise UserError("this is a recipe, not a model", where=name, hint=f"Use: vitral estimate {name}")
    if not is_local and (close := nearest(name, PRESETS)):
        raise UserError("no preset or model of this name", where=name, nearest=close)
    from vitral.run.summary import summarize

    found = summarize(name, options)
    return Answer(found, lambda: _text(found))


def _text(found: dict[str, Any]) -> str:
    from vitral.training.memory_estimate import show_bytes

    closed = [(name, f"{count:,}") for name, count in found.get("formula", {}).items()]
    formula = ["", "by the formula, N tokens of D features, D_h in the MLP:", table((), closed, 2)] if closed else []
    stages = [(stage["stage"], " x ".join(map(str, stage["shape"]))) for stage in found["walk"]]
    return "\n".join(
        [
            *compute_lines(found), *formula, "",
            f"training with AdamW on one image, {found['precision']}: about {show_bytes(found['memory_bytes'])}",
            parts_table(found["parts"]), "",
            "growth per image:",
            *(_growth(found[key], name) for key, name in _SERIES.items() if key in found),
            "stages:", table(("stage", "output shape"), stages, 2),
        ]
    )  # fmt: skip


def _of_text(found: dict[str, Any]) -> str:
    parts = [(name, f"{count:,}") for name, count in found["parameters_parts"].items()]
    macs = [(name, f"{count:,}") for name, count in found["macs_parts"].items()]
    inputs = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in found["inputs"].items())
    stages = [(stage["stage"], " x ".join(map(str, stage["shape"]))) for stage in found["walk"]]
    layers = [
        (row["layer"], row["formula"], f"{row['operations']:,}", row["sequential"], row["path"], row["used"])
        for row in found["layers"]
    ]
    head = ("layer", "complexity", "operations", "sequential", "longest path", "in this model")
    return "\n".join(
        [
            f"{found['parameters']:,} parameters", table((), parts, 2), "",
            f"{found['macs']:,} multiply-accumulates of a forward pass ({inputs})", table((), macs, 2), "",
            "the way through the model:", table(("stage", "output shape"), stages, 2), "",
            f"per layer, for n = {found['n']} tokens of d = {found['d']} features, kernel k = {found['kernel']}"
            " (1706.03762, table 1):", table(head, layers, 2),
        ]
    )  # fmt: skip


_SERIES = {"sizes": "image_size", "patch_size": "patch_size", "depth": "depth"}


def _growth(rows: list[dict[str, Any]], key: str) -> str:
    from vitral.training.memory_estimate import show_bytes

    cells = [
        (" x ".join(map(str, row[key])) if isinstance(row[key], list) else row[key], f"{row['parameters']:,}",
         f"{row['macs']:,}", show_bytes(row["forward_bytes"]), show_bytes(row["training_bytes"]))
        for row in rows
    ]  # fmt: skip
    return table((key.replace("_", " "), "parameters", "multiply-accumulates", "forward", "training"), cells, 2) + "\n"


def compute_lines(found: dict[str, Any]) -> list[str]:
    """Return parameters and multiply-accumulates per image, in total and by part, as lines."""
    whole, macs = found["macs_all_tokens"], found["macs"]
    scale, unit = next((pair for pair in ((1e9, "G"), (1e6, "M")) if macs >= pair[0]), (1e3, "k"))
    rows = [
        (name, f"{count / scale:,.2f} {unit}MAC", f"{2 * count / scale:,.1f} {unit}FLOP")
        for name, count in (("all tokens (as published)", whole), ("computed here", macs))
    ]
    parts = [(name, f"{count:,}", f"{100 * count / macs:.1f} %") for name, count in found["macs_parts"].items()]
    height, width = found["image_size"]
    return [
        f"{found['parameters']:,} parameters",
        f"forward pass of one image of {height} x {width}: multiply-accumulates (MAC), operations (FLOP)",
        table((), rows, 2),
        *(["  (the last block computes only the tokens that the head reads)"] if whole != macs else []),
        f"parts of the {macs:,} multiply-accumulates computed here:", table((), parts, 2),
    ]  # fmt: skip


def parts_table(parts: dict[str, int]) -> str:
    """Return the non-empty parts of the memory as a table."""
    from vitral.training.memory_estimate import show_bytes

    return table((), [(name, show_bytes(count)) for name, count in parts.items() if count], 2)
