"""Figures of the comparison of sequence models. Shape letters: S runs, P points, T distances, R rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, PercentFormatter

from vitral.report.plots import BLUE, GRAY, INK, ORANGE, style, svg

Row = Mapping[str, Any]
_OTHER = (GRAY, "^-.")
_LOOKS = {
    "Transformer": (BLUE, "o-"), "LSTM, dot": (ORANGE, "s--"), "LSTM, additive": (INK, "D:"),
    "LSTM, no attention": _OTHER, "RNN": ("#009E73", "v-"),
}  # fmt: skip


def _percent(axes: Axes, *, errors: bool = False) -> None:
    """Of errors there may be more than symbols."""
    axes.set_ylim(0, None if errors else 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))


def _legend(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)


def learning_curves(rows: Sequence[Row], symbol: str) -> bytes:
    """Error of symbols and exact matches over the processor time of training: one line per model, the mean of its
    runs, with their range as a band."""
    with style():
        figure = Figure(figsize=(7.8, 3.4), layout="constrained")
        panels = figure.subplots(1, 2)
        titles = {"error_rate": f"errors per {symbol}", "exact_match": "texts without error"}
        for axes, (key, title) in zip(panels, titles.items(), strict=True):
            for row in rows:
                color, look = _LOOKS.get(row["model"], _OTHER)
                seconds_SP = np.array([[point["seconds"] for point in curve] for curve in row["curves"]])
                values_SP = np.array([[point[key] for point in curve] for curve in row["curves"]])
                x_P = seconds_SP.mean(0)
                axes.fill_between(x_P, values_SP.min(0), values_SP.max(0), color=color, alpha=0.15, linewidth=0)
                axes.plot(x_P, values_SP.mean(0), look, color=color, label=row["model"], markersize=3)
            axes.set(xlabel="processor seconds of training", title=f"{title} (%)", xlim=(0, None))
            _percent(axes, errors=key == "error_rate")
        _legend(figure, panels[0])
        return svg(figure)


def over_length(rows: Sequence[Row], keys: Mapping[str, str]) -> bytes:
    """Means over the runs by the length of the target, with the range as bars and the number n of texts: a panel
    for each of `keys`, by title."""
    with style():
        figure = Figure(figsize=(7.8, 3.4), layout="constrained")
        panels = figure.subplots(1, len(keys), squeeze=False)[0]
        for axes, (key, title) in zip(panels, keys.items(), strict=True):
            for row in rows:
                color, look = _LOOKS.get(row["model"], _OTHER)
                values_SP = np.array([[part[key] for part in run] for run in row["by_length"]])
                mean_P, places = values_SP.mean(0), np.arange(values_SP.shape[1])
                bars_2P = np.stack([mean_P - values_SP.min(0), values_SP.max(0) - mean_P])
                axes.errorbar(
                    places, mean_P, bars_2P, color=color, fmt=look, markersize=3, capsize=2, label=row["model"]
                )
            names = [f"{part['shortest']}-{part['longest']}\nn = {part['count']}" for part in rows[0]["by_length"][0]]
            axes.set_xticks(range(len(names)), names)
            axes.set(xlabel="tokens of the text", title=f"{title} (%)")
            _percent(axes, errors=key == "error_rate")
        _legend(figure, panels[0])
        return svg(figure)


def gradient_curves(rows: Sequence[Row]) -> bytes:
    """Gradient norms over the distance, logarithmic, at the start and after training: geometric mean of the runs, with
    their range as a band."""
    with style():
        figure = Figure(figsize=(7.8, 3.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (key, title) in zip(
            panels, {"start": "at the start", "trained": "after training"}.items(), strict=True
        ):
            for row in rows:
                color, look = _LOOKS.get(row["model"], _OTHER)
                norms_ST = np.maximum(np.array(row[key]), 1e-300)
                distances = np.arange(norms_ST.shape[1])
                axes.fill_between(distances, norms_ST.min(0), norms_ST.max(0), color=color, alpha=0.15, linewidth=0)
                mean_T = np.exp(np.log(norms_ST).mean(0))
                axes.plot(distances, mean_T, look.lstrip("os^Dv"), color=color, label=row["model"])
            axes.set(xlabel="distance (tokens)", title=title, yscale="log", xlim=(0, None))
        panels[0].set_ylabel("gradient norm")
        _legend(figure, panels[0])
        return svg(figure)


def speed_curves(rows: Sequence[Row]) -> bytes:
    """Processor time over length, both logarithmic: median of the rounds, with their range as a band. Keys of
    `seconds` are "MODEL: train" and, per token, others."""
    with style():
        figure = Figure(figsize=(7.8, 3.4), layout="constrained")
        panels = figure.subplots(1, 2)
        lengths = [row["length"] for row in rows]
        for axes, is_train, title in zip(panels, (True, False), ("training step", "decoded token"), strict=True):
            names = [name for name in rows[0]["seconds"] if name.endswith(": train") == is_train]
            for name, (color, look) in zip(sorted(names), ((ORANGE, "s--"), (BLUE, "o-"), (INK, "D:")), strict=False):
                times_PR = 1000 * np.array([row["seconds"][name] for row in rows])
                axes.fill_between(lengths, times_PR.min(1), times_PR.max(1), color=color, alpha=0.15, linewidth=0)
                label = name.removesuffix(": train").removesuffix(": decode").replace(": uncached", ", no cache")
                axes.plot(lengths, np.median(times_PR, 1), look, color=color, markersize=3, label=label)
            axes.set(xlabel="tokens per text", title=f"{title} (ms, 8 texts)", xscale="log", yscale="log")
            axes.set_xticks(lengths, [str(length) for length in lengths])
            axes.set_xticks([], minor=True)
            for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                ticks(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        _legend(figure, panels[1])
        return svg(figure)


def effect_bars(groups: Mapping[str, Sequence[Row]]) -> bytes:
    """Token accuracy and exact matches of changed models, one group per question: mean of the runs, and each run as a
    point."""
    with style():
        count = sum(map(len, groups.values())) + len(groups)
        figure = Figure(figsize=(7.8, 0.27 * count + 0.9), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        titles = {"token_accuracy": "next tokens right, given the true text", "exact_match": "texts written right"}
        for axes, (key, title) in zip(panels, titles.items(), strict=True):
            place, ticks = 0, list[tuple[int, str]]()
            for group in groups.values():
                for row in group:
                    axes.barh(place, row[f"{key}_mean"], color=BLUE, alpha=0.45)
                    axes.plot(row[key], [place] * len(row[key]), "o", color=INK, markersize=2.5)
                    ticks.append((place, row["model"]))
                    place += 1
                place += 1
            axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
            axes.set(xlim=(0, 1.03), title=f"{title} (%)")
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
        panels[0].invert_yaxis()
        return svg(figure)
