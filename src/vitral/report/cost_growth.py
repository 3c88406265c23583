"""Compute and memory of a model over image size, patch size and depth, as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vitral.report.explain_plots import png
from vitral.report.plots import BLUE, ORANGE, style

_AXES = {"sizes": "image side (px)", "patch_size": "patch side (px)", "depth": "blocks"}


def growth_plot(series: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """One column per series of `vitral summary` (sizes, patch_size, depth), each with the multiply-accumulates per
    image above, and below the memory per image in training and in a forward pass."""
    shown = {name: rows for name, rows in series.items() if rows}
    with style():
        figure = Figure(figsize=(3.2 * len(shown), 5.2), layout="constrained", dpi=150)
        axes = figure.subplots(2, len(shown), sharex="col", squeeze=False)
        for column, (name, rows) in enumerate(shown.items()):
            along = [row["image_size"][0] if name == "sizes" else row[name] for row in rows]
            work, memory = axes[0, column], axes[1, column]
            work.plot(along, [row["macs"] / 1e9 for row in rows], "o-", color=BLUE, markersize=4)
            for key, label, look in (("training_bytes", "training", "o-"), ("forward_bytes", "forward pass", "s--")):
                color = ORANGE if key == "training_bytes" else BLUE
                memory.plot(along, [row[key] / 1e6 for row in rows], look, color=color, markersize=4, label=label)
            for each in (work, memory):
                each.set_ylim(bottom=0)
                each.set_xlim(0, 1.06 * max(along))
            memory.set_xlabel(_AXES[name])
            memory.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes[0, 0].set_ylabel("10⁹ multiply-accumulates per image")
        axes[1, 0].set_ylabel("memory per image (MB)")
        axes[1, 0].legend()
        return png(figure)
