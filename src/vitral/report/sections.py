"""What a report, a model card and the console show, as data: sections of metrics, tables, figures and text.

A task returns these; `report.render` turns them into HTML, Markdown or lines of a terminal. No text in them is markup:
every renderer escapes what it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vitral.evaluate.metric import Metric


class Table(NamedTuple):
    """Rows under column names. A cell is text, a number, or a Metric, which is shown as it says; None is shown as a
    dash. Rows after `folded` (0: none are) stand behind a button in HTML and are left out elsewhere."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    folded: int = 0


class Figure(NamedTuple):
    """A drawing as SVG bytes, with the text that stands for it; HTML only. `wide` figures scroll."""

    svg: bytes
    alt: str
    caption: str = ""
    wide: bool = False


class Picture(NamedTuple):
    """An image, uint8 or floats in [0, 1], [H, W] or [H, W, D], with its caption; HTML only."""

    image: Any
    caption: str
    alt: str = ""


class Gallery(NamedTuple):
    """Pictures side by side."""

    pictures: Sequence[Picture]
    caption: str = ""


Part = str | Metric | Table | Figure | Gallery


class Section(NamedTuple):
    """Parts under a title, in order. The first section of an evaluation is its headline: its first part is the primary
    metric. `where`: the media that show it, of "report", "card" and "console"."""

    title: str
    parts: Sequence[Part]
    where: frozenset[str] = frozenset({"report"})
