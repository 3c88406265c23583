"""Escape names from files and folders, so that Markdown shows them literally."""

from __future__ import annotations

import re

from vitral.errors import shown

# What begins emphasis, code, a link, an image, mathematics, a heading or a list; an underscore inside of a word
# begins nothing.
_MARKUP = re.compile(r"[\\`*\[\]~$]|(?<!\w)_|_(?!\w)|^[#+=-]")
_NUMBERED = re.compile(r"^(\d+)([.)](?:\s|$))")


def text(value: object) -> str:
    """One line without markup for Markdown and for HTML."""
    line = shown(str(value)).strip().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _NUMBERED.sub(r"\1\\\2", _MARKUP.sub(r"\\\g<0>", line))


def cell(value: object) -> str:
    """The same for a cell of a table."""
    return text(value).replace("|", "\\|")


def code(value: object) -> str:
    """A code span, between as many backticks as its text needs."""
    line = shown(str(value))
    ticks = _fence(line, 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def code_block(lines: str) -> str:
    """A block of code, between as many backticks as its text needs. `lines` is written as given."""
    ticks = _fence(lines, 3)
    return f"{ticks}\n{lines}\n{ticks}"


def _fence(body: str, least: int) -> str:
    return "`" * max(least, 1 + max(map(len, re.findall("`+", body)), default=0))
