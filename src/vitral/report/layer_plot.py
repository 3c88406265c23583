"""Accuracy of a classifier on the features of each layer of a model, as a PNG."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitral.report.explain_plots import png
from vitral.report.plots import BLUE, ORANGE, style


def layer_plot(per_layer: Mapping[str, Mapping[str, float]], split: str) -> bytes:
    """`per_layer` of `vitral probe layer=auto`, in order: top-1 on held-out train images and on the split, and a mark
    where the former is best."""
    names = list(per_layer)
    with style():
        figure = Figure(figsize=(5.2, 3.2), layout="constrained", dpi=150)
        axes = figure.subplots()
        for key, label, look in (("val_top1", "held-out train images", "s--"), ("top1", f"{split} images", "o-")):
            values = [100 * per_layer[name][key] for name in names]
            axes.plot(
                range(len(names)), values, look, color=BLUE if key == "top1" else ORANGE, markersize=4, label=label
            )
        best = max(range(len(names)), key=lambda place: per_layer[names[place]]["val_top1"])
        axes.axvline(best, color=ORANGE, linewidth=0.8, linestyle=":")
        axes.set_xlabel("layer" if names[0] != "embed" else "layer (0: embedding)")
        axes.set_ylabel("top-1 of a linear classifier (%)")
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        axes.legend()
        return png(figure)
