"""`vitral explain`."""

from __future__ import annotations

from typing import Any

from vitral.cli.command import Answer, Arguments, command
from vitral.cli.images import check_exist, image_paths
from vitral.errors import plural
from vitral.run.command_options import ExplainOptions
from vitral.run.text_options import TextExplainOptions

HELP = """usage: vitral explain MODEL [IMAGE|FOLDER...] out=DIR [key=value ...] [--json]

Visualizes a model as PNG pictures and one HTML page. For each image: rollout, gradient-weighted attention, integrated
gradients, the attention of layers and heads, similarity and norm of the patch tokens, the prediction after each layer,
and with reduce= which patches become one token. For the model, with or without images: patch filters, positions, and
with data= the attention distance. With compare=OTHER: the similarity (CKA) of its blocks with those of another model,
ResNets included. MODEL is as in `vitral predict`. `vitral docs interpretability` explains each picture.
Of a model that writes text: the best texts, the most probable tokens at each step, and which part of the source each
layer and head attends to as each token is written; --text TEXT reads a text. `vitral explain MODEL --help` shows its
keys.

{keys}

examples:
  vitral explain vitral-digits digit.png out=inside
  vitral explain runs/mine photo.jpg out=inside token=3,5 layers=0,-1 class=dog
  vitral explain runs/mine photos/ out=inside methods=rollout,integrated_gradients gradients.steps=256
  vitral explain vitral-digits out=inside data=digits
  vitral explain runs/mine compare=runs/resnet data=photos/ out=inside
  vitral explain runs/TEXT --text "physics" out=inside
"""


@command(HELP, ExplainOptions, text=TextExplainOptions)
def run(arguments: Arguments, options: ExplainOptions | TextExplainOptions) -> Answer:
    """Draw and print."""
    model, *names = arguments.words
    check_exist(names)
    if isinstance(options, TextExplainOptions):
        from vitral.run.explain_text import explain_text

        written = explain_text(model, image_paths(names) if names else [], options)
        return Answer(written, lambda: _written(written))
    from vitral.run.explain import explain

    found = explain(model, image_paths(names) if names else [], options)
    return Answer(found, lambda: _text(found))


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
    return "\n".join([*lines, f"{found['page']} and {plural(len(found['files']) - 2, 'picture')}"])


def _written(found: dict[str, Any]) -> str:
    lines: list[str] = []
    for row in found["sources"]:
        lines.append(f"{row.get('image', row.get('source'))}: {row['text']}")
        lines += [f"  {each['score']:8.4f}  {each['text']}" for each in row["n_best"]]
    lines += [f"left out: {note}" for note in found["notes"]]
    return "\n".join([*lines, f"{found['page']} and {plural(len(found['files']) - 2, 'picture')}"])
