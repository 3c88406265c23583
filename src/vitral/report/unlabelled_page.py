"""The report of a run without labels: one HTML file that needs no network, no script and no other file.

Shape letters: B images, H W height and width, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.report import plots
from vitral.report.html import configuration, curves, facts, notes_section
from vitral.report.page import embed_image, percent, section, write_page

_LOSS = "The loss without labels says little of the features: compare it within a run, and runs by their neighbours."


def write_unlabelled_report(
    path: str | Path,
    *,
    title: str,
    summary: Mapping[str, Any],
    metrics_rows: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, NDArray[Any]],
    config_yaml: str,
    notes: Sequence[str],
) -> None:
    """Writes the report, whole or not at all. `summary` is summary.json; `pictures` are columns of images [B, H, W, C]
    in [0,1] by their captions, of equal B. Raises OSError where the file can't be written."""
    sections = [
        _headline(summary), facts(summary), curves(metrics_rows, _LOSS), _pictures(pictures), notes_section(notes),
        configuration(config_yaml),
    ]  # fmt: skip
    write_page(path, title, sections)


def _headline(summary: Mapping[str, Any]) -> str:
    if "top1" not in summary:
        return '<section class="headline"><p>Not judged: these data have no classes to judge by.</p></section>'
    low, high = summary["top1_interval"]
    return f"""<section class="headline">
<p><strong>{percent(summary["top1"])} %</strong> of {summary["count"]:,} {escape(str(summary["split"]))} images right by
their {escape(str(summary["judged_by"]))} among the train images, 95 % interval {percent(low)} to {percent(high)} %</p>
<p class="soft">The encoder has seen no label; only the neighbours' votes have.</p>
</section>"""


def _pictures(columns: Mapping[str, NDArray[Any]]) -> str:
    if not columns:
        return ""
    rows: list[str] = []
    for images in zip(*columns.values(), strict=True):
        cells = "".join(f"<td>{_picture(image, name)}</td>" for name, image in zip(columns, images, strict=True))
        rows.append(f"<tr>{cells}</tr>")
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    table = f'<div class="table"><table class="pictures"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}'
    return section("What it has learned, on images that it has not seen", f"{table}</tbody></table></div>")


def _picture(image_HWC: NDArray[Any], name: str) -> str:
    media, content, (width, height) = plots.photo(np.asarray(image_HWC))
    small = max(width, height) <= 64
    shown = max(96, width) if small else width
    more = f' width="{shown}" height="{round(shown * height / width)}"' + (' class="pixels"' if small else "")
    return embed_image(media, content, name, more)
