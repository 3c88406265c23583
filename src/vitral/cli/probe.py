"""`vitral probe`."""

from __future__ import annotations

from typing import Any

from vitral.cli.command import Answer, Arguments, command, missed
from vitral.cli.images import skipped_lines
from vitral.cli.table import table
from vitral.run.command_options import ProbeOptions

HELP = """usage: vitral probe MODEL [key=value ...] [--json]

Measures a model's frozen features, without its head: fits a simple classifier on the train images and evaluates it on
the test images (or on the validation images, held out of train if there are none). The classes need not be the model's
own. Without data= the images are those of the training run. Top-1 below min_top1 gives exit code 3.

kind=knn      k nearest neighbors: weighted votes of the train images; top-1 for each knn.k
kind=linear   logistic regression; its penalty is chosen on held-out train images
kind=fewshot  least squares on a few train images of each class; the mean over several draws
layer=auto    kind=linear on the features after every layer of a Transformer; the best one by held-out train images

{keys}

examples:
  vitral probe vitral-digits
  vitral probe runs/mine data=OTHER_PHOTOS kind=linear
  vitral probe runs/pixels kind=linear layer=auto out=layers.png
  vitral probe runs/mine kind=fewshot fewshot.shots=5,10 features=cls min_top1=0.6
"""


@command(HELP, ProbeOptions)
def run(arguments: Arguments, options: ProbeOptions) -> Answer:
    """Probe and print."""
    from vitral.run.probe import probe

    found = probe(arguments.words[0], options)
    text = f"top-1 {found['top1']:.4f} is below min_top1={options.min_top1}"
    return Answer(found, lambda: _table(found), missed([text] * (found["top1"] < (options.min_top1 or 0))))


def _table(found: dict[str, Any]) -> str:
    low, high = found["top1_interval"]
    first = (
        f"top-1  {100 * found['top1']:.2f} %  (95 % interval {100 * low:.2f} to {100 * high:.2f} %)"
        f" of {found['count']} {found['split']} images, by {found['train_count']} of train"
    )
    return "\n".join([first, *_TABLES[found["kind"]](found), *_layers(found), *skipped_lines(found["skipped"])])


def _layers(found: dict[str, Any]) -> list[str]:
    if "per_layer" not in found:
        return []
    rows = [(name, _percent(row["val_top1"]), _percent(row["top1"])) for name, row in found["per_layer"].items()]
    names = "layer", "held-out top-1", f"{found['split']} top-1"
    return ["", f"layer {found['features']}, chosen on held-out train images", "", table(names, rows)]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _knn(found: dict[str, Any]) -> list[str]:
    chosen = ", the best of these on the evaluated images" if len(found["per_k"]) > 1 else ""
    rows = [(k, _percent(row["top1"])) for k, row in found["per_k"].items()]
    return [f"kind=knn with k = {found['best_k']}{chosen}", "", table(("k", "top-1"), rows)]


def _linear(found: dict[str, Any]) -> list[str]:
    rows = [(l2, _percent(share)) for l2, share in found["val_top1"].items()]
    title = f"kind=linear with l2 = {found['l2']:g}"
    return [f"{title}, chosen on held-out train images", "", table(("l2", "held-out top-1"), rows)] if rows else [title]


def _fewshot(found: dict[str, Any]) -> list[str]:
    rows = [
        (shots, _percent(row["top1"]), "-" if row["std"] is None else _percent(row["std"]))
        for shots, row in found["per_shot"].items()
    ]
    last, row = list(found["per_shot"].items())[-1]
    fewer = f" where there are as many ({row['images']} in all, at least {row['fewest']} per class)" * row["short"]
    title = f"kind=fewshot with {last} train images per class{fewer}, mean of {len(row['seeds'])} draws"
    return [title, "", table(("shots", "top-1", "standard deviation over the draws"), rows)]


_TABLES = {"knn": _knn, "linear": _linear, "fewshot": _fewshot}
