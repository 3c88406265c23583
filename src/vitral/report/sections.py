"""Content of a report, a model card and the console as data: sections of metrics, tables, figures and text.

A task returns these; `report.render` turns them into HTML, Markdown or lines of a terminal. No text in them is markup:
every renderer escapes its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vitral.evaluate.metric import Metric


class Note(NamedTuple):
    """A paragraph in a softer color: a caption or a caveat."""

    text: str


class Bullets(NamedTuple):
    """A list of sentences."""

    items: Sequence[str]


class Facts(NamedTuple):
    """Labels with values, formatted as the cells of a table are."""

    rows: Sequence[tuple[str, Any]]


class Code(NamedTuple):
    """Preformatted text. `folded`: the label of the button that unfolds it; HTML only."""

    text: str
    folded: str = ""


class Table(NamedTuple):
    """Rows under column names. A cell is text, a number, a Metric, formatted by its `text`, or a Picture (HTML only);
    None is shown as a dash. The first column names the rows; others that hold numbers only are aligned to the right.
    Rows after `folded` (0: none are) are folded in HTML and left out elsewhere."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    folded: int = 0


class Figure(NamedTuple):
    """A drawing as SVG, PNG or JPEG bytes, with the text that stands for it; HTML only. `wide` figures scroll. `name`:
    of the file, where it is also written beside the page."""

    content: bytes
    alt: str
    caption: str = ""
    wide: bool = False
    name: str = ""


class Picture(NamedTuple):
    """An image, uint8 or floats in [0, 1], [H, W] or [H, W, D], or None where it cannot be read, with its caption and
    the name of its file; HTML only."""

    image: Any
    caption: str
    alt: str = ""
    name: str = ""


class Gallery(NamedTuple):
    """Pictures, figures or smaller galleries side by side."""

    pictures: Sequence[Picture] | Sequence[Figure] | Sequence[Gallery]
    caption: str = ""


Part = str | Note | Bullets | Facts | Code | Metric | Table | Figure | Gallery


class Section(NamedTuple):
    """Parts under a title, in order. The first section of an evaluation is its headline: it has no title, and its first
    part is the primary metric. `where`: the media that show it, of "report", "card" and "console"."""

    title: str
    parts: Sequence[Part]
    where: frozenset[str] = frozenset({"report"})
