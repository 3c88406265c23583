"""Render sections as an HTML page, as Markdown or as text for a terminal.

An HTML page is one file that needs no network, no script and no other file.
Shape letters: H W height and width, D image channels.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitral import markdown
from vitral.atomic_files import whole_file
from vitral.errors import shown, shown_lines
from vitral.evaluate.metric import Metric
from vitral.report.sections import Bullets, Code, Facts, Figure, Gallery, Note, Part, Picture, Section, Table

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.console import RenderableType

_PHOTO_SIDE = 256  # pixels; larger pictures are reduced for the page
_PIXELS = 64  # pictures up to this side are enlarged without blur
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?( %)?|–")


def to_html(title: str, sections: Sequence[Section]) -> str:
    """Return the page of the sections whose `where` has "report". Raises ValueError for a picture of a wrong shape."""
    chosen = [each._replace(parts=_grouped(each)) for each in sections if "report" in each.where]
    return _environment().get_template("page.html").render(title=title, sections=chosen)


def write_page(path: str | Path, title: str, sections: Sequence[Section]) -> None:
    """Write the page under a temporary name and rename it. Raises OSError where the file cannot be written."""
    page = to_html(title, sections).encode("utf-8")
    with whole_file(Path(path)) as partial:
        partial.write_bytes(page)


def to_markdown(sections: Sequence[Section]) -> str:
    """Return the sections whose `where` has "card" as Markdown. Figures and pictures are left out."""
    blocks: list[str] = []
    for each in sections:
        if "card" in each.where:
            blocks += [f"## {markdown.cell(each.title)}"] if each.title else []
            blocks += [_markdown(part) for part in _grouped(each)]
    return "\n\n".join(filter(None, blocks))


def to_console(sections: Sequence[Section], width: int | None = None) -> str:
    """Return the sections whose `where` has "console" as text without a line end, without figures and pictures. width:
    of the terminal, in characters; None: lines and tables are as long as they need to be."""
    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, width=width or 100_000, color_system=None, legacy_windows=False)
    for each in sections:
        if "console" in each.where:
            texts = [each.title] if each.title else []
            drawn = [_console(part) for part in (*texts, *_grouped(each))]
            for block in filter(None, drawn):
                console.print(block, "", sep="\n", soft_wrap=False)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).rstrip()


def as_text(value: Any) -> str:
    """Format a number, list, mapping or metric for readers; None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, Metric):
        return value.text()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {as_text(item)}" for name, item in value.items())
    return ", ".join(map(as_text, value)) if isinstance(value, list | tuple) else str(value)


def photo(image: NDArray[Any], side: int = _PHOTO_SIDE) -> tuple[str, bytes, tuple[int, int]]:
    """Return a picture's media type, file bytes and (width, height) for a page. Takes [H,W] or [H,W,D], uint8 or
    floats in [0,1]; D = 1 and 2 are shown as gray (the first channel), 3 and 4 as red, green, blue (the first
    three). At most `side` pixels per side; small ones are PNG, large ones JPEG. Raises ValueError for other shapes."""
    pixels = np.asarray(image)
    if pixels.ndim not in (2, 3) or pixels.size == 0 or (pixels.ndim == 3 and pixels.shape[2] > 4):
        raise ValueError(f"no picture: shape {pixels.shape}, expected [H,W] or [H,W,D] with D from 1 to 4")
    if pixels.ndim == 3:
        pixels = pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0]
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.nan_to_num(pixels.astype(np.float64)).clip(0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    kind = "png" if max(picture.size) <= _PIXELS else "jpeg"
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **({"quality": 85} if kind == "jpeg" else {}))
    return f"image/{kind}", buffer.getvalue(), picture.size


class _Cells(NamedTuple):
    """A table as text: its rows, how many are shown at first, and which columns, after the first, hold numbers only."""

    rows: list[list[str]]
    shown: int
    numbers: list[bool]


def _cells(table: Table) -> _Cells:
    rows = [["" if isinstance(value, Picture) else as_text(value) for value in row] for row in table.rows]
    places = range(1, len(table.columns))
    numbers = [False, *(all(_NUMBER.fullmatch(row[place]) for row in rows) for place in places)]
    return _Cells(rows, table.folded or len(rows), numbers)


def _grouped(section: Section) -> list[Part]:
    """The parts, with metrics that follow each other as facts; the first one of a headline, which has no title, stays
    a metric."""
    first = 0 if section.title else 1
    found: list[Part] = list(section.parts[:first])
    for is_metric, run in groupby(section.parts[first:], lambda part: isinstance(part, Metric)):
        parts = list(run)
        metrics = [part for part in parts if isinstance(part, Metric)]
        found += [Facts([(each.label, _value(each)) for each in metrics])] if is_metric else parts
    return found


def _value(metric: Metric) -> str:
    return metric.text() + (f" ({metric.interval_text()})" if metric.interval else "")


def _sentence(metric: Metric) -> str:
    return f"{metric.text()} {metric.label}" + (f", {metric.interval_text()}" if metric.interval else "")


def _markdown(part: Part) -> str:
    """One block, or nothing."""
    match part:
        case str() | Note():
            lines = (part if isinstance(part, str) else part.text).split("\n")
            return "\\\n".join(map(markdown.cell, lines))  # a backslash breaks the line
        case Metric():
            return markdown.cell(_sentence(part))
        case Bullets():
            return "\n".join(f"- {markdown.cell(item)}" for item in part.items)
        case Facts():
            return "\n".join(f"- {markdown.cell(name)}: {markdown.cell(as_text(value))}" for name, value in part.rows)
        case Code():
            return markdown.code_block(shown_lines(part.text))
        case Table():
            cells = _cells(part)
            heads = "|".join(f" {markdown.cell(name)} " for name in part.columns)
            marks = "|".join("---:" if number else "---" for number in cells.numbers)
            body = ["|".join(f" {markdown.cell(text)} " for text in row) for row in cells.rows[: cells.shown]]
            caption = f"{markdown.cell(part.caption)}\n\n" if part.caption else ""
            return caption + "\n".join(f"|{line}|" for line in (heads, marks, *body))
        case Figure() | Gallery():
            return ""


def _console(part: Part) -> RenderableType | None:
    from rich.table import Table as Grid
    from rich.text import Text

    match part:
        case str() | Note():
            return Text(shown_lines(part if isinstance(part, str) else part.text))
        case Metric():
            return Text(shown(_sentence(part)))
        case Bullets():
            return Text("\n".join(f"- {shown(item)}" for item in part.items))
        case Facts():
            grid = Grid.grid(padding=(0, 2, 0, 0))
            for name, value in part.rows:
                grid.add_row(Text(shown(name)), Text(shown(as_text(value))))
            return grid
        case Code():
            return Text(shown_lines(part.text))
        case Table():
            cells = _cells(part)
            caption = Text(shown(part.caption)) if part.caption else None
            grid = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=caption, title_justify="left")
            for name, number in zip(part.columns, cells.numbers, strict=True):
                grid.add_column(Text(shown(name)), justify="right" if number else "left", overflow="fold")
            for row in cells.rows[: cells.shown]:
                grid.add_row(*(Text(shown(text)) for text in row))
            return grid
        case Figure() | Gallery():
            return None


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=PackageLoader("vitral.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
        finalize=lambda value: shown(value) if type(value) is str else value,
    )  # fmt: skip
    filters = cast("dict[str, Any]", environment.filters)
    filters.update(kind=_kind, as_text=as_text, cells=_cells, data_uri=_data_uri, photo=_photo)
    filters["lines"] = lambda text: Markup(escape(shown_lines(str(text))))
    return environment


def _kind(part: object) -> str:
    return type(part).__name__


_MEDIA = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg"}


def _data_uri(content: bytes, media: str = "") -> str:
    media = media or next((each for start, each in _MEDIA.items() if content.startswith(start)), "image/svg+xml")
    return f"data:{media};base64,{base64.b64encode(content).decode('ascii')}"


def _photo(picture: Picture, least: int = 0) -> dict[str, Any]:
    """The attributes of an image element. least: width up to which a small picture is enlarged."""
    media, content, (width, height) = photo(picture.image)
    small = max(width, height) <= _PIXELS
    wide = max(least, width) if small else width
    return {
        "src": _data_uri(content, media), "alt": picture.alt or picture.caption, "width": wide,
        "height": round(wide * height / width), "small": small,
    }  # fmt: skip
