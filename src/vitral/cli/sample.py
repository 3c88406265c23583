"""`vitral sample`."""

from __future__ import annotations

from typing import Any

from vitral.cli.command import Answer, Arguments, command
from vitral.run.command_options import SampleOptions

HELP = """usage: vitral sample MODEL out=DIR [key=value ...] [--json]

Draws images from an Image GPT (objective.kind=igpt), code by code, or all codes in a few steps where it has learned
hidden ones (model.mask_ratio=cosine): a PNG of each, one of all, and an HTML page. With data= the page shows the
nearest train images beside each sample, and how many samples are copies of one. Sample i of a seed is the same for any
n and batch_size. `vitral docs visual-tokens` explains models and samples.

{keys}

examples:
  vitral sample runs/pixels out=samples
  vitral sample runs/pixels out=samples n=64 temperature=0.9 top_k=8 data=digits
  vitral sample runs/pixels out=threes class=3          of a model with model.class_tokens
  vitral sample runs/pixels out=halves complete=digit.png
  vitral sample runs/masked out=samples steps=12        of a model with model.mask_ratio=cosine
"""


@command(HELP, SampleOptions)
def run(arguments: Arguments, options: SampleOptions) -> Answer:
    """Sample and print."""
    from vitral.run.sample import sample

    found = sample(arguments.words[0], options)
    return Answer(found, lambda: _text(found))


def _text(found: dict[str, Any]) -> str:
    bits = f", {found['bits_per_token']:.3f} bits per token" if "bits_per_token" in found else ""
    lines = [f"{len(found['samples'])} samples{bits}"]
    if "train" in found:
        near = found["train"]
        compared = f", of {near['split']} images {near['reference']:.3f}" if "reference" in near else ""
        lines.append(f"mean distance to the nearest of {near['count']:,} train images {near['distance']:.3f}{compared}")
        lines.append(f"exact copies of a train image: {near['copies']}")
    else:
        lines.append("not compared with train images: data=DATA does it")
    return "\n".join([*lines, found["page"]])
