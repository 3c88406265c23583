"""Figures of an evaluation of detection, as SVG bytes. K classes, Q points of recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vitral.report.plots import BLUE, GRAY, INK, ORANGE, SERIES, short, single_axes, svg

_NAMED = 4  # classes with a curve of their own color


def precision_recall(curves: Mapping[str, Sequence[float]]) -> bytes:
    """SVG: precision over recall of each class, both in %, and their mean. Of more than four classes those with the
    smallest area below are named, and the others are gray."""
    recall_Q = np.linspace(0, 1, len(next(iter(curves.values()))))
    worst = sorted(curves, key=lambda name: sum(curves[name]))[:_NAMED]
    with single_axes(6.4, 3.6) as (figure, axes):
        for name in set(curves) - set(worst):
            axes.plot(recall_Q, curves[name], color=GRAY, linewidth=0.7, alpha=0.6)
        looks = [look for look in SERIES if look[0] != INK]
        for name, (color, dash) in zip(worst, looks, strict=False):
            axes.plot(recall_Q, curves[name], dash, color=color, linewidth=1.2, label=short(name, 24))
        if len(curves) > 1:
            axes.plot(
                recall_Q, np.mean(list(curves.values()), 0), color=INK, linewidth=2.2, label="mean of all classes"
            )
        axes.set(xlabel="recall (%)", ylabel="precision (%)", xlim=(0, 1.005), ylim=(0, 1.02))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, symbol=""))
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        for text in legend.get_texts():
            text.set_parse_math(False)
        return svg(figure, crop=True)


def boxes_by_size(sizes: Sequence[Mapping[str, Any]]) -> bytes:
    """SVG: true boxes by the root of their area, found ones below, missed ones on top, with the share that is found."""
    names = [f"{row['side'][0]:.3g}–{row['side'][1]:.3g}" for row in sizes]
    found, missed = (np.array([row[key] for row in sizes]) for key in ("found", "missed"))
    places = np.arange(len(sizes))
    with single_axes(max(3.6, 1.4 + 0.56 * len(sizes)), 3.0) as (figure, axes):
        axes.bar(places, found, color=BLUE, label="found")
        axes.bar(places, missed, bottom=found, color=ORANGE, label="missed")
        for place, (hits, lost) in enumerate(zip(found.tolist(), missed.tolist(), strict=True)):
            if hits + lost:
                share = f"{100 * hits / (hits + lost):.0f} %"
                axes.annotate(
                    share, (place, hits + lost), (0, 2), textcoords="offset points", ha="center", fontsize=7.5
                )
        axes.set_xticks(places, names, rotation=90 if len(sizes) > 6 else 0, fontsize=8)
        axes.set(
            xlabel="root of the area (pixels of the file)", ylabel="boxes", ylim=(0, 1.12 * (found + missed).max())
        )
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return svg(figure, crop=True)


def error_bars(gains: Mapping[str, float]) -> bytes:
    """SVG: AP50 gained by correcting each kind of error, in points."""
    with single_axes(4.6, 0.5 + 0.36 * len(gains)) as (figure, axes):
        places = np.arange(len(gains))[::-1]
        axes.barh(places, [100 * gain for gain in gains.values()], color=BLUE)
        axes.set_yticks(places, list(gains))
        axes.set(xlabel="AP50 gained (points)")
        axes.grid(visible=False, axis="y")
        return svg(figure, crop=True)
