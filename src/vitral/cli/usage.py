"""Help pages: fitted to the terminal's width, with the keys of a command, or those that a word picks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from vitral.errors import UserError
from vitral.keys import Key, describe, help_text, key_lines, text_width, wrapped

LISTS = "Lists are written with commas, without brackets: KEY=A,B; `none` is an empty one."


def page(text: str, model: type[BaseModel] | None = None, words: Sequence[str] = ()) -> str:
    """A command's help: its text, with all its keys in place of {keys}; with words only the matching keys."""
    if model is None or not model.model_fields:
        return fitted(text.format())
    return picked(model, words) or fitted(text.format(keys=help_text(model)))


def picked(model: type[BaseModel], words: Sequence[str], values: Mapping[str, Any] | None = None) -> str:
    """The keys that all words fit, by group, name or meaning; nothing without words. Raises UserError for no key."""
    if not words:
        return ""
    keys = [key for key in describe(model) if all(_fits(key, word) for word in words)]
    if not keys:
        raise UserError("no key has this in its name or meaning", where=" ".join(words), hint="--help alone lists all.")
    return "\n".join([*key_lines(keys, values), "", *wrapped(LISTS, text_width(), 0)]) + "\n"


def _fits(key: Key, word: str) -> bool:
    if word.endswith("."):
        return key.name.startswith(word)
    return word.lower() in key.name.lower() or re.search(rf"\b{re.escape(word)}", key.help, re.IGNORECASE) is not None


def fitted(text: str) -> str:
    """A help text whose lines are no wider than the terminal. Unindented lines of a paragraph flow; of others what is
    too wide goes on below the second column."""
    width = text_width()
    lines: list[str] = []
    paragraph: list[str] = []

    def flow() -> None:
        lines.extend(wrapped(" ".join(paragraph), width, 0))
        paragraph.clear()

    for line in text.splitlines():
        if line and not line.startswith((" ", "usage:")) and "  " not in line:
            paragraph.append(line)
            continue
        flow()
        lines.extend(_folded(line, width))
    flow()
    return "\n".join(lines) + "\n"


def _folded(line: str, width: int) -> list[str]:
    """An indented line, a row of a table, or an empty one."""
    if len(line) <= width:
        return [line]
    row = re.match(r"( *)(\S.*?)( {2,})(\S.*)", line)
    margin = len(line) - len(line.lstrip())
    if row is None:
        first, *rest = wrapped(line, width, margin)
        return [first, *(part for text in [" ".join(rest)] if text for part in wrapped(text, width, margin + 4))]
    column = row.end(3)
    if column > width // 2:  # an example and what it does
        return [*_folded(f"{row[1]}{row[2]}", width), *wrapped(row[4], width, margin + 4)]
    right = wrapped(row[4], width, column)
    return [line[:column] + right[0].lstrip(), *right[1:]]
