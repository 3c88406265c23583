"""Recognize multi-hot labels: vectors of 0 and 1, or of -1 and 1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vitral.errors import UserError

_WORDS = {"false": 0.0, "true": 1.0}
_SEPARATED = re.compile(r"-?[0-9.]+(?:[\s,;|]+-?[0-9.]+)+")
_FLAGS = re.compile("[01]+")


def vector_width(rows: Sequence[Any]) -> int | None:
    """Return the length that all lists share where they hold numbers (booleans, text of numbers) of at most two values,
    such as 0 and 1 or -1 and 1; None for other lists, which name classes, and for lists of one."""
    found = _vectors(rows)
    return None if found is None else len(found[0])


def text_vectors(values: Sequence[Any]) -> list[list[str]] | None:
    """Return the parts of labels that are vectors written as text without brackets: all of them like `0 1` or `1,0`, or
    like 01 with a leading zero in one of them; None for other labels."""
    words = [value.strip() for value in values if isinstance(value, str)]
    if not words or len(words) < len(values):
        return None
    if all(_FLAGS.fullmatch(word) for word in words) and any(word[0] == "0" for word in words):
        rows = [list(word) for word in words]
    else:
        rows = [re.split(r"[\s,;|]+", word) if _SEPARATED.fullmatch(word) else [] for word in words]
    return rows if vector_width(rows) is not None else None


def named(labels: Sequence[Any], classes: Sequence[str] | None, where: str) -> list[list[str]] | None:
    """The classes that multi-hot vectors (lists, or text without brackets) stand for, in the order that `classes`
    declares; None where the labels are no vectors, or where `classes` has them or their numbers as names. Raises
    UserError for vectors whose classes are not declared, or are of another number."""
    if set(map(str, labels)) - set(classes or ()):
        labels = text_vectors(labels) or labels
    found = _vectors(labels)
    if found is None or (classes is not None and {str(each).strip() for row in labels for each in row} <= set(classes)):
        return None
    width, high = len(found[0]), max(1.0, *(max(row) for row in found))
    if classes is None or len(classes) != width:
        values = " and ".join(f"{value:g}" for value in sorted({value for row in found for value in row}))
        raise UserError(
            f"the labels are vectors of {width} numbers ({values}), and the names of the {width} classes are "
            "not declared",
            where=where, got=None if classes is None else f"{len(classes)} names in data.classes",
            expected='lists of class names, such as ["cat", "dog"], or vectors with data.classes in their order',
            hint="Name the classes in the order of the vectors: data.classes=FIRST,SECOND" + ",..." * (width > 2),
        )  # fmt: skip
    return [[name for name, value in zip(classes, row, strict=True) if value == high] for row in found]


def _vectors(rows: Sequence[Any]) -> list[list[float]] | None:
    widths = {len(row) if isinstance(row, list) else 0 for row in rows}
    if len(widths) != 1 or widths.pop() < 2:
        return None
    numbers = [[_number(each) for each in row] for row in rows]
    values = {each for row in numbers for each in row}
    if None in values or len(values) > 2:
        return None
    return [[float(each or 0) for each in row] for row in numbers]


def _number(value: Any) -> float | None:
    word = str(value).strip().lower()
    try:
        return _WORDS[word] if word in _WORDS else float(word)
    except ValueError:
        return None
