"""Figures of alignments: attention of written tokens over a source text, or over an image.

Importing this file imports matplotlib. Shape letters: T written tokens, M source tokens, H W height and width, r c rows
and columns of patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vitral.report import explain_plots as plots
from vitral.report.explain_plots import Array
from vitral.report.plots import style, svg

_SMALLEST_CELL, _SMALL_CELL, _CELL = 0.07, 0.17, 0.27  # inches; cells of any matrix, of several, of one
_PAGE = 10.4  # inches of matrices side by side
_LONGEST = 9.0  # inches of a matrix's longer side, where its cells are not at the limits
_SMALLEST_FONT = 4.5
_LABEL = 12  # characters of a tick label
_SIDE = 320  # pixels of a strip's longer side
_VISIBLE = {" ": "\u2423", "\n": "\\n", "\t": "\\t"}
_SHARE = plots.Bar(plots.HEAT, 0, 1, "share of the panel's largest value", mixed=True)


def visible(token: str) -> str:
    """The token as a short label: blanks are shown, long ones cut."""
    text = "".join(_VISIBLE.get(each, each) for each in token)
    return text if len(text) <= _LABEL else text[: _LABEL - 1] + "\u2026"


def alignment_matrices(maps: Mapping[str, Array], source: Sequence[str], written: Sequence[str]) -> bytes:
    """Draw attention [T, M] as SVG, a matrix per name: a row per written token from the top, a column per source token,
    colored from 0 to 1. source, written: the tokens, as tick labels."""
    rows, columns = len(written), len(source)
    assert all(each.shape == (rows, columns) for each in maps.values()), (rows, columns)
    largest = _CELL if len(maps) == 1 else _SMALL_CELL
    side = float(np.clip(_LONGEST / max(rows, columns), _SMALLEST_CELL, largest))
    wide, high = 0.5 + side * columns, 0.7 + side * rows
    across = min(len(maps), max(1, int(_PAGE // wide)))
    down = -(-len(maps) // across)
    with style():
        figure = Figure(figsize=(0.9 + wide * across, 0.3 + high * down), layout="constrained")
        every = figure.subplots(down, across, squeeze=False).ravel()
        for axes, (name, map_TM) in zip(every, maps.items(), strict=False):
            axes.imshow(np.clip(map_TM, 0, 1), plots.HEAT, vmin=0, vmax=1, aspect="equal", interpolation="nearest")
            _name(axes, list(map(visible, source)), list(map(visible, written)), side)
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
            axes.set_title(name, fontsize=9)
        for axes in every[len(maps) :]:
            axes.set_axis_off()
        every[0].set(ylabel="written")
        bar = figure.colorbar(ScalarMappable(Normalize(0, 1), plots.HEAT), ax=every, label="attention", aspect=30)
        bar.ax.tick_params(labelsize=7)
        return svg(figure, crop=True)


def _name(axes: Axes, columns: Sequence[str], rows: Sequence[str], side: float) -> None:
    size = min(9.5, max(_SMALLEST_FONT, 72 * side * 0.62))
    every = max(1, round(1.2 * size / (72 * side)))  # labels that do not overlap
    turned = max(map(len, columns)) > 2
    axes.set_xticks(range(0, len(columns), every), columns[::every], fontsize=size, rotation=90 * turned)
    axes.set_yticks(range(0, len(rows), every), rows[::every], fontsize=size)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)  # a token may be $


def alignment_strips(
    picture_HW3: Array, maps: Mapping[str, Array], written: Sequence[str], *, scale: bool = True
) -> bytes:
    """Draw the image once per written token as PNG, under each of several maps [T, r, c] by name, in columns. The patch
    of the largest value has a frame. scale: of the colors, beside the maps."""
    side = _SIDE if len(maps) < 5 else _SIDE * 5 // 8
    panels: list[list[Array]] = []
    for place in range(len(written)):
        line: list[Array] = []
        for map_Trc in maps.values():
            heat_rc = map_Trc[place]
            row, column = np.unravel_index(int(heat_rc.argmax()), heat_rc.shape)
            line.append(plots.heat_panel(picture_HW3, heat_rc, side, float(heat_rc.max()), (int(row), int(column))))
        panels.append(line)
    return plots.sheet(panels, list(maps), list(map(visible, written)), [_SHARE] if scale else [])
