"""Figures of `vitral attack` as SVG bytes. Importing this file imports matplotlib.

Shape letters: N images, R runs, S logged steps, K bins of confidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vitral.evaluate.metric import eps_text
from vitral.report.plots import BLUE, GRAY, ORANGE, SERIES, single_axes, style, svg


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


def training_accuracies(curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> bytes:
    """Plot top-1 of train images over the steps of adversarial training, under FGSM and under PGD in two panels: one
    line per variant, the mean of its runs, with their range as a band.

    curves: by variant `step`, `fgsm_top1` and `pgd_top1`, one list per run; at most five variants.
    """
    assert len(curves) <= len(SERIES)
    with style():
        figure = Figure(figsize=(7.8, 3.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (key, title) in zip(
            panels, {"fgsm_top1": "under FGSM", "pgd_top1": "under PGD"}.items(), strict=True
        ):
            for (name, runs), (color, dash) in zip(curves.items(), SERIES, strict=False):
                steps, values_RS = runs["step"][0], np.array(runs[key])
                axes.fill_between(steps, values_RS.min(0), values_RS.max(0), color=color, alpha=0.15, linewidth=0)
                axes.plot(steps, values_RS.mean(0), dash, color=color, label=name)
            axes.set(xlabel="step", title=title, ylim=(-0.02, 1.02), xlim=(0, None))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
        panels[0].set_ylabel("top-1 accuracy of train images (%)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(curves))
        return svg(figure)


def confidence_curves(shares: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """Plot how many images have a confidence, in % and steps of equal width: one panel per kind of images, one line per
    variant.

    shares: of the images in each bin of [0, 1], by kind of images and variant; at most five variants.
    """
    with style():
        figure = Figure(figsize=(2.6 * len(shares) + 0.4, 3.1), layout="constrained")
        panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
        for axes, (title, variants) in zip(panels, shares.items(), strict=True):
            assert len(variants) <= len(SERIES)
            for (name, share_K), (color, dash) in zip(variants.items(), SERIES, strict=False):
                edges = np.linspace(0, 1, len(share_K) + 1)
                axes.stairs(share_K, edges, color=color, linestyle=dash, linewidth=1.5, label=name)
            axes.set(xlabel="confidence (%)", title=title, xlim=(0, 1), ylim=(0, 1))
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
        panels[0].set_ylabel("images (%)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return svg(figure)
