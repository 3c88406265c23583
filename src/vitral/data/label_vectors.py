"""Labels as vectors of zeros and ones (multi-hot), which look like lists of two classes called 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitral.errors import UserError

_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def vector_width(rows: Sequence[Sequence[Any]]) -> int | None:
    """The length that all lists share where they hold nothing but zeros and ones (numbers, booleans or text); None for
    other lists, which name classes, and for lists of one."""
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        return None
    width = widths.pop()
    return width if width > 1 and all(_word(each) in _FLAGS for row in rows for each in row) else None


def named(rows: Sequence[Sequence[Any]], classes: Sequence[str] | None, where: str) -> list[list[str]] | None:
    """The classes that multi-hot vectors stand for, in the order that `classes` declares; None where the lists are no
    vectors, or where `classes` has both 0 and 1 as names. Raises UserError for vectors whose classes are not declared,
    or are of another number."""
    width = vector_width(rows)
    if width is None or (classes is not None and {"0", "1"} <= set(classes)):
        return None
    if classes is None or len(classes) != width:
        raise UserError(
            f"the labels are vectors of {width} zeros and ones, and the names of the {width} classes are not declared",
            where=where, got=None if classes is None else f"{len(classes)} names in data.classes",
            wanted='lists of class names, such as ["cat", "dog"], or vectors with data.classes in their order',
            hint="Name the classes in the order of the vectors: data.classes=FIRST,SECOND" + ",..." * (width > 2),
        )  # fmt: skip
    return [[name for name, flag in zip(classes, row, strict=True) if _FLAGS[_word(flag)]] for row in rows]


def _word(flag: Any) -> str:
    return str(flag).strip().lower()
