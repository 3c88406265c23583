"""Figures of `vitral explain` as PNG bytes: maps over their image, curves over the layers.

Importing this file imports matplotlib. Shape letters: H W height and width in pixels, D image channels, r c rows and
columns of patches, N patches, L layers, h heads, S classes, K components, P patch side.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image

from vitral.report.plots import BLUE, GRAY, ORANGE, short, single_axes, style

Array = NDArray[Any]

SMALL = 64  # pixels; pictures up to this side are enlarged without blur
HEAT, SIGNED = "viridis", "PuOr_r"  # both distinguishable for color-blind readers
_DPI = 100
_GAP = 6  # pixels between panels
_IMAGE_SHARE = 0.38  # weight of the image under a map
_LINES = ((BLUE, "-"), (ORANGE, "--"), ("#009E73", "-."), ("#CC79A7", ":"), (GRAY, "-"))
_MAX_TILES = 14  # positions of one axis that have a tile of their own


class Bar(NamedTuple):
    """A color scale beside panels; mixed: for maps that are blended with the image."""

    colors: str
    low: float
    high: float
    label: str
    mixed: bool = False


def as_picture(image_HWD: Array) -> Array:
    """Convert [H, W, D] in [0,1], D from 1 to 4, to red, green, blue as uint8 [H, W, 3]."""
    shown = image_HWD[:, :, :3] if image_HWD.shape[2] >= 3 else np.repeat(image_HWD[:, :, :1], 3, axis=2)
    return np.rint(shown.clip(0, 1) * 255).astype(np.uint8)


def enlarged(picture_HW3: Array, side: int) -> Array:
    """Resize the longer side to about `side`: small pictures by an integer factor without blur, others smoothly."""
    height, width = picture_HW3.shape[:2]
    if max(height, width) <= SMALL:
        factor = max(1, side // max(height, width))
        return picture_HW3.repeat(factor, axis=0).repeat(factor, axis=1)
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(picture_HW3).resize(size, Image.Resampling.LANCZOS))


def heat_panel(
    picture_HW3: Array, heat_rc: Array, side: int, high: float, mark: tuple[int, int] | None = None
) -> Array:
    """Draw values of patches from 0 to `high` in color over the gray image; `mark`: a patch with a frame."""
    under_HW1 = _gray(enlarged(picture_HW3, side))
    level_rc = np.clip(heat_rc / high, 0, 1) if high > 0 else np.zeros(heat_rc.shape)
    smooth = max(picture_HW3.shape[:2]) > SMALL
    level_HW = _spread(level_rc, under_HW1.shape[:2], smooth)
    color_HW3 = matplotlib.colormaps[HEAT](level_HW)[:, :, :3]
    mixed_HW3 = _IMAGE_SHARE * (0.1 + 0.8 * under_HW1) + (1 - _IMAGE_SHARE) * color_HW3
    if mark is not None:
        _frame(mixed_HW3, mark, heat_rc.shape)
    return _bytes(mixed_HW3)


def group_panel(picture_HW3: Array, group_rc: Array, side: int) -> Array:
    """Draw each group of patches in its mean color, with lines between groups; patches of no group (-1) are hatched."""
    rows, columns = group_rc.shape
    height, width = enlarged(picture_HW3, side).shape[:2]
    row_H, column_W = np.arange(height) * rows // height, np.arange(width) * columns // width
    group_HW = group_rc[row_H[:, None], column_W[None]]
    under_HW3 = enlarged(picture_HW3, side) / 255.0
    mixed_HW3 = under_HW3.copy()
    for group in np.unique(group_rc):
        mixed_HW3[group_HW == group] = under_HW3[group_HW == group].mean(0)
    y_H1, x_1W = np.arange(height)[:, None], np.arange(width)[None]
    dropped_HW = group_HW < 0
    mixed_HW3[dropped_HW] = 0.25 * under_HW3[dropped_HW]
    mixed_HW3[dropped_HW & ((x_1W + y_H1) % 8 == 0)] = 0.6
    edge_HW = np.zeros((height, width), bool)
    edge_HW[1:] |= group_HW[1:] != group_HW[:-1]
    edge_HW[:, 1:] |= group_HW[:, 1:] != group_HW[:, :-1]
    mixed_HW3[edge_HW] = to_rgb(ORANGE)
    return _bytes(mixed_HW3)


def signed_panel(picture_HW3: Array, value_HW: Array, side: int, high: float) -> Array:
    """Draw values of pixels from -`high` to `high`: the further from 0, the less transparent over the gray image."""
    under_HW1 = 0.35 + 0.5 * _gray(enlarged(picture_HW3, side))
    level_HW = np.clip(value_HW / high, -1, 1) if high > 0 else np.zeros(value_HW.shape)
    level_HW = _spread(level_HW, under_HW1.shape[:2], smooth=max(picture_HW3.shape[:2]) > SMALL)
    color_HW3 = matplotlib.colormaps[SIGNED]((level_HW + 1) / 2)[:, :, :3]
    weight_HW1 = np.sqrt(np.abs(level_HW))[:, :, None]
    return _bytes((1 - weight_HW1) * under_HW1 + weight_HW1 * color_HW3)


def sheet(panels: Sequence[Sequence[Array]], columns: Sequence[str], rows: Sequence[str], bars: Sequence[Bar]) -> bytes:
    """Draw panels of equal size in rows, with names above and beside them, one pixel of a panel per output pixel."""
    height, width = panels[0][0].shape[:2]
    down, across = len(panels), max(map(len, panels))
    mosaic = np.full((down * (height + _GAP) - _GAP, across * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for i, line in enumerate(panels):
        for j, panel in enumerate(line):
            top, left = i * (height + _GAP), j * (width + _GAP)
            mosaic[top : top + height, left : left + width] = 118  # a frame of one pixel, visible around white panels
            mosaic[top + 1 : top + height - 1, left + 1 : left + width - 1] = panel[1:-1, 1:-1]
    # Inches: names of rows at the left, of columns above, scales at the right.
    left, above, right = 0.1 + 0.085 * max(map(len, rows), default=0), 0.3, 0.1 + 0.85 * len(bars)
    wide, high = mosaic.shape[1] / _DPI, mosaic.shape[0] / _DPI
    tall = max(high, 1.75 if bars else 0)  # a scale needs room for its label
    size = left + wide + right, above + tall + 0.1
    with style():
        figure = Figure(figsize=size, dpi=_DPI)
        axes = figure.add_axes((left / size[0], (0.1 + tall - high) / size[1], wide / size[0], high / size[1]))
        axes.imshow(mosaic, interpolation="nearest")
        axes.set_xticks([j * (width + _GAP) + width / 2 for j in range(len(columns))], columns, fontsize=8.5)
        axes.set_yticks([i * (height + _GAP) + height / 2 for i in range(len(rows))], rows, fontsize=8.5)
        axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        for number, bar in enumerate(bars):
            place = (left + wide + 0.15 + 0.85 * number) / size[0]
            share = min(tall, 2.6)
            bar_axes = figure.add_axes((place, (0.1 + tall - share) / size[1], 0.12 / size[0], share / size[1]))
            _draw_bar(figure, bar_axes, bar)
        return png(figure)


def _draw_bar(figure: Figure, axes: Any, bar: Bar) -> None:
    colors_X4 = matplotlib.colormaps[bar.colors](np.linspace(0, 1, 256))
    if bar.mixed:  # as over a picture of middle gray
        colors_X4[:, :3] = _IMAGE_SHARE / 2 + (1 - _IMAGE_SHARE) * colors_X4[:, :3]
    drawn = figure.colorbar(ScalarMappable(Normalize(bar.low, bar.high), ListedColormap(colors_X4)), cax=axes)
    drawn.set_ticks([bar.low, (bar.low + bar.high) / 2, bar.high])
    drawn.ax.tick_params(labelsize=7.5)
    drawn.set_label(bar.label, fontsize=7.5, labelpad=2)


def lens_curves(probabilities_LS: Array, classes: Sequence[str], shown: Sequence[int]) -> bytes:
    """Plot the probability of some classes after each layer."""
    with single_axes(4.2, 3.4, dpi=150) as (figure, axes):
        layers = np.arange(len(probabilities_LS))
        names, drawn = [short(classes[number], 24) for number in shown], list[Line2D]()
        for number, (color, dash) in zip(shown, _LINES, strict=False):
            line = probabilities_LS[:, number]
            drawn += axes.plot(layers, line, dash, color=color, marker="o", markersize=3)
        axes.set(xlabel="layer", ylabel="probability (%)", ylim=(-0.02, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
        below: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "fontsize": 8}
        legend = axes.legend(drawn, names, ncols=5 if max(map(len, names)) < 7 else 1, **below)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a class may be called $5
        return png(figure)


def distance_plot(distances_Lh: Array, uniform: float, longest: float) -> bytes:
    """Plot the mean attention distance of every head over its layer, in pixels, and that of uniform attention."""
    layers = np.arange(len(distances_Lh))
    with single_axes(4.2, 3.2, dpi=150) as (figure, axes):
        axes.axhline(uniform, color=GRAY, linestyle="--", linewidth=1.2, label="uniform attention")
        every = layers.repeat(distances_Lh.shape[1])
        axes.plot(every, distances_Lh.ravel(), "o", color=BLUE, markersize=4, alpha=0.75, label="one head")
        axes.plot(layers, distances_Lh.mean(1), color=ORANGE, label="mean over the heads")
        axes.set(xlabel="layer", ylabel="mean attention distance (px)", ylim=(0, None))
        axes.set_ylim(0, min(longest, 1.15 * max(uniform, float(distances_Lh.max()))))
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize=7.5)
        return png(figure)


def cka_plot(similar_LM: Array, names: Sequence[str]) -> bytes:
    """Plot the CKA of every block of one model (y axis) with every block of another (x axis), from 0 to 1."""
    rows, columns = similar_LM.shape
    with single_axes(4.6, 1.1 + 3.4 * min(max(rows / columns, 0.5), 1.6), dpi=150) as (figure, axes):
        shown = axes.imshow(np.clip(similar_LM, 0, 1), HEAT, vmin=0, vmax=1, origin="lower", aspect="auto")
        axes.set(ylabel=f"block of {short(names[0], 30)}", xlabel=f"block of {short(names[1], 30)}")
        axes.grid(visible=False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(12, integer=True))
        figure.colorbar(shown, ax=axes, label="CKA")
        return png(figure)


def filter_sheet(filters_KCPP: Array) -> bytes:
    """Draw the components of the patch filters, each scaled by its own largest absolute value; gray is 0."""
    largest_K = np.abs(filters_KCPP).max(axis=(1, 2, 3), keepdims=True)
    level_KCPP = 0.5 + filters_KCPP / np.where(largest_K > 0, 2 * largest_K, 1)
    across = min(len(level_KCPP), 7)
    side = max(64, min(96, 6 * level_KCPP.shape[-1]))
    panels = [enlarged(as_picture(each.transpose(1, 2, 0)), side) for each in level_KCPP]
    lines = [panels[start : start + across] for start in range(0, len(panels), across)]
    rows = [f"{1 + start} to {start + len(line)}" for start, line in zip(range(0, 99, across), lines, strict=False)]
    bars = [Bar("gray", -1, 1, "share of its largest value")] if level_KCPP.shape[1] < 3 else []
    return sheet(lines, [], rows, bars)


def position_sheet(similarity_NN: Array, grid: tuple[int, int]) -> bytes:
    """Draw one tile per patch at its place: the cosine of its position embedding with every other. Large grids are
    subsampled."""
    every = max(1, math.ceil(max(grid) / _MAX_TILES))
    rows, columns = range(every // 2, grid[0], every), range(every // 2, grid[1], every)
    side = max(grid[0], min(90, 620 // len(rows)))
    tiles = [[_tile(similarity_NN[row * grid[1] + column].reshape(grid), side) for column in columns] for row in rows]
    across = [f"column {column}" if column == columns[0] else str(column) for column in columns]
    down = [f"row {row}" if row == rows[0] else str(row) for row in rows]
    return sheet(tiles, across, down, [Bar(HEAT, -1, 1, "cosine")])


def _tile(cosine_rc: Array, side: int) -> Array:
    factor = max(1, side // max(cosine_rc.shape))
    big = ((cosine_rc + 1) / 2).repeat(factor, axis=0).repeat(factor, axis=1)
    return _bytes(matplotlib.colormaps[HEAT](big)[:, :, :3])


def _gray(picture_HW3: Array) -> Array:
    return (picture_HW3 @ np.array([0.299, 0.587, 0.114]) / 255)[:, :, None]


def _spread(values: Array, size: tuple[int, ...], smooth: bool) -> Array:
    """Resize a grid of values to pixels."""
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    height, width = size
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(values, np.float32)).resize((width, height), how), np.float64
    )


def _frame(mixed_HW3: Array, mark: tuple[int, int], grid: tuple[int, ...]) -> None:
    (height, width), (row, column) = mixed_HW3.shape[:2], mark
    top, bottom = round(row * height / grid[0]), round((row + 1) * height / grid[0])
    left, right = round(column * width / grid[1]), round((column + 1) * width / grid[1])
    inside = mixed_HW3[top + 2 : bottom - 2, left + 2 : right - 2].copy()
    mixed_HW3[top:bottom, left:right] = to_rgb(ORANGE)
    if inside.size:
        mixed_HW3[top + 2 : bottom - 2, left + 2 : right - 2] = inside


def _bytes(mixed_HW3: Array) -> Array:
    return np.rint(np.clip(mixed_HW3, 0, 1) * 255).astype(np.uint8)


def png(figure: Figure) -> bytes:
    """Return the figure as PNG bytes, without varying metadata."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
