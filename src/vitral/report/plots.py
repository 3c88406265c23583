"""Figures of a run and its evaluation, as bytes: dark on light, in colors that color-blind readers can distinguish.

Importing this file imports matplotlib; import it only when a figure is expected. Figures are drawn on Figure objects
with rc settings of their own, so neither pyplot's state nor a user's matplotlibrc is touched or heeded. Shape letters:
C classes, K bins of confidence.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from vitral.evaluate.calibration import ReliabilityBins
from vitral.evaluate.classification import wilson_interval
from vitral.evaluate.metric import Metric

# Okabe and Ito 2008, "Color Universal Design".
BLUE, ORANGE, GRAY, INK = "#0072B2", "#D55E00", "#767676", "#1b1f24"
# Color and line style of each of up to five curves.
SERIES = ((BLUE, "-"), (ORANGE, "--"), ("#009E73", "-."), (INK, ":"), ("#CC79A7", "-"))
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text, so that the reader's fonts cover every script
    "svg.hashsalt": "vitral",  # the same figure, the same bytes
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRAY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": "#e3e5e8",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
}
_MAX_POINTS = 400  # of one curve
_MAX_NUMBERS = 20  # classes up to which the cells of a confusion matrix hold numbers
_MAX_LABELS = 100  # classes up to which every one is named in the figure


@contextmanager
def style() -> Generator[None]:
    """Apply the style of all figures, independent of the user's matplotlib settings."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Glyphs that the font of the layout lacks are drawn by the browser with another font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast("Any", _STYLE))
        yield


@contextmanager
def single_axes(width: float, height: float, dpi: float | None = None) -> Generator[tuple[Figure, Axes]]:
    """Yield a styled figure of one plot; width and height in inches."""
    with style():
        figure = Figure(figsize=(width, height), layout="constrained", dpi=dpi)
        yield figure, figure.add_subplot()


def svg(figure: Figure, crop: bool = False) -> bytes:
    """Return the figure as SVG bytes, without varying metadata. crop: to what is drawn."""
    buffer = io.BytesIO()
    box: Any = {"bbox_inches": "tight", "pad_inches": 0.08} if crop else {}
    figure.savefig(buffer, format="svg", metadata={"Date": None}, **box)
    return buffer.getvalue()


class _Panel(NamedTuple):
    """A panel of the training curves: keys of the rows by the names of their lines, and how the values are shown."""

    label: str  # of the axis
    lines: Mapping[str, str]
    format: str = ""
    from_zero: bool = True
    unit: float = 1.0  # what the values are divided by


def training_curves(rows: Sequence[Mapping[str, Any]], primary: Metric, loss_unit: str = "") -> dict[str, bytes]:
    """SVG panels over the steps: "Loss", the primary metric on validation data, "Learning rate", and what shows a
    collapse of learning without labels.

    `rows` are those of metrics.jsonl: `step` with `loss`, `lr`, `val_loss`, `val_NAME` of the primary metric,
    `teacher_entropy` (nats), `feature_std`. A panel without a finite value is left out. Long curves are drawn as means
    of neighboring rows.
    """
    unit = "%" if primary.format == "percent" else primary.unit
    panels = {
        "Loss": _Panel(_with_unit("loss", loss_unit), {"training": "loss", "validation": "val_loss"}),
        f"Validation {primary.label}": _Panel(
            _with_unit(primary.label, unit), {"validation": f"val_{primary.name}"}, primary.format, from_zero=False
        ),
        "Teacher entropy": _Panel("entropy (nats)", {"teacher": "teacher_entropy"}),
        "Spread of the features": _Panel("standard deviation (1: uniform)", {"features": "feature_std"}),
        "Learning rate": _Panel("learning rate", {"learning rate": "lr"}, "scientific"),
    }
    return _all_drawn(panels, rows)


def unlabeled_curves(rows: Sequence[Mapping[str, Any]], classes: int) -> dict[str, bytes]:
    """SVG panels over the steps of semi-supervised learning, from rows of metrics.jsonl: the share of unlabeled images
    that teach, the entropy of the mean prediction over its largest value, ln(classes), and the loss on unlabeled
    images. A panel without a finite value is left out."""
    panels = {
        "Unlabeled images that teach": _Panel("unlabeled images (%)", {"share": "pseudo_share"}, "percent"),
        "Entropy of the mean prediction": _Panel(
            "entropy / ln(classes)", {"entropy": "class_entropy"}, unit=math.log(max(classes, 2))
        ),
        "Loss on unlabeled images": _Panel("loss, without its weight", {"loss": "unlabeled_loss"}),
    }
    return _all_drawn(panels, rows)


def _all_drawn(panels: Mapping[str, _Panel], rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    figures: dict[str, bytes] = {}
    for title, panel in panels.items():
        curves = {name: curve for name, key in panel.lines.items() if (curve := _curve(rows, key, panel.unit))[0]}
        if curves:
            with style():
                figures[title] = svg(_drawn(title, panel, curves))
    return figures


def _with_unit(label: str, unit: str) -> str:
    return f"{label} ({unit})" if unit else label


def _drawn(title: str, panel: _Panel, curves: Mapping[str, tuple[list[float], list[float]]]) -> Figure:
    figure = Figure(figsize=(3.9, 2.7), layout="constrained")
    axes = figure.add_subplot()
    for name, (steps, values) in curves.items():
        color, dash = (ORANGE, "--") if name == "validation" else (BLUE, "-")
        marker = "o" if len(steps) <= 30 else ""
        axes.plot(steps, values, dash, color=color, label=name, marker=marker, markersize=3)
    axes.set(xlabel="step", ylabel=panel.label, title=title)
    axes.set_xlim(0, 1.02 * max(1, *(step for steps, _ in curves.values() for step in steps)))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if panel.from_zero and axes.dataLim.y0 >= 0:
        _from_zero(axes)
    if panel.format == "percent":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.005), min(high, 1.005))
    elif panel.format == "scientific":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=False)
    if len(panel.lines) > 1:
        axes.legend()
    return figure


def _from_zero(axes: Axes) -> None:
    """Set the y axis from 0 to 6 % above the highest value; the margin of autoscaling depends on the values' range."""
    axes.set_ylim(0, 1.06 * axes.dataLim.y1 or None)


def fraction_curves(rows: Sequence[Mapping[str, Any]], shift: int) -> bytes:
    """SVG: top-1 of each `model` over the `images` it learned from, and beside it how far shifts by so many pixels
    leave the answer; `mean` and `consistency_mean` with their standard deviations as bars."""
    with style():
        figure = Figure(figsize=(7.8, 2.9), layout="constrained")
        panels = (("mean", "std", "top-1 accuracy (%)"),
                  ("consistency_mean", "consistency_std", f"same class after a {shift} px shift (%)"))  # fmt: skip
        for place, (mean, std, title) in enumerate(panels, 1):
            axes = figure.add_subplot(1, 2, place)
            for model, color, dash in (("ViT", BLUE, "-"), ("CNN", ORANGE, "--")):
                own = [row for row in rows if row["model"] == model]
                x, y, bars = ([row[key] for row in own] for key in ("images", mean, std))
                axes.errorbar(x, y, bars, color=color, fmt=f"o{dash}", markersize=3, capsize=2, label=model)
            axes.set(xlabel="train images", title=title, xscale="log")
            counts = sorted({row["images"] for row in rows})
            axes.set_xticks(counts, [f"{count:,}" for count in counts])
            axes.set_xticks([], minor=True)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
            axes.legend()
        return svg(figure)


def accuracy_over_work(curves: Mapping[str, Sequence[tuple[float, float, float, float]]]) -> bytes:
    """SVG: top-1 over the remaining share of multiply-accumulates, one line per compression method.

    curves: points (share of the work, top-1, lower and upper end of its 95 % interval), all in [0,1], by name; a curve
    of one point is drawn as a point. At most four.
    """
    looks = ((BLUE, "o-"), (ORANGE, "s--"), (INK, "D:"), (GRAY, "^-."))
    assert len(curves) <= len(looks)
    with single_axes(6.2, 3.6) as (figure, axes):
        for (name, points), (color, look) in zip(curves.items(), looks, strict=False):
            x, y, low, high = (list(values) for values in zip(*sorted(points), strict=True))
            bars = [[b - a for a, b in zip(low, y, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
            axes.errorbar(x, y, bars, color=color, fmt=look, markersize=4, capsize=2, elinewidth=0.8, label=name)
        axes.set(xlabel="remaining multiply-accumulates (%)", ylabel="top-1 accuracy (%)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))  # whole percents
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        axes.legend(loc="lower right")
        return svg(figure)


def accuracy_over_labels(curves: Mapping[str, Sequence[tuple[int, float, float, float]]]) -> bytes:
    """SVG: test accuracy over the labels per class, logarithmic, one line per method.

    curves: points (labels per class, mean accuracy, smallest and largest one), all accuracies in [0,1], by name; at
    most four.
    """
    looks = ((INK, "D:"), (BLUE, "o-"), (ORANGE, "s--"), (GRAY, "^-."))
    assert len(curves) <= len(looks)
    counts = sorted({point[0] for points in curves.values() for point in points})
    with single_axes(6.2, 3.6) as (figure, axes):
        for (name, points), (color, look) in zip(curves.items(), looks, strict=False):
            x, y, low, high = (list(values) for values in zip(*sorted(points), strict=True))
            bars = [[b - a for a, b in zip(low, y, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
            axes.errorbar(x, y, bars, color=color, fmt=look, markersize=4, capsize=2, elinewidth=0.8, label=name)
        axes.set(xlabel="labels per class", ylabel="test accuracy (%)", xscale="log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        axes.legend(loc="lower right")
        return svg(figure)


def predicted_over_true(true_N: Any, predicted_N: Any, name: str) -> bytes:
    """SVG: predicted over true numbers, one point per image, with the diagonal."""
    with single_axes(4.4, 4.0) as (figure, axes):
        ends = [min(true_N.min(), predicted_N.min()), max(true_N.max(), predicted_N.max())]
        axes.plot(ends, ends, "--", color=GRAY, linewidth=1)
        axes.plot(true_N, predicted_N, "o", color=BLUE, markersize=3, alpha=0.5, rasterized=len(true_N) > _MAX_POINTS)
        axes.set(xlabel=f"true {short(name, 40)}", ylabel=f"predicted {short(name, 40)}")
        return svg(figure)


def residuals(true_N: Any, predicted_N: Any, name: str) -> bytes:
    """SVG: error over true number, one point per image."""
    with single_axes(4.4, 3.0) as (figure, axes):
        axes.axhline(0, color=GRAY, linestyle="--", linewidth=1)
        axes.plot(
            true_N, predicted_N - true_N, "o", color=ORANGE, markersize=3, alpha=0.5,
            rasterized=len(true_N) > _MAX_POINTS,
        )  # fmt: skip
        axes.set(xlabel=f"true {short(name, 40)}", ylabel="predicted - true")
        return svg(figure)


def _curve(rows: Sequence[Mapping[str, Any]], key: str, unit: float) -> tuple[list[float], list[float]]:
    """Steps and finite values in this unit, at most `_MAX_POINTS` of them."""
    points = [
        (float(row["step"]), float(row[key]) / unit)
        for row in rows
        if isinstance(row.get(key), int | float) and "step" in row and math.isfinite(row[key])
    ]
    run = math.ceil(len(points) / _MAX_POINTS) or 1
    means = [np.mean(points[start : start + run], axis=0) for start in range(0, len(points), run)]
    return [float(mean[0]) for mean in means], [float(mean[1]) for mean in means]


def confusion_matrix(confusion_CC: ArrayLike, classes: Sequence[str]) -> bytes:
    """SVG of a confusion matrix (row = truth), colored by the share of the row.

    The counts stand in the cells up to 20 classes, every class is named up to 100. The color grows with the square
    root of the share, so that rare mistakes show.
    """
    counts_CC = np.asarray(confusion_CC, dtype=np.int64)
    share_CC = counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1)
    count = len(classes)
    cell = 0.42 if count <= _MAX_NUMBERS else max(8.8 / count, 0.088)  # inches
    cell = cell if count <= _MAX_LABELS else 8.8 / count
    with style():
        figure = Figure(figsize=(count * cell + 1.0, count * cell))
        axes = figure.add_axes((0.0, 0.0, count * cell / (count * cell + 1.0), 1.0))
        image = axes.imshow(share_CC, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto", interpolation="nearest")
        axes.grid(visible=False)
        _name_classes(axes, classes, size=9.5 if count <= _MAX_NUMBERS else max(6.0, min(9.5, cell * 55)))
        axes.set(xlabel="predicted class", ylabel="true class")
        if count <= _MAX_NUMBERS:
            _write_counts(axes, counts_CC, share_CC)
        height = min(1.0, 3.5 / (count * cell))
        bar_axes = figure.add_axes((1 - 0.8 / (count * cell + 1.0), 1 - height, 0.16 / (count * cell + 1.0), height))
        bar = figure.colorbar(image, cax=bar_axes, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
        bar.ax.set_yticklabels(["0", "1", "5", "20", "50", "100"])
        bar.set_label("share of the true class (%)")
        return svg(figure, crop=True)


def _name_classes(axes: Axes, classes: Sequence[str], size: float) -> None:
    every = math.ceil(len(classes) / _MAX_LABELS)
    places = list(range(0, len(classes), every))
    names = [short(classes[place], 24) for place in places]
    turn = 90 if max(map(len, names)) > 3 or len(classes) > _MAX_NUMBERS else 0
    axes.set_xticks(places, names, rotation=turn, fontsize=size, parse_math=False)
    axes.set_yticks(places, names, fontsize=size, parse_math=False)
    axes.tick_params(length=2, color=GRAY)
    axes.spines[["left", "bottom"]].set_visible(False)


def _write_counts(axes: Axes, counts_CC: NDArray[np.int64], share_CC: NDArray[np.float64]) -> None:
    for (row, column), number in np.ndenumerate(counts_CC):
        if number:
            color = "white" if share_CC[row, column] > 0.35 else INK
            size = 9 if number < 1000 else 7
            axes.text(column, row, str(number), ha="center", va="center", color=color, fontsize=size)


def reliability_diagram(bins: ReliabilityBins) -> bytes:
    """SVG of accuracy over confidence (both %) with 95 % Wilson intervals, and below it the samples in each bin.

    On the diagonal a model is calibrated; below it, overconfident. Guo et al. 2017 (arXiv 1706.04599), figure 1.
    """
    number = len(bins.count_K)
    middle_K, filled_K = (np.arange(number) + 0.5) / number, bins.count_K > 0
    x_F, accuracy_F, count_F = bins.confidence_K[filled_K], bins.accuracy_K[filled_K], bins.count_K[filled_K]
    limits = [wilson_interval(round(a * n), int(n)) for a, n in zip(accuracy_F, count_F, strict=True)]
    errors = np.abs(np.array(limits).T - accuracy_F)
    with style():
        figure = Figure(figsize=(4.6, 4.8), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.1))
        top.plot([0, 1], [0, 1], color=GRAY, linestyle="--", linewidth=1.2, label="calibrated")
        bars = {"color": BLUE, "markersize": 5, "capsize": 2.5, "elinewidth": 1.2}
        top.errorbar(x_F, accuracy_F, yerr=errors, fmt="o", label="this model, 95 % interval", **bars)
        top.set(ylabel="accuracy (%)", xlim=(0, 1.015), ylim=(-0.02, 1.02))
        top.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2)
        bottom.bar(middle_K, bins.count_K, width=0.9 / number, color=BLUE)
        for place, count in zip(middle_K[filled_K], count_F, strict=True):
            bottom.annotate(
                _brief(count), (place, count), (0, 1.5), textcoords="offset points", ha="center", fontsize=7
            )
        bottom.set_yscale("log")
        bottom.set(xlabel="confidence (%)", ylabel="samples", ylim=(0.6, 6.0 * bins.count_K.max()))
        bottom.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
        bottom.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _brief(value)))
        bottom.yaxis.set_major_locator(LogLocator(numticks=6))
        bottom.yaxis.set_minor_formatter(NullFormatter())
        top.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
        return svg(figure)


def _brief(number: float) -> str:
    return f"{number:.0f}" if number < 10_000 else f"{number / 1000:.0f}k"


def short(text: str, length: int) -> str:
    """The text on one line, its middle left out where it is longer than `length` characters.

    What can't be drawn (control characters, halves of surrogate pairs in file names) becomes a replacement character.
    """
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return text if len(text) <= length else f"{text[: length - length // 3 - 1]}…{text[-(length // 3) :]}"
