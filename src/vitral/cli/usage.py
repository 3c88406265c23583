"""Help pages, fitted to the terminal's width, with all keys of a command or those that match search words."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from pydantic import BaseModel

from vitral.config_keys import REQUIRED, Key, as_word, describe
from vitral.errors import UserError

_COLUMN = 26  # column at which the meaning of a key starts
_TITLE = "key=default, meaning (type):"
LISTS = "Lists are written with commas, without brackets: KEY=A,B; `none` is an empty one."


def page(text: str, model: type[BaseModel] | None = None, words: Sequence[str] = ()) -> str:
    """Return the help text with all keys in place of {keys}; with words, only the matching keys."""
    if model is None or not model.model_fields:
        return fitted(text.format())
    return picked(model, words) or fitted(text.format(keys="\n".join([_TITLE, "", *key_lines(describe(model))])))


def picked(model: type[BaseModel], words: Sequence[str], values: Mapping[str, Any] | None = None) -> str:
    """Return the keys that match all words by group, name or meaning; empty without words. Raises UserError if none
    matches."""
    if not words:
        return ""
    keys = [key for key in describe(model) if all(_fits(key, word) for word in words)]
    if not keys:
        raise UserError("no key matches in its name or meaning", where=" ".join(words), hint="`--help` lists all keys.")
    return "\n".join([*key_lines(keys, values), "", *wrapped(LISTS, text_width(), 0)]) + "\n"


def _fits(key: Key, word: str) -> bool:
    if word.endswith("."):
        return key.name.startswith(word)
    return word.lower() in key.name.lower() or re.search(rf"\b{re.escape(word)}", key.help, re.IGNORECASE) is not None


def fitted(text: str) -> str:
    """Wrap a help text to the terminal's width. Unindented lines of a paragraph flow; other lines wrap below the second
    column."""
    width, lines = text_width(), list[str]()
    for flows, part in groupby(text.splitlines(), _flows):
        for line in [" ".join(part)] if flows else list(part):
            lines += wrapped(line, width, 0) if flows else _folded(line, width)
    return "\n".join(lines) + "\n"


def _flows(line: str) -> bool:
    return bool(line) and not line.startswith((" ", "usage:")) and "  " not in line


def _folded(line: str, width: int) -> list[str]:
    """Wrap an indented line or a table row."""
    if len(line) <= width:
        return [line]
    row = re.match(r"( *)(\S.*?)( {2,})(\S.*)", line)
    margin = len(line) - len(line.lstrip())
    if row is None:
        first, *rest = wrapped(line, width, margin)
        return [first, *(part for text in [" ".join(rest)] if text for part in wrapped(text, width, margin + 4))]
    column = row.end(3)
    if column > width // 2:  # an example with a comment
        return [*_folded(f"{row[1]}{row[2]}", width), *wrapped(row[4], width, margin + 4)]
    right = wrapped(row[4], width, column)
    return [line[:column] + right[0].lstrip(), *right[1:]]


def key_lines(keys: Iterable[Key], values: Mapping[str, Any] | None = None) -> list[str]:
    """Return each key with its default (or value), meaning and type, wrapped to the terminal's width."""
    lines: list[str] = []
    for key in keys:
        value = (values or {}).get(key.name, key.default)
        left = f"  {key.name}" + ("" if value == REQUIRED else f"={as_word(value)}")
        kind = f"{key.type_text}; required" if value == REQUIRED else key.type_text
        right = wrapped(f"{key.help} ({kind})" if key.help else f"({kind})", text_width(), _COLUMN)
        if len(left) > _COLUMN - 2:
            lines += wrapped(left, text_width(), 2)
        else:
            right[0] = left.ljust(_COLUMN) + right[0][_COLUMN:]
        lines += right
    return lines


def wrapped(text: str, width: int, indent: int) -> list[str]:
    """Wrap one paragraph to `width` columns with an indent. Words longer than a line are cut."""
    margin = " " * indent
    return textwrap.wrap(text.strip(), width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)


def text_width() -> int:
    """Return the columns of the terminal or of COLUMNS, else 80; at most 110."""
    return min(max(shutil.get_terminal_size((80, 24)).columns, 40), 110)
