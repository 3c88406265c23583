"""`vitral explain`."""

from __future__ import annotations

import json
from typing import Any

from vitral.cli.images import check_exist, image_paths
from vitral.cli.main import Arguments
from vitral.cli.usage import page
from vitral.config import build, with_overrides
from vitral.errors import UserError
from vitral.run.config import expand_data
from vitral.run.options import ExplainOptions

HELP = """usage: vitral explain MODEL [IMAGE|FOLDER...] out=DIR [key=value ...] [--json]

Looks inside a model and writes PNG pictures and one HTML page. Of each image: rollout and gradient-weighted attention
beside integrated gradients, the attention of layers and heads, likeness and length of the patches, the answer after
each layer, with reduce= which patches become one token. Of the model, with or without images: its patch filters, its
positions, and with data= how far its attention reaches. With compare=OTHER which of its blocks say what OTHER's say
(CKA), a ResNet's too. MODEL is what predict takes. `vitral docs looking-inside` says what each picture means.

key=default, meaning (type):

{keys}

examples:
  vitral explain vitral-digits digit.png out=inside
  vitral explain runs/mine photo.jpg out=inside token=3,5 layers=0,-1 class=dog
  vitral explain runs/mine photos/ out=inside methods=rollout,integrated_gradients gradients.steps=256
  vitral explain vitral-digits out=inside data=digits
  vitral explain runs/mine compare=runs/resnet data=photos/ out=inside
"""


def run(arguments: Arguments) -> int:
    """Draw and print."""
    if arguments.help:
        print(page(HELP, ExplainOptions, arguments.words), end="")
        return 0
    if not arguments.words:
        raise UserError("a model is wanted", hint="vitral explain MODEL [IMAGE ...] out=DIR")
    options = build(ExplainOptions, with_overrides(ExplainOptions, {}, expand_data(arguments.pairs)))
    model, *names = arguments.words
    check_exist(names)
    from vitral.run.explain import explain

    found = explain(model, image_paths(names) if names else [], options)
    print(json.dumps(found, ensure_ascii=False) if arguments.json else _text(found))
    return 0


def _text(found: dict[str, Any]) -> str:
    lines: list[str] = []
    for each in found["images"]:
        lines.append(each["image"] + (f": {each['answer']}" if "answer" in each else ""))
        if "integrated_gradients" in each:
            sums = each["integrated_gradients"]
            lines.append(
                f"  integrated gradients of class {each['class']['label']}: the logit rises by"
                f" {sums['logit_difference']:.4f}, gap {sums['gap']:.2g} after {sums['steps']} steps"
            )
        if "lens" in each:
            lines.append("  after each layer: " + ", ".join(row["label"] for row in each["lens"]))
    if "distance" in found["views"]:
        far = found["views"]["distance"]
        means = ", ".join(f"{sum(heads) / len(heads):.1f}" for heads in far["layers"])
        lines.append(f"attention distance of the layers over {far['count']} images: {means} px")
    if "cka" in found["views"]:
        both = found["views"]["cka"]
        means = [max(row) for row in both["values"]]
        lines.append(f"most similar blocks of {both['compare']}: CKA {min(means):.2f} to {max(means):.2f}")
    lines += [f"left out: {note}" for note in found["notes"]]
    count = len(found["files"]) - 2
    return "\n".join([*lines, f"{found['page']} and {count} picture{'s' * (count != 1)}"])
