"""The page of `vitral explain`: one HTML file with every picture inside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from vitral.report.page import embed_image, make_table, section, write_page

CAUTION = (
    "Attention is not an explanation. It says which tokens a layer mixes, not what the answer rests on: a patch that "
    "is looked at may change nothing, and what a token holds by then can come from anywhere. Rollout leaves out the "
    "MLPs and what is being mixed; gradients hold for this image and this class alone. Where the pictures disagree, "
    "cover the patch and ask the model again."
)


class Picture(NamedTuple):
    """A PNG file of that name, what is on it for those who can't see it, and what stands below it as text. wide: not
    made smaller to fit the page, but scrolled."""

    name: str
    png: bytes
    alt: str
    caption: str
    wide: bool = False


class Table(NamedTuple):
    """Columns, of which the first holds names, and rows of text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


class Section(NamedTuple):
    """A part of the page and of the answer: a title, sentences, pictures and tables in their order, and what `--json`
    says of it."""

    title: str
    parts: Sequence[str | Picture | Table]
    found: dict[str, Any]

    @property
    def pictures(self) -> list[Picture]:
        """The pictures alone."""
        return [part for part in self.parts if isinstance(part, Picture)]


def write_explain_page(path: str | Path, title: str, sections: Sequence[Section], notes: Sequence[str]) -> None:
    """All sections as one file, the notes (what was left out, and why) at the end. All text is escaped. Raises OSError
    where the file can't be written."""
    head = f'<section class="headline">\n<p class="soft">{escape(CAUTION)}</p>\n</section>'
    parts = [head, *(section(escape(each.title), _content(each)) for each in sections)]
    if notes:
        items = "\n".join(f"<li>{escape(note)}</li>" for note in notes)
        parts.append(section("Left out", f"<ul>{items}</ul>"))
    write_page(path, title, parts)


def _content(each: Section) -> str:
    return "\n".join(
        f"<p>{escape(part)}</p>"
        if isinstance(part, str)
        else _figure(part)
        if isinstance(part, Picture)
        else _table(part)
        for part in each.parts
    )


def _figure(picture: Picture) -> str:
    # A figure that scrolls can be focused, so that it does by keyboard too.
    kind, focus = ("wide", ' tabindex="0"') if picture.wide else ("fit", "")
    image = embed_image("image/png", picture.png, picture.alt)
    return f'<div class="figure {kind}"{focus}>{image}</div>\n<p class="soft">{escape(picture.caption)}</p>'


def _table(table: Table) -> str:
    rows = [_row(row) for row in table.rows]
    return make_table([escape(name) for name in table.columns], 1, rows, table.caption)


def _row(cells: Sequence[str]) -> str:
    first, *rest = map(escape, cells)
    return f'<tr><th class="name" scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"
