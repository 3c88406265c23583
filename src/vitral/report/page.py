"""The frame of every HTML page that Vitral writes: one file, no network, no script, light and dark, from 320 pixels."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vitral.whole import whole_file

CSS = """
:root { --ink: #1b1f24; --soft: #57606a; --ground: #ffffff; --card: #f6f7f9; --line: #d5d9de; --bar: #0072b2 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a8b0b9; --ground: #15181c; --card: #1f2329; --line: #3a4048; --bar: #56b4e9 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 4rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 1rem } h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem } p { margin: .4rem 0; max-width: 52rem } .soft { color: var(--soft) }
.message { white-space: pre-line }
.headline { border-left: .35rem solid var(--bar); padding-left: .9rem }
.headline strong { display: block; font-size: 2.6rem; line-height: 1.1 }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(max(8.5rem, 16%), 1fr)); margin: 0;
  gap: .6rem 1rem }
dt { color: var(--soft); font-size: .85rem } dd { margin: 0; font-variant-numeric: tabular-nums }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: .8rem }
.figure { background: #fff; border: 1px solid var(--line); border-radius: .4rem; padding: .5rem; overflow-x: auto }
.table + .figure { margin-top: 1.2rem } .fit { max-width: 31rem } .fit img { display: block; width: 100%; height: auto }
.wide { width: fit-content; max-width: 100% } .wide img { display: block; max-width: none }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--soft); font-size: .85rem; padding-bottom: .3rem }
th, td { padding: .25rem .4rem; border-bottom: 1px solid var(--line); text-align: right; overflow-wrap: normal }
thead th { font-size: .85rem; vertical-align: bottom }
th.name, td.name { text-align: left; overflow-wrap: anywhere; min-width: 3rem }
@media (max-width: 26rem) { th, td { padding: .25rem .1rem; font-size: .9rem } thead th { font-size: .72rem }
  th.name, td.name { min-width: 5.3rem } }
tbody th { font-weight: 600 } .table { overflow-x: auto }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: 1rem .8rem }
.mistakes figure { margin: 0 }
.groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: 1.4rem 2rem }
.mistakes img { display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: contain;
  background: var(--card); border: 1px solid var(--line); border-radius: .3rem }
table.pictures td { text-align: left; border: 0 } table.pictures th { text-align: left }
img.pixels { image-rendering: pixelated }
figcaption { font-size: .85rem; line-height: 1.35; padding-top: .3rem }
figcaption .soft { display: block; font-size: .75rem }
summary { cursor: pointer; padding: .3rem 0 } pre { background: var(--card); border: 1px solid var(--line);
  border-radius: .4rem; padding: .7rem; overflow-x: auto; font-size: .85rem; overflow-wrap: normal }
"""
# The policy forbids what this file doesn't do anyway: any request.
HEAD = """<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">"""


def write_page(path: str | Path, title: str, sections: Sequence[str]) -> None:
    """A page of a title (escaped here) and sections of HTML, written under a temporary name, then renamed.

    Raises OSError where the file can't be written."""
    body = "\n".join([f"<h1>{escape(title)}</h1>", *sections])
    head = f"{HEAD}\n<title>{escape(title)}</title>\n<style>{CSS}</style>"
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body><main>\n{body}\n</main></body>\n</html>\n'
    )
    with whole_file(Path(path)) as partial:
        partial.write_bytes(page.encode("utf-8", "xmlcharrefreplace"))  # a name may hold half a surrogate pair


def percent(share: float) -> str:
    """A fraction as a percentage with one digit, or with more where one digit would make it a false 0 or 100."""
    for digits in range(1, 6):
        text = f"{100 * share:.{digits}f}"
        if share in (0, 1) or float(text) not in (0, 100):
            return text
    return repr(100 * share)


def as_text(value: Any) -> str:
    """A number, list or mapping as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {as_text(item)}" for name, item in value.items())
    return ", ".join(map(as_text, value)) if isinstance(value, list | tuple) else str(value)


def section(title: str, text: str) -> str:
    """A heading and what stands below it, both HTML."""
    return f"<section><h2>{title}</h2>\n{text}\n</section>"


def embed_image(media: str, content: bytes, alt: str, more: str = "") -> str:
    """An image inside the page itself; `more` are attributes."""
    data = base64.b64encode(content).decode("ascii")
    return f'<img src="data:{media};base64,{data}" alt="{escape(alt)}"{more}>'


def make_table(columns: Sequence[str], names: int, rows: Sequence[str], caption: str = "") -> str:
    """A table whose first `names` columns hold text."""
    marks = [' class="name"' if place < names else "" for place in range(len(columns))]
    head = "".join(f'<th{mark} scope="col">{column}</th>' for column, mark in zip(columns, marks, strict=True))
    shown, body = f"<caption>{escape(caption)}</caption>" if caption else "", "\n".join(rows)
    return f'<div class="table"><table>{shown}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
