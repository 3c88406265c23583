"""Figures of `vitral attack` as SVG bytes. Importing this file imports matplotlib.

Shape letters: N images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter

from vitral.evaluate.metric import eps_text
from vitral.report.plots import BLUE, GRAY, ORANGE, single_axes, svg


def accuracy_over_eps(rows: Sequence[Mapping[str, Any]], eps: float, chance: float) -> bytes:
    """Plot top-1 over the size of the change with its interval as a band; `eps` is marked, `chance` a dashed line."""
    x = [row["eps"] for row in rows]
    with single_axes(4.9, 3.2) as (figure, axes):
        low, high = ([row["robust_top1_interval"][end] for row in rows] for end in (0, 1))
        axes.fill_between(x, low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 % interval")
        axes.plot(x, [row["robust_top1"] for row in rows], "o-", color=BLUE, markersize=4)
        axes.axhline(chance, color=GRAY, linestyle="--", linewidth=1, label="chance")
        axes.axvline(eps, color=ORANGE, linestyle=":", linewidth=1.2, label=f"eps {eps_text(eps)}")
        axes.set(xlabel="size of the change (eps)", ylabel="top-1 accuracy (%)", ylim=(-0.02, 1.02), xlim=(0, None))
        axes.set_xticks(x, [eps_text(each) for each in x], rotation=30 if len(x) > 4 else 0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
        axes.legend(loc="upper right", fontsize=8)
        return svg(figure)


def confidence_histogram(clean_N: Any, adversarial_N: Any) -> bytes:
    """Plot how many answers have a confidence, on clean and on adversarial images, as steps of 5 points."""
    edges = np.linspace(0, 1, 21)
    with single_axes(4.9, 2.8) as (figure, axes):
        for values_N, color, fill, name in (
            (clean_N, BLUE, 0.35, "clean"),
            (adversarial_N, ORANGE, 0.2, "adversarial"),
        ):
            counts = np.histogram(values_N, edges)[0]
            axes.stairs(counts, edges, fill=True, color=color, alpha=fill)
            axes.stairs(counts, edges, color=color, linewidth=1.5, label=name)
        axes.set(xlabel="confidence (%)", ylabel="images", xlim=(0, 1))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
        axes.legend(loc="upper left")
        return svg(figure)
